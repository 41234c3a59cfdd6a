"""How everything here is timed.

Contestants take turns (A B A B ...), so that a busy machine slows them alike. A run starts with the input in memory and
ends when the result is in host memory. The first call, which traces and compiles, is timed apart; a second warms up.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One implementation of one case: `run(step)` processes `images` images and waits for the result."""

    case: str
    implementation: str
    images: int
    run: Callable[[int], Any]


def race(suite: str, contestants: Sequence[Contestant], *, samples: int,
         tell: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Times contestants in turns.

    Args:
      suite: name of the suite, for the rows.
      contestants: who takes part.
      samples: timed runs of each.
      tell: called with a line of progress.

    Returns:
      A row for each: suite, case, implementation, images_per_second {median, q1, q3}, compile_seconds, samples.
    """
    first = []
    for contestant in contestants:
        began = time.perf_counter()
        contestant.run(0)
        first.append(time.perf_counter() - began)
        contestant.run(1)
        tell(f"{contestant.case}, {contestant.implementation}: first call {first[-1]:.2f} s")
    seconds = np.zeros((samples, len(contestants)))
    for sample in range(samples):
        for index, contestant in enumerate(contestants):
            began = time.perf_counter()
            contestant.run(2 + sample)
            seconds[sample, index] = time.perf_counter() - began
    rows = []
    for index, contestant in enumerate(contestants):
        q1, median, q3 = np.quantile(contestant.images / seconds[:, index], [0.25, 0.5, 0.75])
        rows.append({"suite": suite, "case": contestant.case, "implementation": contestant.implementation,
                     "images_per_second": {"median": round(median, 1), "q1": round(q1, 1), "q3": round(q3, 1)},
                     "compile_seconds": round(max(first[index] - contestant.images / median, 0.0), 3),
                     "samples": samples})
    return rows
