"""albumentations with a process a core, as a data loader runs it: each process takes its share of a batch.

What differs from `albumentations_.py`: the processes, which are started once and wait, and OpenCV, which uses one
thread in each. Images are sent once; results come back through pipes. Policies alone, as a loader would run.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.peers import CORES, Run, albumentations_

OPS: dict[str, Callable[[float], Any]] = {}
POLICIES: dict[str, tuple[str, str]] = {case: (title, case) for case, (title, _) in albumentations_.POLICIES.items()}

_shares: list[np.ndarray] = []  # of a worker: the batch, in as many pieces as there are processes


def start(thing: str, images: np.ndarray) -> Run:
    """Returns how to run a policy, by its name, over uint8 images [B, H, W, 3]."""
    pool = ProcessPoolExecutor(CORES, multiprocessing.get_context("forkserver"), _begin, (images,))

    def call(batches: int) -> list[np.ndarray]:
        shares = list(pool.map(_work, [thing] * (batches * CORES), list(range(CORES)) * batches))
        return [np.concatenate(shares[first:first + CORES]) for first in range(0, len(shares), CORES)]
    return Run(call, len(images))


def _begin(images: np.ndarray) -> None:
    albumentations_.cv2.setNumThreads(1)
    _shares.extend(np.array_split(images, CORES))


def _work(case: str, share: int) -> np.ndarray:
    return albumentations_.start(albumentations_.POLICIES[case][1], _shares[share]).call(1)[0]
