"""Policies: a spec becomes a plan, a plan draws parameters for each sample and applies them.

The plan is a list of stages. A `Slot` is one primitive and the ops of the policy that may need it; a `Repeat` is a
plan that runs n times in one compiled loop (`randaugment`'s layers). Ops that exclude each other (`oneof`) share
slots, so a primitive runs once for them, over the samples that drew one. Neighbouring warps of a chain become one
slot too: their maps are multiplied and the image is sampled once, which blurs less and fills less.

Drawing and applying are apart: `draw` returns every parameter by the place of its op in the policy, and `apply` takes
such a dictionary, from `draw` or from anybody.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from bloodcell import spec
from bloodcell.augment import entry, pixels, rng
from bloodcell.augment.entry import Op
from bloodcell.augment.primitives import warp
from bloodcell.augment.primitives.tone import Statistics
from bloodcell.errors import InputError, did_you_mean
from bloodcell.spec import Chain, Param, Term


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition of a sample: `choice` of `count` drawn at `site`, or, with count 0, a uniform below `probability`."""

    site: int
    count: int = 0
    choice: int = 0
    probability: float = 1.0

    def holds(self, u: tf.Tensor) -> tf.Tensor:
        """Returns bool [B] from all uniforms [B, total]."""
        drawn = u[:, self.site]
        return rng.index(drawn, self.count) == self.choice if self.count else drawn < self.probability


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
        on = tf.ones_like(u[:, 0], dtype=tf.bool)
        for gate in self.gates:
            on &= gate.holds(u)
        return {"on": on, **self.op.sample(self.strength(u), own, self.options)}


