"""Policies: a spec becomes a plan, a plan draws parameters for each sample and applies them.

Drawing and applying are apart: `draw` returns every parameter by the place of its op in the policy, and `apply` takes
such a dictionary, from `draw` or from anybody. The plan is made by `build` and runs in `plan`. All of it is graph code
as it stands: autograph, which a user's `tf.function` or map brings along, would look for seconds and convert nothing.
"""

import warnings

import tensorflow as tf

from bloodcell.augment import pixels, plan, rng
from bloodcell.augment.build import Builder
from bloodcell.augment.native import call as native_call
from bloodcell.augment.native.program import Unsupported
from bloodcell.augment.plan import Draws
from bloodcell.spec import Chain


class Policy:
    """A parsed augmentation policy; see `augment.parse`."""

    def __init__(self, chain: Chain, *, what: str = "augment", backend: str = "xla") -> None:
        builder = Builder(what)
        self._backend = backend
        self._chain = chain
        self._stages = builder.chain(chain, (), "")
        self._uniforms = builder.sites

    def __str__(self) -> str:
        return str(self._chain)

    def __repr__(self) -> str:
        return f"augment.parse({str(self)!r})"

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images: tf.Tensor, sample_ids: tf.Tensor, *, epoch: tf.Tensor | int, seed: tf.Tensor | int,
                 dtype: str = "float32", active: tf.Tensor | None = None) -> tf.Tensor:
        """Augments a batch. Pure and compilable: call it eagerly, in a `tf.function` (`jit_compile=True`) or in a map.

        Args:
          images: uint8 [B, H, W, 3].
          sample_ids: int64 [B]; with epoch and seed, all that a sample's parameters depend on.
          epoch: int64 scalar.
          seed: int64 scalar.
          dtype: of the result; a cast is the last thing that happens.
          active: bool [B]; the other images come out as they are, and cost nothing. None: all.

        Returns:
          [B, H, W, 3] of `dtype`, whole grey levels 0..255.
        """
        images = tf.convert_to_tensor(images)
        if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected images as uint8 [B, H, W, 3], received {images.dtype.name} {images.shape}")
        if not self._stages:
            return tf.cast(images, tf.as_dtype(dtype))
        draws = self.draw(sample_ids, epoch=epoch, seed=seed)
        return self.apply(images, draws if active is None else plan.only(draws, active), dtype=dtype)

    @tf.autograph.experimental.do_not_convert
    def draw(self, sample_ids: tf.Tensor, *, epoch: tf.Tensor | int, seed: tf.Tensor | int) -> Draws:
        """Draws every parameter of every sample.

        Returns:
          For each op of the policy, by its place (`"2.rotate"`), its named parameters with a leading axis [B], and
          `on` (bool [B]): whether the sample gets it. Inside `randaugment` and `trivialaugment` every tensor has one
          more leading axis, the layer; inside `augmix` two more, layer and chain, and the blend itself has an entry
          (see `plan.Mixture`).
        """
        if not self._uniforms:
            return {}
        keys = rng.sample_keys(tf.cast(sample_ids, tf.int64), epoch=epoch, seed=seed)
        return plan.draw(self._stages, rng.uniform(keys, self._uniforms))

    @tf.autograph.experimental.do_not_convert
    def apply(self, images: tf.Tensor, draws: Draws, *, dtype: str = "float32") -> tf.Tensor:
        """Applies draws to uint8 images [B, H, W, 3]; returns grey levels in `dtype`.

        The native op needs shapes that are known when the graph is made; where they are not, or where it has no such
        step, XLA applies the draws, which gives the same within one grey level.
        """
        if self._backend == "native":
            try:
                return native_call.apply(self._stages, images, draws, tf.as_dtype(dtype))
            except Unsupported as why:
                warnings.warn(f"{self}: {why}; XLA augments", stacklevel=2)
        packed = plan.apply(self._stages, pixels.pack(images), draws)
        return pixels.unpack(packed, tf.as_dtype(dtype))

    def primitives(self) -> tuple[str, ...]:
        """Returns the primitives in the order in which they run; what is not here is not in the compiled program."""
        return tuple(slot.primitive for slot in plan.slots(self._stages))
