"""Mixing the images of a batch in pairs, and their labels with them: `mixup`, `cutmix`, and `oneof` of such.

    mixer = augment.parse_mix("oneof(mixup(0.2), cutmix(1.0))")
    images, labels = mixer(images, labels, sample_ids, weights, epoch=0, seed=0)

It comes after the policy, on its result. Which op a sample draws and how strongly depends on (seed, epoch, sample id)
alone, as in a policy; whom it is mixed with depends also on who else is in the batch (of a replica). Drawing and
applying are apart, as in a policy. However many ops a spec names, the images are read once: a gather of the partners
and a blend.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from bloodcell import spec
from bloodcell.augment import beta, build, plan, rng
from bloodcell.errors import InputError, did_you_mean
from bloodcell.spec import Chain, Param, Term

Size = tuple[int, int]
_STREAM = 0x6D6978  # hashed into a sample's key, so that nothing here is correlated with what its policy drew


class Draws(NamedTuple):
    """What happens to each sample of a batch.

    partner: int32 [B], the row it is mixed with.
    share: float32 [B], 0..1, the partner's weight in the blend outside the box (1 - lambda of `mixup`).
    box: int32 [B, 4], top, bottom, left and right in pixels; inside it the partner shows. Empty where top = bottom.
    """

    partner: tf.Tensor
    share: tf.Tensor
    box: tf.Tensor

    def only(self, active: tf.Tensor) -> "Draws":
        """Returns draws that leave the samples which are not active (bool [B]) as they are; others may meet them."""
        return Draws(self.partner, tf.where(active, self.share, 0.0), tf.where(active[:, tf.newaxis], self.box, 0))


@dataclasses.dataclass(frozen=True)
class MixOp:
    """A way of mixing two images.

    Attributes:
      name: as written in a spec.
      summary: what it does, for people.
      params: what a spec may say.
      uniforms: how many uniforms `sample` uses.
      sample: (uniforms [B, uniforms], alpha, (height, width)) -> share [B] or None, box [B, 4] or None; None for what
        the op never does.
    """

    name: str
    summary: str
    params: tuple[Param, ...]
    uniforms: int
    sample: Callable[[tf.Tensor, float, Size], tuple[tf.Tensor | None, tf.Tensor | None]]


def _mixup(u: tf.Tensor, alpha: float, size: Size) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    del size
    return 1.0 - beta.quantile(u[:, 0], alpha, alpha), None


def _cutmix(u: tf.Tensor, alpha: float, size: Size) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    side = tf.sqrt(1.0 - beta.quantile(u[:, 0], alpha, alpha))
    edges = []
    for axis, length in enumerate(size):
        centre = rng.index(u[:, 1 + axis], length)
        half = tf.cast(0.5 * side * length, tf.int32)
        edges += [tf.maximum(centre - half, 0), tf.minimum(centre + half, length)]
    return None, tf.stack(edges, axis=1)


def _alpha(default: float) -> tuple[Param, ...]:
    return (Param("alpha", float, default, 0.01, 32.0),)


MIXES: dict[str, MixOp] = {op.name: op for op in (
    MixOp("mixup", "Blends two images: lambda of one, 1 - lambda of the other, lambda ~ Beta(alpha, alpha).",
          _alpha(0.2), 1, _mixup),  # Zhang et al. 2018, arXiv 1710.09412
    MixOp("cutmix",
          "Pastes a box of another image, of area 1 - lambda, lambda ~ Beta(alpha, alpha), cut at the border.",
          _alpha(1.0), 3, _cutmix),  # Yun et al. 2019, arXiv 1905.04899
)}


@dataclasses.dataclass(frozen=True)
class _Member:
    """One op at one place of a spec. site: the first of its uniforms."""

    op: MixOp
    alpha: float
    gates: tuple[plan.Gate, ...]
    site: int


class Mixer:
    """A parsed spec; see `augment.parse_mix`."""

    def __init__(self, chain: Chain, *, what: str = "mix") -> None:
        self._chain = chain
        self._what = what
        self._uniforms = 1  # the first one orders the batch
        self._members: list[_Member] = []
        self._add(chain, ())

    def __str__(self) -> str:
        return str(self._chain)

    def __repr__(self) -> str:
        return f"augment.parse_mix({str(self)!r})"

    @property
    def identity(self) -> bool:
        """Whether nothing is ever mixed: then there is nothing to draw or to apply either."""
        return not self._members

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images: tf.Tensor, labels: tf.Tensor, sample_ids: tf.Tensor, weights: tf.Tensor, *,
                 epoch: tf.Tensor | int, seed: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch. Pure and compilable, as a policy is.

        Args:
          images: float [B, H, W, 3], of any range.
          labels: float32 [B, C], a distribution for each image: one-hot, or soft already.
          sample_ids: int64 [B].
          weights: float32 [B]; rows of weight 0 fill the batch: they stay as they are, and nothing of them gets
            into other rows.
          epoch: int64 scalar.
          seed: int64 scalar.

        Returns:
          Images of the same dtype, not rounded to whole levels, and labels: mixed in the same proportion.
        """
        if self.identity:
            return images, labels
        draws = self.draw(sample_ids, weights, (images.shape[1], images.shape[2]), epoch=epoch, seed=seed)
        return self.mix_images(images, draws), self.mix_labels(labels, draws, (images.shape[1], images.shape[2]))

    @tf.autograph.experimental.do_not_convert
    def draw(self, sample_ids: tf.Tensor, weights: tf.Tensor, size: Size, *, epoch: tf.Tensor | int,
             seed: tf.Tensor | int) -> Draws:
        """Draws partner and parameters of every sample; arguments as in a call, and the images' (height, width).

        The rows of weight above 0 stand in a ring, in an order drawn for (seed, epoch) from their ids; each one's
        partner is the next. So a sample never meets itself, unless it is alone, and the order of the rows, and whatever
        fills the batch, change nothing.
        """
        keys = rng.sample_keys(tf.cast(sample_ids, tf.int64), epoch=epoch, seed=seed)
        u = rng.uniform(rng.sample_keys(keys, epoch=0, seed=_STREAM), self._uniforms)
        real = weights > 0
        share, box = tf.zeros_like(u[:, 0]), tf.zeros_like(u[:, :1], tf.int32) * tf.zeros([1, 4], tf.int32)
        for member in self._members:
            on = plan.all_hold(member.gates, u) & real
            own = member.op.sample(u[:, member.site:member.site + member.op.uniforms], member.alpha, size)
            share = share if own[0] is None else tf.where(on, own[0], share)
            box = box if own[1] is None else tf.where(on[:, tf.newaxis], own[1], box)
        return Draws(_next_in_ring(u[:, 0], real), share, box)

    @tf.autograph.experimental.do_not_convert
    def mix_images(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Applies draws to images [B, H, W, 3]; the blend is computed in float32."""
        partner = tf.gather(images, draws.partner)
        mixed = images
        if any(member.op is MIXES["mixup"] for member in self._members):
            share = draws.share[:, tf.newaxis, tf.newaxis, tf.newaxis]
            blend = (1.0 - share) * tf.cast(images, tf.float32) + share * tf.cast(partner, tf.float32)
            mixed = tf.cast(blend, images.dtype)
        if any(member.op is MIXES["cutmix"] for member in self._members):
            top, bottom, left, right = (draws.box[:, edge, tf.newaxis] for edge in range(4))
            row, column = (tf.range(length, dtype=tf.int32) for length in images.shape[1:3])
            rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
            inside = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis, :, tf.newaxis]
            mixed = tf.where(inside, partner, mixed)
        return mixed

    @tf.autograph.experimental.do_not_convert
    def mix_labels(self, labels: tf.Tensor, draws: Draws, size: Size) -> tf.Tensor:
        """Applies draws, made for images of (height, width), to labels float32 [B, C].

        The partner's weight is its share of the image: 1 - lambda of a blend, and the box's area after the border has
        cut it, over the image's area.
        """
        top, bottom, left, right = (draws.box[:, edge] for edge in range(4))
        covered = tf.cast((bottom - top) * (right - left), tf.float32) / float(size[0] * size[1])
        weight = (covered + (1.0 - covered) * draws.share)[:, tf.newaxis]
        return (1.0 - weight) * labels + weight * tf.gather(labels, draws.partner)

    def _add(self, chain: Chain, gates: tuple[plan.Gate, ...]) -> None:
        if len(chain.terms) > 1:
            raise InputError(f"{self._what}: expected one op or oneof(...), since an image is mixed at most once, "
                             f"received '{chain}', try oneof({', '.join(str(term) for term in chain.terms)})")
        for term in chain.terms:
            self._add_term(term, gates)

    def _add_term(self, term: Term, gates: tuple[plan.Gate, ...]) -> None:
        if term.probability < 1.0:
            gates = (*gates, plan.Chance(self._site(), term.probability))
        if term.name == "identity":
            spec.bind(term, (), what=self._what)
        elif term.name == "oneof":
            chains = [arg for arg in term.args if isinstance(arg, Chain)]
            if term.kwargs or not chains or len(chains) != len(term.args):
                raise InputError(f"{self._what}: oneof expected ops, as in oneof(mixup(0.2), cutmix(1.0)), "
                                 f"received '{spec.shorten(str(term))}'")
            site = self._site()
            for choice, each in enumerate(chains):
                self._add(each, (*gates, plan.Choice(site, len(chains), choice)))
        elif term.name in MIXES:
            op = MIXES[term.name]
            alpha = spec.bind(term, op.params, what=self._what)["alpha"]
            self._members.append(_Member(op, alpha, gates, self._site(op.uniforms)))
        elif term.name in build.names():
            raise InputError(f"{self._what}: {term.name} belongs in --augment, since it works on single images; "
                             f"here: {', '.join(MIXES)}, oneof, identity")
        else:
            raise InputError(f"{self._what}: unknown op '{term.name}'; "
                             f"{did_you_mean(term.name, (*MIXES, 'oneof', 'identity'))}")

    def _site(self, count: int = 1) -> int:
        self._uniforms += count
        return self._uniforms - count


def _next_in_ring(u: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B]: for each real row the one that follows it in the order of `u`; for the others themselves."""
    count = tf.shape(u)[0]
    place = tf.range(count, dtype=tf.int32)
    # Rows in the low bits: no two keys are equal, so every sorting algorithm gives the same order.
    bits = tf.cast(u * 2.0**24, tf.int64) + tf.where(real, tf.constant(0, tf.int64), tf.constant(2**25, tf.int64))
    order = tf.sort(bits * 2**32 + tf.cast(place, tf.int64))
    order = tf.cast(tf.bitwise.bitwise_and(order, tf.constant(2**32 - 1, tf.int64)), tf.int32)
    last = tf.reduce_sum(tf.cast(real, tf.int32)) - 1
    after = tf.where(place < last, place + 1, tf.where(place == last, 0, place))
    return tf.scatter_nd(order[:, tf.newaxis], tf.gather(order, after), count[tf.newaxis])


def refuse_in_policy(chain: Chain, *, what: str) -> None:
    """Raises InputError where a policy of single images holds an op that mixes a batch."""
    for term in chain.terms:
        if term.name in MIXES:
            raise InputError(f"{what}: {term.name} belongs in --mix, since it mixes the images of a batch, "
                             f"as in --mix=\"{term}\"")
        for value in (*term.args, *(value for _, value in term.kwargs)):
            if isinstance(value, Chain):
                refuse_in_policy(value, what=what)
