"""PyTorch's `Dataset` and `DataLoader` with Pillow's transforms: what PyTorch's tutorials do, without torchvision.

Workers are started once and stay, a process a core, by the `forkserver` method: to fork a process in which TensorFlow
has threads may hang. Images travel as uint8 tensors in shared memory, a quarter of the floats that tutorials send.
Nothing here may import TensorFlow: every worker imports this file.
"""

import random
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data
from PIL import Image

from benchmarks.peers import CORES, pillow
from benchmarks.peers.feeds import DEGREES, MAGNITUDE, ZOOM, Batch, Feed, Source

_flip = pillow.OPS["flip"](1.0)
_randaugment = pillow.randaugment(MAGNITUDE)


class _Cells(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images by row, from files or from a memory-mapped array, augmented where asked for."""

    def __init__(self, labels: list[int], files: tuple[str, ...], array: str, augment: bool) -> None:
        self._labels, self._files, self._array, self._augment = labels, files, array, augment
        self._mapped: np.ndarray | None = None  # opened where it is used: it does not travel to the workers

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = self._image(row)
        if self._augment:
            image = augmented(image)
        return torch.from_numpy(np.array(image)), self._labels[row]

    def _image(self, row: int) -> Image.Image:
        if self._files:
            with Image.open(self._files[row]) as image:
                return image.convert("RGB")
        if self._mapped is None:
            self._mapped = np.load(self._array, mmap_mode="r")
        return Image.fromarray(self._mapped[row])


class _Rows(torch.utils.data.Sampler[int]):
    """As many rows as wanted, each epoch in an order of its own."""

    def __init__(self, rows: int) -> None:
        self._rows, self.wanted = rows, 0

    def __len__(self) -> int:
        return self.wanted

    def __iter__(self) -> Iterator[int]:
        left = self.wanted
        while left > 0:
            order = torch.randperm(self._rows)[:left].tolist()
            left -= len(order)
            yield from order


def augmented(image: Image.Image) -> Image.Image:
    """Does the task of all feeders with one image."""
    image = _flip(image)
    image = pillow.OPS["rotate"](random.uniform(-DEGREES, DEGREES))(image)
    image = pillow.OPS["zoom"](random.uniform(-ZOOM, ZOOM))(image)
    return _randaugment(image)


def start(source: Source, *, batch: int, augment: bool) -> Feed:
    """See `feeds.Implementation`."""
    array, folder = "", None
    if source.images is not None:
        folder = tempfile.TemporaryDirectory()
        array = f"{folder.name}/images.npy"
        np.save(array, source.images)
    rows = _Rows(len(source.labels))
    loader: Any = torch.utils.data.DataLoader(
        _Cells(source.labels.tolist(), source.files, array, augment), batch_size=batch, sampler=rows, drop_last=True,
        num_workers=CORES, persistent_workers=True, multiprocessing_context="forkserver")
    if folder is not None:
        weakref.finalize(loader, folder.cleanup)

    def call(count: int) -> Iterator[Batch]:
        rows.wanted = count * batch
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return call
