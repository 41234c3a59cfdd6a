"""A policy's plan: what is drawn for each sample, and in which order primitives run.

A plan is a list of stages. A `Slot` is one primitive and the ops of the policy that may need it. A `Repeat` is a plan
that runs n times in one compiled loop (`randaugment`'s layers). A `Mixture` runs a plan over several copies of each
image and blends them (`augmix`). What a sample does not need, costs it nothing: every stage works on the samples that
drew it.

What belongs here: stages, drawing and applying. How a spec becomes a plan is `build`'s business.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from bloodcell.augment import beta, entry, pixels, rng
from bloodcell.augment.entry import Op
from bloodcell.augment.primitives import warp
from bloodcell.augment.primitives.tone import Statistics

Draws = dict[str, entry.Draws]


class Gate(Protocol):
    """A condition of a sample."""

    def holds(self, u: tf.Tensor) -> tf.Tensor:
        """Returns bool [B] from all uniforms [B, total]."""


@dataclasses.dataclass(frozen=True)
class Chance:
    """Holds with a probability."""

    site: int
    probability: float

    def holds(self, u: tf.Tensor) -> tf.Tensor:
        """See `Gate`."""
        return u[:, self.site] < self.probability


@dataclasses.dataclass(frozen=True)
class Choice:
    """Holds where `choice` was drawn out of `count`, all equally likely."""

    site: int
    count: int
    choice: int

    def holds(self, u: tf.Tensor) -> tf.Tensor:
        """See `Gate`."""
        return rng.index(u[:, self.site], self.count) == self.choice


@dataclasses.dataclass(frozen=True)
class Among:
    """Holds where the uniform at `place` is among the `wanted` least of the `count` that begin at `site`."""

    site: int
    count: int
    wanted: int
    place: int

    def holds(self, u: tf.Tensor) -> tf.Tensor:
        """See `Gate`."""
        drawn = u[:, self.site:self.site + self.count]
        mine = drawn[:, self.place, tf.newaxis]
        before = (drawn < mine) | ((drawn == mine) & (tf.range(self.count) < self.place))
        return tf.reduce_sum(tf.cast(before, tf.int32), axis=1) < self.wanted


def all_hold(gates: Sequence[Gate], u: tf.Tensor) -> tf.Tensor:
    """Returns bool [B]."""
    on = tf.ones_like(u[:, 0], dtype=tf.bool)
    for gate in gates:
        on &= gate.holds(u)
    return on


@dataclasses.dataclass(frozen=True)
class Member:
    """One op at one place of a policy.

    path: its place, the key of its draws. site: the first of its uniforms. strength: from all uniforms to [B].
    """

    path: str
    op: Op
    options: Mapping[str, Any]
    gates: tuple[Gate, ...]
    site: int
    strength: Callable[[tf.Tensor], tf.Tensor]

    def draw(self, u: tf.Tensor) -> entry.Draws:
        """Returns the op's named parameters and `on` (bool [B]: this sample gets the op) from uniforms [B, total]."""
        own = u[:, self.site:self.site + max(self.op.uniforms, 1)]
        return {"on": all_hold(self.gates, u), **self.op.sample(self.strength(u), own, self.options)}


@dataclasses.dataclass(frozen=True)
class Slot:
    """One primitive. `groups` apply in order, which only warps may need; members of a group exclude each other.

    style: how the primitive works for all samples alike; None where that does not matter.
    """

    primitive: str
    groups: tuple[tuple[Member, ...], ...]
    style: Any = None

    def members(self) -> Iterator[Member]:
        """Yields every op of the slot."""
        for group in self.groups:
            yield from group


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Stages that run `count` times, with draws of their own each time. `uniforms` from `site` for each pass."""

    count: int
    site: int
    uniforms: int
    stages: tuple["Stage", ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Chains of layers over copies of the image, blended with it (AugMix).

    path: the key of its own draws: `on` (bool [B]), `weights` (float32 [B, width], of the chains), `share` (float32
      [B], of their blend against the image) and `depth` (int32 [B, width], layers of each chain).
    width: chains. depth: layers of a chain; 0 draws it from 1..layers. alpha: of the Dirichlet and Beta draws.
    site: its own uniforms begin here, 2 * width of them. layers: the layers of a chain, `layers.count` at most; those
      of the chains follow one another.
    """

    path: str
    gates: tuple[Gate, ...]
    width: int
    depth: int
    alpha: float
    site: int
    layers: Repeat

    def own_uniforms(self) -> int:
        """Returns how many uniforms the blend itself takes."""
        return 2 * self.width


