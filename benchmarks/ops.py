"""Suite `ops`: every op of the registry, compiled and eager, against the same op of each peer."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from benchmarks import BATCH, QUICK_BATCH, ours, progress
from benchmarks.peers import Implementation, contestant
from benchmarks.timing import race
from bloodcell import augment

SECONDS = 1.0  # a contestant's timed runs of one op
QUICK = ("flip", "brightness", "jpeg", "cutout")  # which most peers have


def strength(name: str) -> float:
    """Returns an op's strength at `ours.LEVEL`, in the unit of its first parameter, for the peers."""
    return float(augment.REGISTRY[name].strength(tf.constant([ours.LEVEL]))[0])


def run(present: Mapping[str, Implementation], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None], quick: bool = False) -> dict[str, Any]:
    """Races op by op: those who take turns are the contestants of one op.

    Args:
      present: the peers that are installed.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the ops to run are those in whose names it occurs.
      tell: called with lines of progress.
      quick: a few ops, in a small batch.

    Returns:
      `rows`; `strengths`, of each op, in the unit of its first parameter, for the peers; `batch`.
    """
    images = ours.cells(QUICK_BATCH if quick else BATCH)
    rows: list[dict[str, Any]] = []
    backends = ours.backends(tell)
    names = [name for name in (QUICK if quick else augment.REGISTRY) if re.search(only, name)]
    for name in progress.each(names, tell):
        contestants = ours.contestants(name, {by: ours.op_function(name, by) for by in backends}, images)
        for peer, implementation in present.items():
            if name in implementation.OPS:
                thing = implementation.OPS[name](strength(name))
                contestants.append(contestant(name, peer, implementation.start(thing, images)))
        rows += race("ops", contestants, samples=samples, seconds=seconds, tell=tell)
    return {"rows": rows, "strengths": {name: strength(name) for name in names}, "batch": len(images)}
