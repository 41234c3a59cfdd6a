"""How everything here is timed.

Contestants take turns (A B A B ...), so that a busy machine slows them alike. A run starts with the input in memory and
ends when the result is in host memory. The first call, which traces and compiles, is timed apart; a second warms up.
What belongs here: turns, clocks and quartiles. Who runs what belongs to the suites and the peers.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FEWEST = 3  # timed runs of a contestant, however slow it is
LONG_ENOUGH = 0.2  # seconds after which it no longer shows who ran before, nor the start of a pipeline's threads
LENGTHEN = 64  # times at most that a run may be made longer


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One implementation of one case: `run(step)` processes `images` images and waits for the result.

    lengthen: from a whole number to a `run` over so many times `images`, where that is more than to run again and again
      (a pipeline, which starts threads in every run). Whatever is over too soon is lengthened: after a pause, or after
      somebody else's work, the first milliseconds are slow.
    """

    case: str
    implementation: str
    images: int
    run: Callable[[int], Any]
    lengthen: Callable[[int], Callable[[int], Any]] | None = None


def race(suite: str, contestants: Sequence[Contestant], *, samples: int, seconds: float = math.inf,
         tell: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Times contestants in turns.

    Args:
      suite: name of the suite, for the rows.
      contestants: who takes part.
      samples: timed runs of each, at most.
      seconds: what a contestant may take for its timed runs; a slow one has fewer of them, but `FEWEST` (or `samples`,
        where that is less). They are spread evenly over the race.
      tell: called with a line of progress.

    Returns:
      A row for each: suite, case, implementation, images_per_second {median, q1, q3}, compile_seconds, samples.
    """
    first, counts, ready = [], [], []
    for contestant in contestants:
        first.append(_time(contestant, 0))
        warm = _time(contestant, 1)
        tell(f"{contestant.case}, {contestant.implementation}: first call {first[-1]:.2f} s, then {warm:.3f} s")
        times = max(min(math.ceil(LONG_ENOUGH / max(warm, 1e-9)), LENGTHEN), 1)
        ready.append(_lengthened(contestant, times) if times > 1 else contestant)
        warm *= times
        affordable = samples if math.isinf(seconds) else int(seconds / max(warm, 1e-9))
        counts.append(min(max(affordable, FEWEST), samples))

    durations: list[list[float]] = [[] for _ in ready]
    rounds = max(counts, default=0)
    for turn in range(rounds):
        for index, contestant in enumerate(ready):
            if (turn + 1) * counts[index] // rounds > turn * counts[index] // rounds:
                durations[index].append(_time(contestant, 2 + turn))
    return [_row(suite, contestant, short.images, of_first, taken)
            for contestant, short, of_first, taken in zip(ready, contestants, first, durations, strict=True)]


def _lengthened(contestant: Contestant, times: int) -> Contestant:
    def again_and_again(step: int) -> None:
        for number in range(times):
            contestant.run(step * times + number)

    run = contestant.lengthen(times) if contestant.lengthen else again_and_again
    return dataclasses.replace(contestant, images=times * contestant.images, run=run)


def _time(contestant: Contestant, step: int) -> float:
    began = time.perf_counter()
    contestant.run(step)
    return time.perf_counter() - began


def _row(suite: str, contestant: Contestant, images_of_first: int, first: float, taken: list[float]) -> dict[str, Any]:
    q1, median, q3 = (float(rate) for rate in np.quantile(contestant.images / np.array(taken), [0.25, 0.5, 0.75]))
    return {"suite": suite, "case": contestant.case, "implementation": contestant.implementation,
            "images_per_second": {"median": round(median, 1), "q1": round(q1, 1), "q3": round(q3, 1)},
            "compile_seconds": round(max(first - images_of_first / median, 0.0), 3), "samples": len(taken)}
