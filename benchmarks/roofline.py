"""Suite `roofline`: what part of the memory's bandwidth the programs reach, and how their cost grows.

The limit is that of a program that does nothing but move what must move: each uint8 image in, each result out, once.
What a program writes in between, fetches again or computes takes time on top, and shows as the part that is missing.
Results stay on the device and are waited for there; `ops` and `policies` time the way to the host's memory as well.
"""

import ctypes
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import BATCH, SIDE, bandwidth, growth, ours, progress
from benchmarks.policies import POLICIES
from benchmarks.timing import Contestant, race
from bloodcell.data import demo

SECONDS = 2.0  # a contestant's timed runs
NOTHING = "identity"  # the policy that only converts: what the compiler makes of the limit itself
PRIMITIVES = {"warp": "rotate", "tone": "brightness", "mix": "hue", "filter": "sharpness", "mask": "cutout",
              "blur": "blur", "streak": "motion_blur", "mosaic": "pixelate", "elastic": "elastic", "stain": "stain",
              "noise": "noise", "jpeg": "jpeg"}  # and an op that needs no other
BATCHES = (16, 64, 256, 1024, 4096)  # images of SIDE
SIDES = (28, 64, 96, 128, 224, 512)  # of BATCH_OF_SIDES images
LOOK = 5  # times as many runs where the first ones show a cliff
BATCH_OF_SIDES = 64
OPS = tuple(range(1, 9))  # n of OF_OPS, on BATCH images of SIDE
OF_OPS = "randaugment(n, 9)"
GROWING = ("randaugment(2, 9)", "v2s")  # the policies whose growth with batch and side is measured too
_KEEPING = ((-4, 0), (-1, 2**31 - 1))  # M_MMAP_MAX, M_TRIM_THRESHOLD of glibc's malloc.h
QUICK_PRIMITIVES = ("warp", "tone", "mask", "blur")  # of a quick run
QUICK = "warp: rotate"  # the only case whose growth it measures, at these sizes
QUICK_SIZES = {"batch": (16, 256, 1024), "side": (28, 96, 224)}
RENDERED = 16  # different images of a batch


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str, tell: Callable[[str], None],
        quick: bool = False) -> dict[str, Any]:
    """Measures the bandwidth, the rates of all cases against it, and the growth of their cost.

    Args:
      present: the peers; none takes part.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the cases to run are those in whose names it occurs.
      tell: called with lines of progress.
      quick: a few primitives, no policies, fewer sizes and samples.

    Returns:
      `rows`, with `bytes_per_image` and `part_of_limit` {median, q1, q3}; `bandwidth`, as `bandwidth.measure` has it,
      the better of before and after; `growth`, a line a case and kind of size (see `_growth`).
    """
    del present
    if not keep_memory():
        tell("the allocator cannot be told to keep memory: large results pay for pages that the system gives anew")
    implementations = ours.backends(tell)
    samples = min(samples, 3) if quick else samples
    before = bandwidth.measure(seconds=0.5 if quick else 2.0)
    tell(f"bandwidth: {before['bytes_per_second'] / 1e9:.1f} GB/s")
    matching = [case for case in cases(quick=quick) if re.search(only, case)]
    rows: list[dict[str, Any]] = []
    for case in progress.each(matching, tell):
        names = implementations[:1] if case == NOTHING else implementations  # an empty policy has no op to be native
        rows += race("roofline", [contestant(case, name) for name in names], samples=samples, seconds=seconds,
                     tell=tell)

    lines: list[dict[str, Any]] = []
    grown = progress.each(_grown(only, quick=quick), tell, name=lambda each: f"{each[0]} with {each[1]}")
    for case, along, sizes in grown:
        for name in implementations:
            lines.append(_growth(case, name, along, sizes, samples=samples, seconds=seconds, tell=tell))

    after = bandwidth.measure(seconds=0.5 if quick else 2.0)
    best = max(before, after, key=lambda each: float(each["bytes_per_second"]))
    return {"rows": [_limited(row, best["bytes_per_second"]) for row in rows], "bandwidth": best, "growth": lines}


