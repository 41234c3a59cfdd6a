"""How everything here is timed.

Contestants take turns, there and back (A B C, C B A, ...), so that a busy machine slows them alike and nobody always
follows the same one. A run starts with the input in memory and
ends when the result is in host memory. The first call, which traces and compiles, is timed apart; a second warms up.
What belongs here: turns, clocks and quartiles. Who runs what belongs to the suites and the peers.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import progress

FEWEST = 3  # timed runs of a contestant, however slow it is
LONG_ENOUGH = 0.2  # seconds after which it no longer shows who ran before, nor the start of a pipeline's threads; as
# far as a contestant has so many for `FEWEST` runs
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


def race(suite: str, contestants: Sequence[Contestant], *, samples: int, seconds: float = math.inf, baseline: str = "",
         tell: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Times contestants in turns.

    Args:
      suite: name of the suite, for the rows.
      contestants: who takes part.
      samples: timed runs of each, at most.
      seconds: what a contestant may take for its timed runs; a slow one has fewer of them, but `FEWEST` (or `samples`,
        where that is less). They are spread evenly over the race.
      baseline: an implementation, where it takes part, whose rate the others' are divided by turn by turn: what slows
        both in one turn is left out, which it is not where medians are divided.
      tell: called with a line of progress; a `progress.Progress` also hears how far the race is.

    Returns:
      A row for each: suite, case, implementation, images_per_second {median, q1, q3}, compile_seconds, samples; and of
      who is compared with the baseline, part_of_baseline {median, q1, q3}.
    """
    first, counts, ready, left = [], [], [], 0.0
    began = time.monotonic()
    for number, contestant in enumerate(contestants, 1):
        name = f"{contestant.case}, {contestant.implementation}"
        progress.part(tell, 0.0, f"{name} (first call {number} of {len(contestants)})")
        first.append(_time(contestant, 0))
        warm = _time(contestant, 1)
        progress.detail(tell, f"{name}: first call {first[-1]:.2f} s, then {warm:.3f} s")
        times = max(min(math.ceil(min(LONG_ENOUGH, seconds / FEWEST) / max(warm, 1e-9)), LENGTHEN), 1)
        ready.append(_lengthened(contestant, times) if times > 1 else contestant)
        warm *= times
        affordable = samples if math.isinf(seconds) else int(seconds / max(warm, 1e-9))
        counts.append(min(max(affordable, FEWEST), samples))
        left += counts[-1] * warm

    durations: list[dict[int, float]] = [{} for _ in ready]  # by turn
    rounds = max(counts, default=0)
    for turn in range(rounds):
        spent = time.monotonic() - began
        part = spent / max(spent + left * (rounds - turn) / rounds, 1e-9)
        progress.part(tell, part, f"{contestants[0].case} (turn {turn + 1} of {rounds})")
        for index, contestant in list(enumerate(ready))[::-1 if turn % 2 else 1]:
            if (turn + 1) * counts[index] // rounds > turn * counts[index] // rounds:
                durations[index][turn] = _time(contestant, 2 + turn)
    rates = [{turn: contestant.images / taken for turn, taken in turns.items()}
             for contestant, turns in zip(ready, durations, strict=True)]
    base = next((own for contestant, own in zip(ready, rates, strict=True) if contestant.implementation == baseline),
                None)
    return [_row(suite, contestant, of_first, own, None if own is base else base)
            for contestant, of_first, own in zip(contestants, first, rates, strict=True)]


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


def _row(suite: str, contestant: Contestant, first: float, rates: Mapping[int, float],
         base: Mapping[int, float] | None) -> dict[str, Any]:
    rate = _quartiles(list(rates.values()))
    row = {"suite": suite, "case": contestant.case, "implementation": contestant.implementation,
           "images_per_second": {name: round(value, 1) for name, value in rate.items()},
           "compile_seconds": round(max(first - contestant.images / rate["median"], 0.0), 3), "samples": len(rates)}
    if base is not None:  # everybody runs in the last turn
        parts = _quartiles([rates[turn] / base[turn] for turn in rates if turn in base])
        row["part_of_baseline"] = {name: round(value, 4) for name, value in parts.items()}
    return row


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    q1, median, q3 = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "q1": q1, "q3": q3}