Stage = Slot | Repeat | Mixture


def slots(stages: Sequence[Stage]) -> Iterator[Slot]:
    """Yields every slot of a plan, in the order in which they run."""
    for stage in stages:
        if isinstance(stage, Slot):
            yield stage
        else:
            yield from slots(stage.layers.stages if isinstance(stage, Mixture) else stage.stages)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def draw(stages: Sequence[Stage], u: tf.Tensor) -> Draws:
    """Draws for every op of a plan from uniforms [B, total]; see `Policy.draw`."""
    draws: Draws = {}
    for stage in stages:
        if isinstance(stage, Slot):
            for member in stage.members():
                draws[member.path] = member.draw(u)
        elif isinstance(stage, Repeat):
            draws |= {path: {name: value[:, 0] for name, value in each.items()}
                      for path, each in _draw_passes(stage, u).items()}
        else:
            draws |= _draw_mixture(stage, u)
    return draws


def only(draws: Draws, active: tf.Tensor) -> Draws:
    """Returns draws that give no op to the samples that are not active (bool [B], the last axis of every `on`)."""
    return {path: {**each, "on": each["on"] & active} for path, each in draws.items()}


def _draw_passes(stage: Repeat, u: tf.Tensor, copies: int = 1) -> Draws:
    """Draws each pass of each copy from uniforms of its own: those of a copy's passes follow one another.

    All passes are drawn as one batch, so that the program does not grow with their number.

    Returns:
      Tensors with leading axes [count, copies, B].
    """
    end = stage.site + copies * stage.count * stage.uniforms
    own = tf.reshape(u[:, stage.site:end], [-1, copies, stage.count, stage.uniforms])
    own = tf.reshape(tf.transpose(own, [2, 1, 0, 3]), [-1, stage.uniforms])
    # Inside, sites count from `stage.site`; what lies before it (an outer gate) is the same for every pass.
    outer = tf.tile(u[:, :stage.site], [stage.count * copies, 1])
    drawn = draw(stage.stages, tf.concat([outer, own], axis=1))
    return {path: {name: tf.reshape(value, [stage.count, copies, -1, *value.shape[1:]])
                   for name, value in each.items()} for path, each in drawn.items()}


def _draw_mixture(stage: Mixture, u: tf.Tensor) -> Draws:
    width, own = stage.width, u[:, stage.site:stage.site + stage.own_uniforms()]
    if stage.depth:
        depth = tf.fill(tf.shape(own[:, :width]), stage.depth)
    else:
        depth = 1 + rng.index(own[:, width:], stage.layers.count)
    on = all_hold(stage.gates, u)
    blend = {"on": on, "weights": beta.dirichlet(own[:, 1:], stage.alpha, width),
             "share": beta.quantile(own[:, 0], stage.alpha, stage.alpha), "depth": depth}
    layer = tf.range(stage.layers.count)[:, tf.newaxis, tf.newaxis]
    used = on & (layer < tf.transpose(depth))
    return {stage.path: blend, **{path: {**each, "on": each["on"] & used}
                                  for path, each in _draw_passes(stage.layers, u, width).items()}}


# ---------------------------------------------------------------------------------------------------------------------
# Applying
# ---------------------------------------------------------------------------------------------------------------------