def keep_memory() -> bool:
    """Lets the C library keep what programs free, for the rest of this process; returns whether it can (glibc).

    Else every result of more than 32 MiB lies in pages that the system gives anew, a fault each, which no program here
    can help: 53 of 67 us an image on a virtual machine whose cast to float32 takes 14.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _KEEPING)


def cases(*, quick: bool = False) -> dict[str, tuple[str, str]]:
    """Returns the cases by name: (`op` or `policy`, its name or text)."""
    ops = {f"{primitive}: {op}": ("op", op) for primitive, op in PRIMITIVES.items()
           if not quick or primitive in QUICK_PRIMITIVES}
    policies = {} if quick else {case: ("policy", text) for case, text in POLICIES.items()}
    return {NOTHING: ("policy", NOTHING), **ops, **policies}


def bytes_per_image(side: int, dtype: str = "float32") -> int:
    """Returns what must move for an image: side x side pixels of three bytes in, and of three numbers of dtype out."""
    pixels = side * side
    return 3 * pixels * (1 + tf.as_dtype(dtype).size)


def contestant(case: str, implementation: str, *, batch: int = BATCH, side: int = SIDE) -> Contestant:
    """Returns a case on a batch of images that lies on the device, whose result is waited for where it comes to be."""
    compiled = _compiled(case, implementation)
    images = tf.constant(_images(batch, side))
    ids = tf.range(batch, dtype=tf.int64)

    def again(times: int) -> Callable[[int], None]:
        def run(step: int) -> None:
            for number in range(times):
                compiled(images, ids, tf.constant(step * times + number, tf.int64))
            tf.test.experimental.sync_devices()
        return run

    return Contestant(case, implementation, batch, again(1), again)


@functools.cache
def _compiled(case: str, implementation: str) -> Callable[..., tf.Tensor]:
    """Returns a case's program, one for all shapes, so that what was compiled for one measurement serves the next."""
    kind, text = cases().get(case) or ("policy", case)
    make = {"op": ours.op_function, "policy": ours.policy_function}[kind]
    return tf.function(make(text, implementation), jit_compile=True, autograph=False)


@functools.lru_cache(maxsize=2)
def _images(batch: int, side: int) -> np.ndarray:
    rendered = demo.render(min(batch, RENDERED), seed=0, size=side)[0]
    return np.resize(rendered, (batch, side, side, 3))  # again and again


def _grown(only: str, *, quick: bool) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yields a case, what grows, and the sizes."""
    for case in cases():
        if re.search(only, case) and (case == QUICK if quick else ":" in case or case in GROWING):
            for along, sizes in (("batch", BATCHES), ("side", SIDES)):
                yield case, along, QUICK_SIZES[along] if quick else sizes
    if re.search(only, OF_OPS) and not quick:
        yield OF_OPS, "ops", OPS


def _growth(case: str, implementation: str, along: str, sizes: Sequence[int], *, samples: int, seconds: float,
            tell: Callable[[str], None]) -> dict[str, Any]:
    """Measures what a batch costs at each size, all sizes in turns, and fits the line.

    A cliff is looked at twice: a few runs may all have met with other work on the machine. The second look takes
    `LOOK` times as many runs, and is the one that counts, whatever it says.

    Returns:
      `case`, `implementation`, `along` (`batch`, `side` or `ops`), `sizes`; `units`, what the line counts: images of
      the batch, pixels of the batch, or ops; `seconds` of a batch, lower quartiles, as other work on the machine can
      but add to them, and `samples`, the fewest runs of a size; `fixed_seconds` and `seconds_per_unit` of the line
      (see `growth.Line`); `deviation`, `worst` (one of `sizes`) and `cliff`.
    """
    def at(size: int) -> Contestant:
        if along == "batch":
            return contestant(case, implementation, batch=size)
        if along == "side":
            return contestant(case, implementation, batch=BATCH_OF_SIDES, side=size)
        return contestant(case.replace("(n", f"({size}"), implementation)

    contestants = [dataclasses.replace(at(size), case=f"{case}, {along} {size}") for size in sizes]
    units = [BATCH_OF_SIDES * size * size for size in sizes] if along == "side" else list(sizes)
    for look in (1, LOOK):
        rows = race("roofline", contestants, samples=look * samples, seconds=look * seconds, tell=tell)
        taken = [each.images / row["images_per_second"]["q3"] for each, row in zip(contestants, rows, strict=True)]
        line = growth.line(units, taken)
        if not line.cliff:
            break
    return {"case": case, "implementation": implementation, "along": along, "sizes": list(sizes), "units": units,
            "seconds": taken, "samples": min(row["samples"] for row in rows), "fixed_seconds": line.fixed,
            "seconds_per_unit": line.each, "deviation": round(line.deviation, 3),
            "worst": sizes[units.index(int(line.worst))], "cliff": line.cliff}


def _limited(row: Mapping[str, Any], bytes_per_second: float) -> dict[str, Any]:
    moved = bytes_per_image(SIDE)
    limit = bytes_per_second / moved
    return {**row, "bytes_per_image": moved, "part_of_limit": {
        name: round(rate / limit, 5) for name, rate in row["images_per_second"].items()}}


def slowest(rows: Sequence[Mapping[str, Any]], count: int = 3) -> list[tuple[str, str, float]]:
    """Returns the cases furthest from their limit: (case, implementation, part of the limit)."""
    parts = [(row["case"], row["implementation"], row["part_of_limit"]["median"]) for row in rows]
    return sorted(parts, key=lambda each: each[2])[:count]

