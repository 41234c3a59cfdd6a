"""The registry: one op, one entry, from which parsing, documentation, tests and benchmarks are made.

An op is two pure functions. `sample` turns a strength and uniforms into named parameters in plain units (degrees,
pixels, grey levels); `lower` turns those into the parameters of one primitive. Applying is the primitive's business.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment import pixels, rng
from bloodcell.augment.primitives import blur, elastic, jpeg, mask, mix, mosaic, noise, stain, streak, tone, warp
from bloodcell.augment.primitives import filter as filter_
from bloodcell.spec import Param

Draws = dict[str, tf.Tensor]
Size = tuple[int, int]
Lowered = (warp.Warp | tone.Tone | mix.Mix | filter_.Filter | mask.Mask | blur.Blur | streak.Streak | mosaic.Mosaic
           | elastic.Elastic | stain.Stain | noise.Noise | jpeg.Jpeg)
# What a primitive does alike for all images of a program.
Style = warp.Style | elastic.Style

APPLY: dict[type, Callable[..., tf.Tensor]] = {
    warp.Warp: warp.apply, tone.Tone: tone.apply, mix.Mix: mix.apply, filter_.Filter: filter_.apply,
    mask.Mask: mask.apply, blur.Blur: blur.apply, streak.Streak: streak.apply, mosaic.Mosaic: mosaic.apply,
    elastic.Elastic: elastic.apply, stain.Stain: stain.apply, noise.Noise: noise.apply, jpeg.Jpeg: jpeg.apply}
STYLES: dict[str, type[Style]] = {"warp": warp.Style, "elastic": elastic.Style}
STATISTICS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "mean": tone.mean_luma, "extremes": tone.extremes, "cumulative": tone.cumulative}


@dataclasses.dataclass(frozen=True)
class Op:
    """An augmentation of single images.

    Attributes:
      name: as written in a policy.
      summary: what it does to an image, for people.
      primitive: `warp`, `tone`, `mix`, `filter`, `mask`, `blur`, `streak`, `mosaic`, `elastic`, `stain`,
        `noise` or `jpeg`.
      reference: the independent implementation it equals.
      sample: (strength [B] in the first parameter's unit, uniforms [B, uniforms], options) -> named draws, each [B] or
        [B, k]. An op without strength receives ones.
      lower: (draws, options, (height, width), statistics) -> the primitive's parameters.
      params: what a spec may say. With `identity` set, the first one is the strength.
      identity: the strength that changes nothing (level 0); None for an op that has no strength and either happens or
        does not.
      full: the strength at level 1.
      uniforms: how many uniforms `sample` uses.
      random_strength: in a policy, draw the strength between `identity` and the spec's value, or take it as given.
      statistic: the image statistic that `lower` reads, if any: a key of STATISTICS.
      square: it needs height = width.
      keeps_label: the class stays what it was.
    """

    name: str
    summary: str
    primitive: str
    reference: str
    sample: Callable[[tf.Tensor, tf.Tensor, Mapping[str, Any]], Draws]
    lower: Callable[[Draws, Mapping[str, Any], Size, tone.Statistics], Lowered]
    params: tuple[Param, ...] = ()
    identity: float | None = None
    full: float = 1.0
    uniforms: int = 0
    random_strength: bool = True
    statistic: str | None = None
    square: bool = False
    keeps_label: bool = True

    def strength(self, level: tf.Tensor) -> tf.Tensor:
        """Returns the strength, in the first parameter's unit, of levels 0..1: linear from `identity` to `full`."""
        if self.identity is None:
            return tf.ones_like(level)
        return self.identity + level * (self.full - self.identity)

    def defaults(self) -> dict[str, Any]:
        """Returns the options where a spec says nothing."""
        return {param.name: param.default for param in self.params}

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images: tf.Tensor, level: tf.Tensor, *, seed: tf.Tensor, **options: Any) -> tf.Tensor:
        """Applies the op to every image of a batch.

        Args:
          images: float32 [B, H, W, 3], grey levels 0..255; rounded to whole levels first, as every op works on those.
          level: float32 [B], 0 (nothing happens) to 1 (full strength).
          seed: int64 [B], what each image's random parameters (a sign, a position) are drawn from.
          **options: the spec's parameters other than the strength.

        Returns:
          float32 [B, H, W, 3], whole grey levels 0..255.
        """
        packed = pixels.pack(tf.cast(pixels.to_levels(tf.convert_to_tensor(images) + 0.5), tf.uint8))
        level = tf.convert_to_tensor(level, tf.float32)
        chosen = {**self.defaults(), **options}
        draws = self.sample(self.strength(level), rng.uniform(seed, max(self.uniforms, 1)), chosen)
        return pixels.unpack(self.apply(packed, level > 0, draws, chosen), tf.float32)

    @tf.autograph.experimental.do_not_convert
    def apply(self, packed: tf.Tensor, active: tf.Tensor, draws: Draws, options: Mapping[str, Any]) -> tf.Tensor:
        """Applies given draws to the active samples of packed images int32 [B, H, W]."""
        size = (packed.shape[1], packed.shape[2])
        self.check_size(size)
        wanted = {self.statistic: active} if self.statistic else {}
        lowered = self.lower(draws, options, size, measure(packed, wanted))
        return run(packed, active, lowered, self.style(options))

    def check_size(self, size: Size) -> None:
        """Raises ValueError where the op cannot take images of (height, width)."""
        if self.square and size[0] != size[1]:
            raise ValueError(f"{self.name} expected square images, received {size[0]}x{size[1]}")

    def style(self, options: Mapping[str, Any]) -> Style | None:
        """Returns those options that the primitive takes as they are, the same for all images.

        None where it takes none, or where they do not matter (a flip samples neither between pixels nor outside).
        """
        kind = STYLES.get(self.primitive)
        if kind is None or not set(kind._fields) <= set(options):
            return None
        return kind(*(options[key] for key in kind._fields))


