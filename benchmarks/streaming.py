"""Sets of rendered cells in TFRecords of any size, and the memory that one epoch of such a set takes.

`python -m benchmarks.streaming PATTERN memory|none` reads a set in a process of its own and prints JSON. To render a
cell takes 20 ms, so a few hundred are rendered and shown turned, mirrored, rolled and a few grey levels brighter or
darker, each time otherwise: files and pixels differ, and nothing here depends on what they show.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import SIDE

RENDERED = 512


class Cells:
    """`count` variations of rendered cells, uint8 [count, SIDE, SIDE, 3], made when they are asked for."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, rendered: np.ndarray) -> None:
        self.shape = (count, *rendered.shape[1:])
        self._rendered = rendered

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> np.ndarray:
        return np.stack([self._variation(number) for number in range(*index.indices(len(self)))])

    def _variation(self, number: int) -> np.ndarray:
        turn, cell = divmod(number, len(self._rendered))
        image = np.rot90(self._rendered[cell], turn % 4)
        image = image[:, ::-1] if turn // 4 % 2 else image
        image = np.roll(image, turn // 8 % SIDE, axis=0)
        return np.clip(image.astype(np.int16) + (turn * 5) % 13 - 6, 0, 255).astype(np.uint8)


def write(folder: pathlib.Path, count: int, encoding: str, cells: int = 0) -> str:
    """Writes `count` images, variations of so many cells (0: RENDERED), as shards; returns their pattern."""
    from bloodcell.data import demo, tfrecord_writer
    from bloodcell.data.dataset import ImageSet
    rendered, labels = demo.render(cells or RENDERED, seed=0, size=SIDE)
    every: Any = Cells(count, rendered)  # as much of an array as the writer needs
    tfrecord_writer.write(ImageSet(every, np.resize(labels, count).astype(np.int64), np.arange(count), demo.CLASS_NAMES,
                                   "rendered", tuple(map(str, range(count)))), folder, encoding=encoding)
    return f"{folder}/*.tfrecord"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What loading a set and one epoch of it took."""

    images: int
    cache: str
    peak_mib: int
    load_seconds: float
    epoch_seconds: float


def measure(pattern: str, cache: str) -> dict[str, Any]:
    """Returns `Epoch` as a dictionary, of a process that does nothing else.

    Raises:
      RuntimeError: the other process failed; its last line.
    """
    done = subprocess.run([sys.executable, "-m", "benchmarks.streaming", pattern, cache], check=False, text=True,
                          capture_output=True, cwd=pathlib.Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"no memory figures: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _epoch(pattern: str, cache: str) -> Epoch:
    from bloodcell.data import demo, tfrecord
    from bloodcell.data.pipeline import Pipeline
    began = time.perf_counter()
    images = tfrecord.load(pattern, cache=cache, class_names=demo.CLASS_NAMES)
    loaded = time.perf_counter()
    for _ in Pipeline(images, batch_size=64).epoch(0, 0):
        pass
    return Epoch(len(images), cache, _peak() // 2**20, round(loaded - began, 2),
                 round(time.perf_counter() - loaded, 2))


def _peak() -> int:
    """The largest resident memory of this process in bytes, file caches not counted.

    Not `getrusage`'s: that of a process which another started begins with the other's.
    """
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(json.dumps(dataclasses.asdict(_epoch(*sys.argv[1:]))))
