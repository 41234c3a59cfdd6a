"""How a written file is compared with what it was made of, and timed."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]  # from uint8 images [B,S,S,3] to probabilities float32 [B,C]

BATCH = 64
_SECONDS, _LEAST, _MOST = 2.0, 3, 30  # of a measurement: about how long, and how many runs


@dataclasses.dataclass(frozen=True)
class Compared:
    """How far probabilities are from those that they should be.

    Attributes:
      images: how many.
      difference: the largest absolute difference of a probability.
      mean_difference: the mean one.
      agreement: share of the images whose most probable class is the same.
    """

    images: int
    difference: float
    mean_difference: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a format's files must keep to: the largest difference of a probability, and the least agreement."""

    difference: float
    agreement: float

    def broken(self, found: Compared) -> str:
        """Returns what is out of bounds, in words; empty where nothing is."""
        words = []
        if not found.difference <= self.difference:  # NaN too
            words.append(f"probabilities differ by up to {found.difference:.2g} (at most {self.difference:g})")
        if found.agreement < self.agreement:
            words.append(f"{found.agreement:.1%} of the labels agree (at least {self.agreement:.1%})")
        return " and ".join(words)


def compare(expected: np.ndarray, received: np.ndarray) -> Compared:
    """Compares float [N,C] with float [N,C]; another shape is a difference of 1 and no agreement."""
    if expected.shape != received.shape:
        return Compared(len(expected), 1.0, 1.0, 0.0)
    apart = np.abs(np.asarray(expected, np.float64) - received)
    same = expected.argmax(axis=1) == received.argmax(axis=1)
    return Compared(len(expected), float(apart.max()), float(apart.mean()), float(same.mean()))


def outputs(runner: Runner, images: np.ndarray) -> np.ndarray:
    """Runs all images in batches of `BATCH`, the last one smaller."""
    return np.concatenate([runner(images[start:start + BATCH]) for start in range(0, len(images), BATCH)])


def milliseconds(runner: Runner, images: np.ndarray) -> float:
    """Returns the median time of a batch; the first run, which may trace or allocate, does not count."""
    runner(images)
    taken: list[float] = []
    while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _SECONDS):
        began = time.perf_counter()
        runner(images)
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))
