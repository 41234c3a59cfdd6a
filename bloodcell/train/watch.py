"""The numbers of a training as they come in: added up, checked, timed, and shown in TensorBoard's scalars.

A look fetches the results of the steps since the last one, and waits for the device; between looks it is never waited
for. When to look is `epochs`' business, what a result holds `step`'s.
"""

import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from bloodcell.train.tensorboard import Board

BOARD_SECONDS = 5.0  # between two points of TensorBoard's curves over steps, at least


class NotFinite(Exception):
    """A step's loss or gradient was NaN or infinite.

    Attributes:
      step: its number.
      what: `loss` or `gradient`.
      value: what it was.
      looked: first and last number of the steps that were looked at together.
    """

    def __init__(self, step: int, what: str, value: float, looked: tuple[int, int]):
        super().__init__(f"{what} {value} at step {step}")
        self.step, self.what, self.value, self.looked = step, what, value, looked


class Watch:
    """Looks at the steps of a run.

    Args:
      board: gets the curves, or None.
      rate: returns the learning rate of the last step taken.
      devices: names of accelerators, such as `GPU:0`, whose memory is shown.
    """

    def __init__(self, board: Board | None, rate: Callable[[], float], devices: Sequence[str] = ()):
        self._board, self._rate, self._devices = board, rate, devices
        self._shown = 0.0
        self.begin_epoch([0.0] * 5)

    def begin_epoch(self, sums: Sequence[float]) -> None:
        """Starts to count an epoch, of which earlier processes have counted `sums`."""
        self._sums = np.array(sums, np.float64)
        self._times: list[tuple[float, int]] = []  # of each look: seconds a step, and how many steps
        self.looked = time.monotonic()

    def look(self, results: Sequence[tf.Tensor], step: int, *, compiled: bool) -> np.ndarray:
        """Adds up the results of the newest steps.

        Args:
          results: of the steps since the last look, at least one.
          step: the number of the last of them.
          compiled: whether the first of them was compiled now, so that its time says nothing.

        Returns:
          float64 [5]: the sums of these steps.

        Raises:
          NotFinite: one of them.
        """
        values = np.asarray(tf.stack(results), np.float64)
        first = step - len(results) + 1
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            what, column = ("gradient", 3) if np.isfinite(values[bad, 0]) else ("loss", 0)
            raise NotFinite(first + bad, what, values[bad, column], (first, step))
        for row in values:  # one by one: the sum must not depend on when was looked
            self._sums += row
        now = time.monotonic()
        if not compiled:
            self._times.append(((now - self.looked) / len(results), len(results)))
        self.looked = now
        if self._board and (now - self._shown > BOARD_SECONDS):
            self._shown = now
            self._curves(self._board, values, step)
        return values.sum(axis=0)

    @property
    def sums(self) -> list[float]:
        """What the epoch's steps so far add up to."""
        return self._sums.tolist()

    def figures(self, steps: int) -> dict[str, float]:
        """Returns the figures of an epoch of so many steps, for `metrics.jsonl`.

        `loss` and `accuracy` are means over the images, `grad_norm` over the steps that were not skipped; `skipped`
        counts those that were; `step_ms_p50`, `_p90` and `_p99` are percentiles of the time of a step, each look's
        mean standing for its steps.
        """
        loss, images, right, norms, skipped = self._sums
        found = {"loss": loss / images, "accuracy": right / images, "grad_norm": norms / max(steps - skipped, 1),
                 "skipped": int(skipped)}
        if self._times:
            each = np.repeat([seconds for seconds, _ in self._times], [count for _, count in self._times])
            found |= {f"step_ms_p{share}": round(1000 * float(np.percentile(each, share)), 2) for share in (50, 90, 99)}
        return found | {f"{name}_mib": value for name, value in self.memory().items()}

    def memory(self) -> dict[str, float]:
        """Returns the MiB in use: of this process on the host, and at most so far on the devices together."""
        found = {"host": host_memory() / 2**20}
        used = [tf.config.experimental.get_memory_info(device)["peak"] for device in self._devices]
        return {name: round(value, 1) for name, value in (found | ({"device": sum(used) / 2**20} if used else {})
                                                          ).items()}

    def _curves(self, board: Board, values: np.ndarray, step: int) -> None:
        loss, images, right, norms, skipped = values.sum(axis=0)
        seconds = self._times[-1][0] if self._times else 0.0
        board.scalars({
            "steps/loss": loss / images, "steps/accuracy": right / images, "steps/learning_rate": self._rate(),
            "steps/gradient_norm": norms / max(len(values) - skipped, 1), "steps/skipped": skipped,
            **({"steps/images_per_second": images / len(values) / seconds, "steps/step_ms": 1000 * seconds}
               if seconds else {}),
            **{f"memory/{name}_mib": value for name, value in self.memory().items()}}, step)


def host_memory() -> int:
    """Returns the bytes of memory that this process holds now (resident set), 0 where the system does not say."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def accelerators(count: int) -> list[str]:
    """Returns the names of the first GPUs, at most `count` of them."""
    return [f"GPU:{index}" for index in range(min(count, len(tf.config.list_logical_devices("GPU"))))]
