"""From a spec to a plan.

Ops that exclude each other (`oneof`) share slots, so a primitive runs once for them, over the samples that drew one.
Neighbouring warps of a chain become one slot too: their maps are multiplied and the image is sampled once, which blurs
less and fills less.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from bloodcell import spec
from bloodcell.augment import entry, published, rng
from bloodcell.augment.plan import Among, Chance, Choice, Gate, Member, Mixture, Repeat, Slot, Stage
from bloodcell.errors import InputError, did_you_mean
from bloodcell.spec import Chain, Param, Term

Stages = tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class Combinator:
    """What a policy may hold beside ops.

    Attributes:
      name: as written in a policy.
      summary: what it does, for people.
      reference: what it equals.
      example: a policy that uses it.
      make: (builder, term, gates, path) -> stages.
      params: what a spec may say.
      branches: policies follow the parameters, one or more.
    """

    name: str
    summary: str
    reference: str
    example: str
    make: Callable[["Builder", Term, tuple[Gate, ...], str], Stages]
    params: tuple[Param, ...] = ()
    branches: bool = False

    def split(self, term: Term, what: str) -> tuple[dict[str, Any], list[Chain]]:
        """Returns the values of a term's parameters and its branches; raises InputError."""
        if not self.branches:
            return spec.bind(term, self.params, what=what), []
        count = len(self.params)
        branches = [arg for arg in term.args[count:] if isinstance(arg, Chain)]
        if term.kwargs or not branches or len(branches) != len(term.args) - count:
            raise InputError(f"{what}: {self.name} expected policies, as in {self.example}, "
                             f"received '{spec.shorten(str(term))}'")
        return spec.bind(dataclasses.replace(term, args=term.args[:count]), self.params, what=what), branches


class Builder:
    """Turns terms into stages; hands out the sites of uniforms in the order of the spec."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.sites = 0

    def site(self, count: int = 1) -> int:
        """Reserves `count` uniforms; returns the place of the first."""
        self.sites += count
        return self.sites - count

    def chain(self, chain: Chain, gates: tuple[Gate, ...], path: str) -> Stages:
        """Returns the stages of a chain."""
        return join([self.term(term, gates, f"{path}{position}.{term.name}")
                     for position, term in enumerate(chain.terms, start=1)])

    def term(self, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
        """Returns the stages of one term."""
        if term.probability < 1.0:
            gates = (*gates, Chance(self.site(), term.probability))
        if term.name in COMBINATORS:
            return COMBINATORS[term.name].make(self, term, gates, path)
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

    def layers(self, count: int, table: Mapping[str, published.Ramp], magnitude: Callable[[tf.Tensor], tf.Tensor],
               gates: tuple[Gate, ...], path: str, *, copies: int = 1) -> Repeat:
        """Returns `count` layers that each apply one op of a published table, all of them equally likely.

        Args:
          count: layers.
          table: the ops and their ramps.
          magnitude: from two uniforms, float32 [B, 2], to what the ramps take, [B].
          gates: what must hold for any of it.
          path: of the policy.
          copies: how many times as many uniforms to reserve.
        """
        start = self.sites
        choice, drawn = self.site(), self.site(2)
        # One op a layer and sample: the ops can share what their parameters are drawn from.
        own = self.site(max(entry.REGISTRY[name].uniforms for name in table if name != published.IDENTITY))

        def strength_by(ramp: published.Ramp) -> Callable[[tf.Tensor], tf.Tensor]:
            return lambda u: ramp(magnitude(u[:, drawn:drawn + 2]))

        lanes: list[Stages] = []
        for number, (name, ramp) in enumerate(table.items()):
            if name == published.IDENTITY:
                continue
            op = entry.REGISTRY[name]
            member = Member(f"{path}/{name}", op, op.defaults(), (*gates, Choice(choice, len(table), number)), own,
                            strength_by(ramp))
            lanes.append((Slot(op.primitive, ((member,),), op.style(member.options)),))
        uniforms = self.sites - start
        self.site(uniforms * (count * copies - 1))
        return Repeat(count, start, uniforms, interleave(lanes))


def join(parts: Sequence[Stages]) -> Stages:
    """Returns the stages of plans that follow one another; neighbouring warps that sample alike become one."""
    stages: list[Stage] = []
    for stage in (stage for part in parts for stage in part):
        before = stages[-1] if stages else None
        if (isinstance(before, Slot) and isinstance(stage, Slot) and _alike(before, stage)
                and stage.primitive == "warp"):
            stages[-1] = Slot("warp", (*before.groups, *stage.groups), before.style or stage.style)
        else:
            stages.append(stage)
    return tuple(stages)


def interleave(lanes: Sequence[Stages]) -> Stages:
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


def _check(op: entry.Op, options: Mapping[str, Any], what: str) -> None:
    """Checks what no single parameter's range can say."""
    for low, high in (("d_min", "d_max"), ("min", "max")):
        if low in options and options[low] > options[high]:
            raise InputError(f"{what}: {op.name} expected {low} <= {high}, "
                             f"received {options[low]:g} and {options[high]:g}")