def apply(stages: Sequence[Stage], packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Applies draws to packed images int32 [B, H, W]."""
    for stage in stages:
        if isinstance(stage, Slot):
            packed = _apply_slot(stage, packed, draws)
        elif isinstance(stage, Repeat):
            packed = _apply_repeat(stage, packed, draws)
        else:
            packed = _apply_mixture(stage, packed, draws)
    return packed


def _apply_repeat(stage: Repeat, packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    own = {member.path: draws[member.path] for slot in slots(stage.stages) for member in slot.members()}

    def one_pass(number: tf.Tensor, packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_pass = {path: {name: tf.gather(value, number) for name, value in each.items()} for path, each in own.items()}
        return number + 1, apply(stage.stages, packed, of_pass)

    _, packed = tf.while_loop(lambda number, _: number < stage.count, one_pass, (tf.constant(0), packed))
    return packed


def _apply_mixture(stage: Mixture, packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Runs the chains as one batch of copies, [B * width], so that the layers are one program for all of them."""
    own = draws[stage.path]
    of_copies = {}
    for slot in slots(stage.layers.stages):
        for member in slot.members():
            of_copies[member.path] = {  # [count, width, B, ...]; here the copies of a sample follow one another
                name: tf.reshape(tf.transpose(value, [0, 2, 1, *range(3, value.shape.rank)]),
                                 [stage.layers.count, -1, *value.shape[3:]])
                for name, value in draws[member.path].items()}
    chains = _apply_repeat(stage.layers, tf.repeat(packed, stage.width, axis=0), of_copies)
    chains = tf.reshape(chains, [-1, stage.width, *packed.shape[1:]])

    def blended(image: tf.Tensor, share: tf.Tensor, weights: tf.Tensor, chains: tf.Tensor) -> tf.Tensor:
        parts = []
        for channel in zip(pixels.channels(image), pixels.channels(chains), strict=True):
            level, others = (tf.cast(each, tf.float32) for each in channel)
            mixed = sum(weights[:, number, tf.newaxis, tf.newaxis] * others[:, number] for number in range(stage.width))
            parts.append(pixels.to_levels(level + share[:, tf.newaxis, tf.newaxis] * (mixed - level) + 0.5))
        return pixels.join(parts)

    with tf.name_scope("blend"):
        return pixels.update_where(packed, own["on"], blended, [packed, own["share"], own["weights"], chains])


def _apply_slot(slot: Slot, packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    size = (packed.shape[1], packed.shape[2])
    wanted: dict[str, tf.Tensor] = {}
    for member in slot.members():
        member.op.check_size(size)
        if member.op.statistic:
            on = draws[member.path]["on"]
            wanted[member.op.statistic] = wanted[member.op.statistic] | on if member.op.statistic in wanted else on
    statistics = entry.measure(packed, wanted)

    active, lowered = lower_groups(slot.groups, draws, size, statistics)
    return entry.run(packed, active, lowered, slot.style)


def lower_groups(groups: Sequence[Sequence[Member]], draws: Mapping[str, entry.Draws], size: entry.Size,
                 statistics: Statistics) -> tuple[tf.Tensor, Any]:
    """Returns which samples drew an op of a slot (bool [B]), and its primitive's parameters; warps are multiplied."""
    active, lowered = lower_group(groups[0], draws, size, statistics)
    for group in groups[1:]:
        then_on, then = lower_group(group, draws, size, statistics)
        lowered = _compose(lowered, active, then, then_on)
        active |= then_on
    return active, lowered


def lower_group(group: Sequence[Member], draws: Mapping[str, entry.Draws], size: entry.Size,
                statistics: Statistics) -> tuple[tf.Tensor, Any]:
    """Returns which samples drew an op of the group (bool [B]), and the parameters of the one that each drew."""
    active, lowered = None, None
    for member in group:
        on = draws[member.path]["on"]
        own = member.op.lower(draws[member.path], member.options, size, statistics)
        lowered = own if lowered is None else _select(on, own, lowered)
        active = on if active is None else active | on
    return active, lowered


def _select(on: tf.Tensor, then: Any, other: Any) -> Any:
    """Takes `then` where on (bool [B]), field by field; fields may have one row that all samples share."""
    def choose(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(on, [-1] + [1] * (a.shape.rank - 1)), a, b)
    return type(then)(*map(choose, then, other))


def _compose(first: warp.Warp, first_on: tf.Tensor, then: warp.Warp, then_on: tf.Tensor) -> warp.Warp:
    """Composes two warps, either of which a sample may lack."""
    both = warp.Warp(warp.compose(first.matrix, then.matrix))
    return _select(first_on & then_on, both, _select(then_on, then, first))