@dataclasses.dataclass(frozen=True)
class Slot:
    """One primitive. `groups` apply in order, which only warps may need; members of a group exclude each other.

    style: how a warp samples; None where it does not matter (and for other primitives).
    """

    primitive: str
    groups: tuple[tuple[Member, ...], ...]
    style: warp.Style | None = None

    def members(self) -> Iterator[Member]:
        """Yields every op of the slot."""
        for group in self.groups:
            yield from group


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Stages that run `count` times, with draws of their own each time. `width` uniforms from `site` for each pass."""

    count: int
    site: int
    width: int
    stages: tuple["Slot | Repeat", ...]


Stage = Slot | Repeat
Draws = dict[str, entry.Draws]


class Policy:
    """A parsed augmentation policy; see `augment.parse`."""

    def __init__(self, chain: Chain, *, what: str = "augment") -> None:
        builder = _Builder(what)
        self._chain = chain
        self._stages = builder.chain(chain, (), "")
        self._uniforms = builder.sites

    def __str__(self) -> str:
        return str(self._chain)

    def __repr__(self) -> str:
        return f"augment.parse({str(self)!r})"

    def __call__(self, images: tf.Tensor, sample_ids: tf.Tensor, *, epoch: tf.Tensor | int, seed: tf.Tensor | int,
                 dtype: str = "float32") -> tf.Tensor:
        """Augments a batch. Pure and compilable: call it eagerly, in a `tf.function` (`jit_compile=True`) or in a map.

        Args:
          images: uint8 [B, H, W, 3].
          sample_ids: int64 [B]; with epoch and seed, all that a sample's parameters depend on.
          epoch: int64 scalar.
          seed: int64 scalar.
          dtype: of the result; a cast is the last thing that happens.

        Returns:
          [B, H, W, 3] of `dtype`, whole grey levels 0..255.
        """
        images = tf.convert_to_tensor(images)
        if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected images as uint8 [B, H, W, 3], received {images.dtype.name} {images.shape}")
        if not self._stages:
            return tf.cast(images, tf.as_dtype(dtype))
        return self.apply(images, self.draw(sample_ids, epoch=epoch, seed=seed), dtype=dtype)

    def draw(self, sample_ids: tf.Tensor, *, epoch: tf.Tensor | int, seed: tf.Tensor | int) -> Draws:
        """Draws every parameter of every sample.

        Returns:
          For each op of the policy, by its place (`"2.rotate"`), its named parameters with a leading axis [B], and
          `on` (bool [B]): whether the sample gets it. Inside `randaugment` every tensor has one more leading axis, the
          layer.
        """
        if not self._uniforms:
            return {}
        keys = rng.sample_keys(tf.cast(sample_ids, tf.int64), epoch=epoch, seed=seed)
        return _draw(self._stages, rng.uniform(keys, self._uniforms))

    def apply(self, images: tf.Tensor, draws: Draws, *, dtype: str = "float32") -> tf.Tensor:
        """Applies draws to uint8 images [B, H, W, 3]; returns grey levels in `dtype`."""
        packed = _apply(self._stages, pixels.pack(images), draws)
        return pixels.unpack(packed, tf.as_dtype(dtype))

    def primitives(self) -> tuple[str, ...]:
        """Returns the primitives in the order in which they run; what is not here is not in the compiled program."""
        return tuple(slot.primitive for slot in _slots(self._stages))


def _slots(stages: Sequence[Stage]) -> Iterator[Slot]:
    for stage in stages:
        if isinstance(stage, Slot):
            yield stage
        else:
            yield from _slots(stage.stages)


def _draw(stages: Sequence[Stage], u: tf.Tensor) -> Draws:
    draws: Draws = {}
    for stage in stages:
        if isinstance(stage, Slot):
            for member in stage.members():
                draws[member.path] = member.draw(u)
            continue
        passes = []
        for number in range(stage.count):
            start = stage.site + number * stage.width
            # Inside, sites count from `site`; what lies before it (an outer gate) is the same for every pass.
            passes.append(_draw(stage.stages, tf.concat([u[:, :stage.site], u[:, start:start + stage.width]], axis=1)))
        for path in passes[0]:
            draws[path] = {name: tf.stack([each[path][name] for each in passes]) for name in passes[0][path]}
    return draws


def _apply(stages: Sequence[Stage], packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    for stage in stages:
        packed = _apply_slot(stage, packed, draws) if isinstance(stage, Slot) else _apply_repeat(stage, packed, draws)
    return packed


def _apply_repeat(stage: Repeat, packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    own = {member.path: draws[member.path] for slot in _slots(stage.stages) for member in slot.members()}

    def one_pass(number: tf.Tensor, packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_pass = {path: {name: tf.gather(value, number) for name, value in each.items()} for path, each in own.items()}
        return number + 1, _apply(stage.stages, packed, of_pass)

    _, packed = tf.while_loop(lambda number, _: number < stage.count, one_pass, (tf.constant(0), packed))
    return packed


def _apply_slot(slot: Slot, packed: tf.Tensor, draws: Draws) -> tf.Tensor:
    size = (packed.shape[1], packed.shape[2])
    wanted: dict[str, tf.Tensor] = {}
    for member in slot.members():
        member.op.check_size(size)
        if member.op.statistic:
            on = draws[member.path]["on"]
            wanted[member.op.statistic] = wanted[member.op.statistic] | on if member.op.statistic in wanted else on
    statistics = entry.measure(packed, wanted)

    active, lowered = _lower_group(slot.groups[0], draws, size, statistics)
    for group in slot.groups[1:]:
        then_on, then = _lower_group(group, draws, size, statistics)
        lowered = _compose(lowered, active, then, then_on)
        active |= then_on
    return entry.run(packed, active, lowered, slot.style)


def _lower_group(group: Sequence[Member], draws: Draws, size: entry.Size,
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


# ---------------------------------------------------------------------------------------------------------------------
# From a spec to a plan
# ---------------------------------------------------------------------------------------------------------------------


class _Builder:
    """Turns terms into stages; hands out the sites of uniforms in the order of the spec."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.sites = 0

    def site(self, count: int = 1) -> int:
        self.sites += count
        return self.sites - count

    def chain(self, chain: Chain, gates: tuple[Gate, ...], path: str) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        for position, term in enumerate(chain.terms, start=1):
            for stage in self.term(term, gates, f"{path}{position}.{term.name}"):
                merged = _merge_warps(stages[-1], stage) if stages else None
                if merged is not None:
                    stages[-1] = merged
                else:
                    stages.append(stage)
        return tuple(stages)

    def term(self, term: Term, gates: tuple[Gate, ...], path: str) -> tuple[Stage, ...]:
        if term.probability < 1.0:
            gates = (*gates, Gate(self.site(), probability=term.probability))
        if term.name in COMBINATORS:
            return COMBINATORS[term.name](self, term, gates, path)
        if term.name not in entry.REGISTRY:
            raise InputError(f"{self.what}: unknown op '{term.name}'; {did_you_mean(term.name, names())}")
        op = entry.REGISTRY[term.name]
        options = spec.bind(term, op.params, what=self.what)
        _check(op, options, self.what)
        given = float(options[op.params[0].name]) if op.identity is not None else 1.0
        low = given if op.identity is None or not op.random_strength else op.identity
        site = self.site(1 + op.uniforms)

        def strength(u: tf.Tensor) -> tf.Tensor:
            return low + u[:, site] * (given - low)

        member = Member(path, op, options, gates, site + 1, strength)
        return (Slot(op.primitive, ((member,),), op.style(options)),)

    def identity(self, term: Term, gates: tuple[Gate, ...], path: str) -> tuple[Stage, ...]:
        spec.bind(term, (), what=self.what)
        return ()

    def oneof(self, term: Term, gates: tuple[Gate, ...], path: str) -> tuple[Stage, ...]:
        if term.kwargs or not term.args or not all(isinstance(arg, Chain) for arg in term.args):
            raise InputError(f"{self.what}: oneof expected policies, as in oneof(gridmask, cutout(0.5)), "
                             f"received '{term}'")
        site = self.site()
        policies = [arg for arg in term.args if isinstance(arg, Chain)]
        lanes = [self.chain(policy, (*gates, Gate(site, len(policies), choice)), f"{path}/{choice + 1}/")
                 for choice, policy in enumerate(policies)]
        return _interleave(lanes)

    def randaugment(self, term: Term, gates: tuple[Gate, ...], path: str) -> tuple[Stage, ...]:
        bound = spec.bind(term, (Param("n", int, 2, 1, 16, unit="ops"), Param("m", float, 9.0, 0, 10, unit="of 10"),
                                 Param("std", float, 0.5, 0, 10, unit="of 10")), what=self.what)
        start = self.sites
        choice, magnitude = self.site(), self.site(2)

        def strength_at(ramp: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
            def strength(u: tf.Tensor) -> tf.Tensor:
                noise = rng.normal(u[:, magnitude], u[:, magnitude + 1])
                return ramp(tf.clip_by_value(bound["m"] + bound["std"] * noise, 0.0, 10.0) / 10.0)
            return strength

        lanes: list[tuple[Stage, ...]] = []
        for number, (name, ramp) in enumerate(RANDAUGMENT.items()):
            if name == "identity":
                lanes.append(())
                continue
            op = entry.REGISTRY[name]
            own = (*gates, Gate(choice, len(RANDAUGMENT), number))
            member = Member(f"{path}/{name}", op, op.defaults(), own, self.site(max(op.uniforms, 1)),
                            strength_at(ramp))
            lanes.append((Slot(op.primitive, ((member,),), op.style(member.options)),))
        width = self.sites - start
        self.site(width * (bound["n"] - 1))
        return (Repeat(bound["n"], start, width, _interleave(lanes)),)


COMBINATORS: dict[str, Callable[[_Builder, Term, tuple[Gate, ...], str], tuple[Stage, ...]]] = {
    "identity": _Builder.identity, "oneof": _Builder.oneof, "randaugment": _Builder.randaugment}

# The paper's ops (Cubuk et al. 2020, arXiv 1909.13719) and the strength of each at a magnitude 0..1 of the maximum,
# with timm's ranges; posterize keeps 8 to 4 bits, as torchvision does, so that strength grows with the magnitude.
RANDAUGMENT: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "identity": tf.zeros_like,
    "autocontrast": tf.ones_like,
    "equalize": tf.ones_like,
    "rotate": lambda f: 30.0 * f,
    "solarize": lambda f: 256.0 * (1.0 - f),
    "color": lambda f: 0.9 * f,
    "posterize": lambda f: 8.0 - tf.round(4.0 * f),
    "contrast": lambda f: 0.9 * f,
    "brightness": lambda f: 0.9 * f,
    "sharpness": lambda f: 0.9 * f,
    "shear_x": lambda f: 0.3 * f,
    "shear_y": lambda f: 0.3 * f,
    "translate_x": lambda f: 0.45 * f,
    "translate_y": lambda f: 0.45 * f,
}