# ---------------------------------------------------------------------------------------------------------------------
# Combinators
# ---------------------------------------------------------------------------------------------------------------------


def _identity(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    COMBINATORS[term.name].split(term, builder.what)
    return ()


def _oneof(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    _, policies = COMBINATORS[term.name].split(term, builder.what)
    site = builder.site()
    return interleave([builder.chain(policy, (*gates, Choice(site, len(policies), place)), f"{path}/{place + 1}/")
                       for place, policy in enumerate(policies)])


def _someof(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    values, policies = COMBINATORS[term.name].split(term, builder.what)
    if values["k"] > len(policies):
        raise InputError(f"{builder.what}: someof(k) expected at most the {len(policies)} policies that follow, "
                         f"received {values['k']}")
    site = builder.site(len(policies))
    return join([builder.chain(policy, (*gates, Among(site, len(policies), values["k"], place)), f"{path}/{place + 1}/")
                 for place, policy in enumerate(policies)])


def _randaugment(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    values, _ = COMBINATORS[term.name].split(term, builder.what)

    def magnitude(u: tf.Tensor) -> tf.Tensor:
        drawn = values["m"] + values["std"] * rng.normal(u[:, 0], u[:, 1])
        return tf.clip_by_value(drawn, 0.0, 10.0) / 10.0

    return (builder.layers(values["n"], published.RANDAUGMENT, magnitude, gates, path),)


def _trivialaugment(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    COMBINATORS[term.name].split(term, builder.what)

    def magnitude(u: tf.Tensor) -> tf.Tensor:
        bins = published.TRIVIALAUGMENT_BINS
        return tf.cast(rng.index(u[:, 0], bins), tf.float32) / (bins - 1.0)

    return (builder.layers(1, published.TRIVIALAUGMENT, magnitude, gates, path),)


def _augmix(builder: Builder, term: Term, gates: tuple[Gate, ...], path: str) -> Stages:
    values, _ = COMBINATORS[term.name].split(term, builder.what)
    width, least = values["width"], published.AUGMIX_LEAST_LEVEL
    if values["depth"] == 0:
        raise InputError(f"{builder.what}: augmix(depth) expected -1 (drawn from 1..{_AUGMIX_LAYERS}) or 1..8, "
                         "received 0")

    def level(u: tf.Tensor) -> tf.Tensor:
        return least + u[:, 0] * (values["severity"] - least)

    depth = max(values["depth"], 0)
    site = builder.site(2 * width)
    layers = builder.layers(depth or _AUGMIX_LAYERS, published.AUGMIX, level, (), path, copies=width)
    return (Mixture(path, gates, width, depth, values["alpha"], site, layers),)


_AUGMIX_LAYERS = 3  # the paper draws the depth of a chain from 1 to 3

COMBINATORS: dict[str, Combinator] = {each.name: each for each in (
    Combinator("identity", "Changes nothing; an alternative to give `oneof`.", "frequencies",
               "oneof(identity, rotate(180))", _identity),
    Combinator("oneof", "Applies one of the given policies, each with the same probability.", "frequencies",
               "oneof(gridmask, cutout(0.5))", _oneof, branches=True),
    Combinator("someof", "Applies k of the given policies, all choices equally likely, in the given order.",
               "frequencies", "someof(2, hue(0.1), blur(1.0), noise(8))", _someof, branches=True,
               params=(Param("k", int, low=1, high=64, unit="policies"),)),
    Combinator("randaugment", "Applies n of the paper's 14 ops, with replacement, at a magnitude normally distributed "
               "about m.", "the paper (arXiv 1909.13719) in timm's ranges, composed from Pillow", "randaugment(2, 9)",
               _randaugment,
               params=(Param("n", int, 2, 1, 16, unit="ops"), Param("m", float, 9.0, 0, 10, unit="of 10"),
                       Param("std", float, 0.5, 0, 10, unit="of 10"))),
    Combinator("trivialaugment", "Applies one of 14 ops at one of 31 magnitudes, wide ranges, all equally likely.",
               "the paper's table (arXiv 2103.10158), composed from Pillow", "trivialaugment", _trivialaugment),
    Combinator("augmix", "Blends the image with chains of ops applied to copies of it.",
               "the paper's procedure (arXiv 1912.02781), composed from Pillow", "augmix(severity=3)", _augmix,
               params=(Param("severity", float, 3.0, published.AUGMIX_LEAST_LEVEL, 10, unit="of 10"),
                       Param("width", int, 3, 1, 8, unit="chains"),
                       Param("depth", int, -1, -1, 8, unit="ops a chain; -1 draws it from 1 to 3"),
                       Param("alpha", float, 1.0, 0.05, 32, unit="of the Dirichlet and Beta draws"))),
)}


def names() -> tuple[str, ...]:
    """Returns every name that a policy may use."""
    return (*entry.REGISTRY, *COMBINATORS)