def run(packed: tf.Tensor, active: tf.Tensor, lowered: Lowered, style: Style | None = None) -> tf.Tensor:
    """Applies one primitive to the active samples (bool [B]) of packed images; without style, in its usual one."""
    def compute(chunk: tf.Tensor, *fields: tf.Tensor) -> tf.Tensor:
        styled = () if style is None else (style,)
        return APPLY[type(lowered)](chunk, type(lowered)(*fields), *styled)

    with tf.name_scope(type(lowered).__name__.lower()):  # visible in a profiler's trace and in the program's text
        inputs = [packed, *(_per_sample(field, packed) for field in lowered)]
        return pixels.update_where(packed, active, compute, inputs)


def _per_sample(field: tf.Tensor, packed: tf.Tensor) -> tf.Tensor:
    """Repeats a row that all samples share ([1, ...]) for each of them."""
    if field.shape[0] != 1 or packed.shape[0] == 1:
        return field
    return tf.repeat(field, tf.shape(packed)[0] if packed.shape[0] is None else packed.shape[0], axis=0)


def measure(packed: tf.Tensor, wanted: Mapping[str, tf.Tensor]) -> tone.Statistics:
    """Measures statistics of packed images, each only where wanted.

    Args:
      packed: int32 [B, H, W].
      wanted: for each needed statistic, bool [B]: the samples that need it.
    """
    batch = packed.shape[0] if packed.shape[0] is not None else tf.shape(packed)[0]
    fields = unmeasured()._asdict()
    for name, on in wanted.items():
        with tf.name_scope(name):
            rows = tf.zeros([batch, *fields[name].shape[1:]], tf.int32)
            fields[name] = pixels.update_where(rows, on, STATISTICS[name], (packed,))
    return tone.Statistics(**fields)


def unmeasured() -> tone.Statistics:
    """Returns statistics that nothing reads: rows that broadcast cost nothing."""
    return tone.Statistics(tf.zeros([1], tf.int32), tf.zeros([1, 3, 2], tf.int32), tf.zeros([1, 3, 256], tf.int32))


REGISTRY: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds an op; its name must be new, and its strength the first parameter."""
    if op.name in REGISTRY:
        raise ValueError(f"op '{op.name}' is registered twice")
    if op.identity is not None and (not op.params or op.params[0].kind not in (int, float)):
        raise ValueError(f"op '{op.name}' has a strength but its first parameter is no number")
    REGISTRY[op.name] = op
    return op
