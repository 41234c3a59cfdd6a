"""Writes checkpoints beside the training: variables are copied at once, and put on disk by a thread of its own.

What is in a checkpoint belongs to `checkpoints`, when to make one to `loop`.
"""

import concurrent.futures
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bloodcell.train import checkpoints

_WAITING = 3  # copies at most, in memory, that wait for the disk: those of one epoch


class Saver:
    """Saves in the order of the calls; a context manager, whose end waits for the disk.

    An error of the disk is raised by the next call of any method: the training then stops, and the checkpoints before
    are untouched.

    Attributes:
      step: the newest step that is saved or about to be.
      seconds_waited: how long the training stood still for checkpoints.
    """

    def __init__(self, store: checkpoints.Checkpoints, *, step: int):
        self.step = step
        self.seconds_waited = 0.0
        self._store = store
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._unfinished: deque[concurrent.futures.Future[None]] = deque()
        self._failed = False
        self._last = time.monotonic()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()

    def save(self, which: str, meta: dict[str, Any], model: keras.Model,
             optimizer: keras.optimizers.Optimizer | None = None, averaged: Sequence[keras.Variable] = ()) -> None:
        """Copies the variables and has them written; arguments as `Checkpoints.save`'s."""
        began = time.monotonic()
        while len(self._unfinished) >= _WAITING:
            self._unfinished.popleft().result()
        arrays = checkpoints.arrays_of(meta, model, optimizer, averaged)
        self._unfinished.append(self._thread.submit(self._write, which, arrays))
        if which == "last":
            self.step = meta["state"]["step"]
        self._last = time.monotonic()
        self.seconds_waited += self._last - began

    def due(self, seconds: float) -> bool:
        """Returns whether the newest checkpoint is that old and on disk; never where `seconds` is 0."""
        return 0 < seconds <= time.monotonic() - self._last and not self.busy()

    def busy(self) -> bool:
        """Returns whether anything still waits for the disk; raises the disk's error."""
        while self._unfinished and self._unfinished[0].done():
            self._unfinished.popleft().result()
        return bool(self._unfinished)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        began = time.monotonic()
        while self._unfinished:
            self._unfinished.popleft().result()
        self.seconds_waited += time.monotonic() - began

    def _write(self, which: str, arrays: dict[str, np.ndarray]) -> None:
        if self._failed:  # a `last` must not say that the `best` before it is there
            return
        try:
            self._store.check_folder()  # a part of a run made anew would look like a whole one
            self._store.write(which, arrays)
        except BaseException:
            self._failed = True
            raise
