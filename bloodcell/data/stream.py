"""Reads the images of a source one after the other, however many: threads decode ahead, batches have one shape.

For images that are looked at once, in the order given, as predict does. Nothing is kept of an image that was handed on,
so memory grows with a folder's names alone. Sets that are trained on or measured belong to `sources`, how a file is
decoded to `decode_any`.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from bloodcell.data import bloodmnist, folder, npz, record_scan, sources, tfrecord
from bloodcell.data.decode_any import decode_any, decode_any_file
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError, shown

SUFFIXES = (*folder.SUFFIXES, ".tif", ".tiff", ".webp")

_THREADS = min(8, os.cpu_count() or 1)
_AHEAD_BYTES = 2**28  # pixels that are ready before they are asked for, at most; and encoded images that wait
_MOST_ITEMS = 8  # times the batch size: an end to a batch of which next to none can be read

_Decode = Callable[[], np.ndarray | str]  # to uint8 [H,W,3], or the reason why there is none
_Job = tuple[str, _Decode, int]  # a name, how the image is decoded, and the bytes that wait for it


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of the source.

    Attributes:
      file: its name.
      reason: why it cannot be read; empty where it can.
      changed: whether it had another size than it was brought to.
    """

    file: str
    reason: str = ""
    changed: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Some images of the source, in its order.

    Attributes:
      items: as many as were looked at to fill the batch.
      images: uint8 [B,S,S,3], those of `items` that have no reason; what fills the rest repeats the last.
      ids: int64 [B], their positions in the source.
    """

    items: tuple[Item, ...]
    images: np.ndarray
    ids: np.ndarray


class Stream:
    """N images, of which none is read before it is asked for.

    Attributes:
      digest: tells another source, or one whose names or order have changed, from this one.
      passed_over: how many files of a folder have no image's name, and the first of them.
    """

    def __init__(self, count: int, digest: str, jobs: Callable[[int], Iterable[_Job]],
                 passed_over: tuple[int, str] = (0, "")) -> None:
        self._count, self._jobs = count, jobs
        self.digest, self.passed_over = digest, passed_over

    def __len__(self) -> int:
        return self._count

    def batches(self, batch_size: int, image_size: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yields batches of `min(batch_size, N)` images, of which the last may hold fewer, and some next to none.

        What a batch holds depends on where it begins and on nothing before it.

        Args:
          batch_size: images that can be read, in a batch.
          image_size: the side to which they are brought (centred square, bicubic), in pixels.
          start: the image to begin with: 0, or the end of another batch.

        Raises:
          InputError: a source that can no longer be read.
        """
        batch_size = min(batch_size, self._count)
        jobs = iter(self._jobs(start))
        ahead = max(_THREADS, min(2 * batch_size, _AHEAD_BYTES // (3 * image_size**2)))
        waiting: collections.deque[tuple[str, Future[tuple[np.ndarray, bool] | str], int]] = collections.deque()
        held = 0
        threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="decode")

        def fill() -> None:
            nonlocal held
            while len(waiting) < ahead and held < _AHEAD_BYTES:
                job = next(jobs, None)
                if job is None:
                    break
                name, decode, size = job
                waiting.append((name, threads.submit(_prepared, decode, image_size), size))
                held += size

        try:
            fill()
            while waiting:
                images = np.empty((batch_size, image_size, image_size, 3), np.uint8)
                items: list[Item] = []
                ids: list[int] = []
                while waiting and len(ids) < batch_size and len(items) < _MOST_ITEMS * batch_size:
                    name, future, size = waiting.popleft()
                    result = future.result()
                    held -= size
                    if isinstance(result, str):
                        items.append(Item(name, result))
                    else:
                        images[len(ids)] = result[0]
                        ids.append(start + len(items))
                        items.append(Item(name, changed=result[1]))
                    fill()  # the threads have work while this batch is looked at
                start += len(items)
                images[len(ids):] = images[len(ids) - 1] if ids else 0
                filled = np.asarray(ids + ids[-1:] * (batch_size - len(ids)), np.int64)
                yield Batch(tuple(items), images, filled)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def open_source(source: str, *, image_size: int, class_names: tuple[str, ...] = (), seed: int = 0) -> Stream:
    """Looks up what a source holds: an image file, a folder at any depth, a .npz, TFRecords, demo or bloodmnist.

    Args:
      source: what the user typed.
      image_size: the side in which the demo is rendered, in pixels.
      class_names: the classes that the demo must have.
      seed: of the demo.

    Returns:
      The images in their order: of a folder by their paths below it, of the others as they lie there.

    Raises:
      InputError: the source is none of these, holds no image, or is damaged as a whole.
    """
    path = pathlib.Path(os.path.expanduser(source))
    if path.suffix.lower() in SUFFIXES and not os.path.isdir(path):
        if not os.path.lexists(path):
            raise InputError(f"--data: expected an image file, received {shown(source)} (a name that does not exist); "
                             "try its full path")
        return _of_files(path.parent, [path.name])
    kind, path = sources.kind_of(source)
    if kind == "folder":
        return _of_folder(path)
    if kind == "tfrecord":
        return _of_records(str(path))
    if kind == "demo":
        return _of_demo(image_size, class_names, seed)
    return _of_npz(bloodmnist.download(source) if kind == "bloodmnist" else path)


def _prepared(decode: _Decode, image_size: int) -> tuple[np.ndarray, bool] | str:
    try:
        image = decode()
        if isinstance(image, str):
            return shown(image)
        return to_square(image[None], image_size)[0], image.shape[:2] != (image_size, image_size)
    except MemoryError:
        return "there is no memory left for it"


def _of_files(root: pathlib.Path, names: list[str], passed_over: tuple[int, str] = (0, "")) -> Stream:
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")

    def jobs(start: int) -> Iterator[_Job]:
        for position in range(start, len(names)):
            name = names[position]
            yield shown(name), partial(decode_any_file, os.path.join(root, name)), 0

    return Stream(len(names), digest.hexdigest(), jobs, passed_over)


def _of_folder(path: pathlib.Path) -> Stream:
    files = folder.files_below(path)
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    if not names:
        raise InputError(f"{path}: expected images ({', '.join(SUFFIXES)}), received none; try another folder")
    first = next((name for name in files if not name.lower().endswith(SUFFIXES)), "")
    return _of_files(path, names, (len(files) - len(names), shown(first)))


def _of_records(pattern: str) -> Stream:
    shards = tfrecord.shards_of(pattern)
    records = record_scan.Records(shards)
    if not len(records):
        raise InputError(f"{pattern}: expected at least one record, received none in {len(shards)} files")

    def jobs(start: int) -> Iterator[_Job]:
        for name, content in records.read(start):
            if isinstance(content, str):
                yield name, partial(str, content), 0
            else:
                yield name, partial(decode_any, content), len(content)

    return Stream(len(records), records.digest, jobs)


def _of_npz(path: pathlib.Path) -> Stream:
    images = npz.Images(path)
    name = shown(path.name)

    def jobs(start: int) -> Iterator[_Job]:
        for position, image in enumerate(images.read(start), start):
            yield f"{name}#{position}", partial(np.asarray, image), image.nbytes

    return Stream(images.shape[0], f"{name} {images.digest}", jobs)


def _of_demo(image_size: int, class_names: tuple[str, ...], seed: int) -> Stream:
    rendered = sources.load("demo", part="test", labelled=False, image_size=image_size, seed=seed,
                            class_names=class_names or None)

    def jobs(start: int) -> Iterator[_Job]:
        for position in range(start, len(rendered)):
            yield rendered.files[position], partial(np.asarray, rendered.images[position]), 0

    return Stream(len(rendered), f"demo {seed} {image_size}", jobs)
