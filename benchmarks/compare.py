"""`python -m benchmarks compare OLD NEW`: have we lost against anybody since?

Absolute figures belong to a machine and its day, so none is compared: only ratios of two figures of one file, whose
contestants took turns. Those are ours to each peer and compiled to eager, case by case, and whatever a row itself
states as a part of something (`part_of_...`); of a step, also what the contestant costs it. How rows come about belongs
to the suites.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.timing import FEWEST
from bloodcell.errors import InputError

THRESHOLD = 0.10  # of the old ratio that may be lost
POINTS = 0.02  # of a step, below which a policy that costs more is no regression, however little it cost before
COMPILED = ("native", "xla")  # ours, each of which is held against `eager` and all peers
PART, PLAIN = "part_of_", "none"  # the contestant of a step that augments nothing

Key = tuple[str, str, str]  # suite, case, ratio


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio and its noise: `low` and `high` are what the quartiles of its two figures allow.

    samples: the fewest timed runs of its figures. is_cost: less is better.
    """

    median: float
    low: float
    high: float
    samples: int
    is_cost: bool = False


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio in both files. word: `regression`, `better`, `same`, or `too few runs` to say anything."""

    key: Key
    old: Ratio
    new: Ratio
    word: str


def changes(old: Mapping[str, Any], new: Mapping[str, Any], threshold: float = THRESHOLD) -> list[Change]:
    """Returns the ratios that both results have, in the old one's order.

    A regression is a ratio that lost more than `threshold` of its old value and lies outside the noise of both; a cost
    has to grow by more than that and by more than `POINTS` of the step. Both need three timed runs and more.

    Raises:
      InputError: the results have no ratio in common, or were made in other terms.
    """
    suites = [sorted({row["suite"] for row in result["rows"]}) for result in (old, new)]
    if not set(suites[0]) & set(suites[1]):
        raise InputError(f"compare: expected results of the same suite, received {' and '.join(suites[0]) or 'none'} "
                         f"against {' and '.join(suites[1]) or 'none'}, try two files of the same suite")
    for name in ("side", *(("batch",) if suites[0] == suites[1] else ())):
        if old.get(name) != new.get(name):
            raise InputError(f"compare: expected results with the same {name}, received {old.get(name)} against "
                             f"{new.get(name)}, try two that the same command has made")
    quick = [bool(result.get("quick")) for result in (old, new)]
    if quick[0] != quick[1]:
        raise InputError("compare: expected two results with --quick or two without, received one of each, try both by "
                         "the same command")
    before, after = _of(old), _of(new)
    common = [key for key in before if key in after]
    if not common:
        raise InputError("compare: expected a ratio that both results have, received none (no peer, no `eager` and no "
                         "part of a baseline in common), try results of the same cases with the same peers installed")
    return [Change(key, before[key], after[key], _word(before[key], after[key], threshold)) for key in common]


def table(found: list[Change]) -> str:
    """Returns the changes as plain text, one a line, regressions last."""
    width = max(len(f"{case}, {ratio}") for (_, case, ratio), *_ in map(dataclasses.astuple, found)) + 2
    lines = [f"{'suite':<10}{'ratio':<{width}}{'old (noise)':>26}{'new (noise)':>26}{'change':>9}  verdict"]
    for change in sorted(found, key=lambda each: each.word == "regression"):
        suite, case, ratio = change.key
        moved = (change.new.median - change.old.median) if change.old.is_cost else (
            change.new.median / change.old.median - 1)
        lines.append(f"{suite:<10}{f'{case}, {ratio}':<{width}}{_figures(change.old):>26}{_figures(change.new):>26}"
                     f"{moved:>+9.1%}  {'REGRESSION' if change.word == 'regression' else change.word}")
    return "\n".join(lines)


def _figures(ratio: Ratio) -> str:
    return "{} ({} to {})".format(*(f"{part:.3f}" if abs(part) < 10 else f"{part:.1f}"
                                    for part in (ratio.median, ratio.low, ratio.high)))


def _word(old: Ratio, new: Ratio, threshold: float) -> str:
    if min(old.samples, new.samples) < FEWEST:
        return "too few runs"
    sign = -1 if old.is_cost else 1
    within = old.low <= new.median <= old.high or new.low <= old.median <= new.high
    least = max(threshold * abs(old.median), POINTS if old.is_cost else 0.0)
    moved = sign * (new.median - old.median)
    return "same" if within or abs(moved) <= least else "better" if moved > 0 else "regression"


def _of(result: Mapping[str, Any]) -> dict[Key, Ratio]:
    """Returns all ratios of a result."""
    peers = set(result["peers"])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["rows"]:
        rows.setdefault((row["suite"], row["case"]), {})[row["implementation"]] = row
    return {(suite, case, name): ratio for (suite, case), contestants in rows.items()
            for name, ratio in _of_case(contestants, peers)}


def _of_case(contestants: Mapping[str, Mapping[str, Any]], peers: set[str]) -> Iterator[tuple[str, Ratio]]:
    for name, row in contestants.items():
        rate = row["images_per_second"]
        others = [] if name in peers or name == "eager" else [
            other for other in contestants if other in peers or (other == "eager" and name in COMPILED)]
        for other in others:
            theirs = contestants[other]["images_per_second"]
            if min(theirs["q1"], rate["q1"]) <= 0:  # rows are rounded: nothing can be divided by what is left of it
                continue
            yield f"{name} to {other}", Ratio(
                rate["median"] / theirs["median"], rate["q1"] / theirs["q3"], rate["q3"] / theirs["q1"],
                min(row["samples"], contestants[other]["samples"]))
        for key, part in row.items():
            if key.startswith(PART) and isinstance(part, Mapping):
                yield f"{name}, part of {key.removeprefix(PART)}", Ratio(
                    part["median"], part["q1"], part["q3"], row["samples"])
                if row["suite"] == "step" and PLAIN in contestants:
                    yield f"{name}, cost", Ratio(
                        1 - part["median"], 1 - part["q3"], 1 - part["q1"], row["samples"], is_cost=True)