def names() -> tuple[str, ...]:
    """Returns every name that a policy may use."""
    return (*entry.REGISTRY, *COMBINATORS)


def _check(op: Op, options: Mapping[str, Any], what: str) -> None:
    """Checks what no single parameter's range can say."""
    for low, high in (("d_min", "d_max"), ("min", "max")):
        if low in options and options[low] > options[high]:
            raise InputError(f"{what}: {op.name} expected {low} <= {high}, "
                             f"received {options[low]:g} and {options[high]:g}")


def _merge_warps(before: Stage, stage: Stage) -> Stage | None:
    """Joins two neighbouring warp slots of a chain that sample alike; None where they are no such pair."""
    if isinstance(before, Slot) and isinstance(stage, Slot) and _alike(before, stage) and stage.primitive == "warp":
        return Slot("warp", (*before.groups, *stage.groups), before.style or stage.style)
    return None


def _interleave(lanes: Sequence[tuple[Stage, ...]]) -> tuple[Stage, ...]:
    """Merges the stages of alternatives, of which each sample takes one lane: equal primitives share a slot."""
    merged: list[Stage] = []
    for lane in lanes:
        place = 0  # a lane's own order must survive
        for stage in lane:
            for at in range(place, len(merged)):
                mine = merged[at]
                if (isinstance(mine, Slot) and isinstance(stage, Slot) and _alike(mine, stage)
                        and len(mine.groups) == len(stage.groups) == 1):
                    group = (*mine.groups[0], *stage.groups[0])
                    merged[at] = Slot(stage.primitive, (group,), mine.style or stage.style)
                    place = at + 1
                    break
            else:
                merged.insert(place, stage)
                place += 1
    return tuple(merged)


def _alike(one: Slot, other: Slot) -> bool:
    return one.primitive == other.primitive and (one.style == other.style or None in (one.style, other.style))
