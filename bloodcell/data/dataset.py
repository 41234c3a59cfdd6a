"""What every source gives: `ImageSet`, and the checks of labels and sizes that all sources share.

Reading files belongs to the sources (`npz`, `folder`, `tfrecord`, `demo`), not here.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from bloodcell.errors import InputError

CELL_NAMES = ("basophil", "eosinophil", "erythroblast", "immature_granulocyte",
              "lymphocyte", "monocyte", "neutrophil", "platelet")  # BloodMNIST's order

MAX_SIDE = 4096  # pixels; a larger side is a slide or a mistake, not the picture of one cell


class UnequalSizes(InputError):
    """The images of a source are of several sizes, and nothing was said of the one to which to bring them."""


class StoredImages(Protocol):
    """Images that are not in memory, as an array: uint8 [N,H,W,3] (`records.RecordImages`).

    `stored[index]`, and a loop over them, read images into an `ndarray`.
    """

    dtype: np.dtype
    ndim: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, height, width, 3."""

    @property
    def digests(self) -> np.ndarray:
        """uint8 [N,16], what `pixel_digests` gives for the same pixels; nothing is read."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...
    def __getitem__(self, index: Any) -> np.ndarray: ...

    def take(self, index: np.ndarray) -> "StoredImages":
        """Returns the images at `index` [M], stored as these are; nothing is read."""

    def batches(self, index: np.ndarray) -> Any:
        """Returns a `tf.data.Dataset` of uint8 [B,H,W,3] for `index` int64 [steps,B]."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one part (train, validation or test) with their labels.

    Attributes:
      images: uint8 [N,H,W,3], grey levels 0..255; in memory, or in files of which an index reads what is asked for.
      labels: int64 [N] in 0..num_classes-1, or None where the source was read unlabelled.
      ids: int64 [N], the position in the source; a subset keeps them, so augmentation draws do not depend on a split.
      class_names: a name per class, in the order of the labels.
      origin: what the user typed.
      files: a name per image: the file's path below its folder, or "<npz>#<index>".
      left_out: name and reason of each image of the source that cannot be used (see `check_left_out`); a subset keeps
        them.
      cleaned: name and reason ("rule: ...") of each image that an audit removed; a subset keeps them.
      audited: whether the source is what an audit has left, or rendered, and needs no other.
    """

    images: np.ndarray | StoredImages
    labels: np.ndarray | None
    ids: np.ndarray
    class_names: tuple[str, ...]
    origin: str
    files: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    cleaned: tuple[tuple[str, str], ...] = ()
    audited: bool = False

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise TypeError(f"images: expected uint8 [N,H,W,3], received {self.images.dtype} {self.images.shape}")
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            if values is not None and (values.dtype != np.int64 or values.shape != (n,)):
                raise TypeError(f"{name}: expected int64 [{n}], received {values.dtype} {values.shape}")
        if len(self.files) != n:
            raise TypeError(f"files: expected {n} names, received {len(self.files)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes, also of those that have no image in this part."""
        return len(self.class_names)

    def subset(self, index: np.ndarray) -> "ImageSet":
        """Returns the images at `index` (whole numbers [M], or bool [N]), in that order, with their ids.

        Images in memory are copied; those in files stay there.
        """
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return dataclasses.replace(
            self, images=self.images[index] if isinstance(self.images, np.ndarray) else self.images.take(index),
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index], files=tuple(self.files[i] for i in index))

    def digests(self) -> np.ndarray:
        """Returns uint8 [N,16], BLAKE2b of each image's pixels: equal pixels, equal digest, wherever they lie."""
        return pixel_digests(self.images) if isinstance(self.images, np.ndarray) else self.images.digests

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) over shape, dtype, labels and `digests`: equal data, equal fingerprint.

        So it does not say whether the images are in memory, and costs those that are not no reading.
        """
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.digests()).data)
        return digest.hexdigest()


def pixel_digests(images: np.ndarray) -> np.ndarray:
    """Returns uint8 [N,16], BLAKE2b of the bytes of each of N images."""
    found = b"".join(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images)
    return np.frombuffer(found, np.uint8).reshape(-1, 16)


def default_names(num_classes: int) -> tuple[str, ...]:
    """Returns the 8 blood cells' names for 8 classes, else class_0, class_1, ..."""
    return CELL_NAMES if num_classes == len(CELL_NAMES) else tuple(f"class_{i}" for i in range(num_classes))


def check_labels(labels: np.ndarray, where: str,
                 class_names: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Checks the values of whole-number labels.

    Args:
      labels: [N] of any integer dtype.
      where: file (and key), for the error's line.
      class_names: the classes there are, where they are known already (from the training part or a checkpoint): a label
        beyond them is an error, a class without an image is not. None: the classes are 0..max, each with an image.

    Returns:
      The labels as int64 [N], and the class names.

    Raises:
      InputError: no label at all, a negative or too large one, or a class without an image.
    """
    if not len(labels):
        raise InputError(f"{where}: expected at least one image, received none; try another file")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise InputError(f"{where}: expected labels from 0 up, received {low} at index {int(labels.argmin())}; "
                         "try numbering the classes 0, 1, 2, ...")
    if class_names is not None:
        if high >= len(class_names):
            raise InputError(f"{where}: expected labels 0..{len(class_names) - 1} ({len(class_names)} classes), "
                             f"received {high} at index {int(labels.argmax())}; try data with the same classes")
        return labels.astype(np.int64), tuple(class_names)
    present = np.unique(labels)  # sorted; not bincount, which takes memory in proportion to the largest label
    if len(present) != high + 1:
        gaps = np.flatnonzero(present != np.arange(len(present), dtype=present.dtype))
        empty = int(gaps[0])
        name = f" ({default_names(high + 1)[empty]})" if high + 1 == len(CELL_NAMES) else ""
        raise InputError(f"{where}: expected an image of every class 0..{high}, received none of class {empty}{name}; "
                         "try numbering the classes without gaps")
    return labels.astype(np.int64), default_names(high + 1)


def check_left_out(left_out: Sequence[tuple[str, str]], total: int, max_bad_images: int, where: str) -> None:
    """Checks how many images of a source cannot be used.

    Args:
      left_out: name and reason of each.
      total: the number of images that the source has, these among them.
      max_bad_images: how many may be left out.
      where: folder or pattern, for the error's line.

    Raises:
      InputError: more than that, or all of them; the line counts them and names the first three.
    """
    if not left_out or len(left_out) <= min(max_bad_images, total - 1):
        return
    limit = f" but for {max_bad_images} (--max_bad_images)" if max_bad_images else ""
    more = f" or --max_bad_images={len(left_out)}" if len(left_out) < total else ""
    raise InputError(f"{where}: expected whole images{limit}, received {len(left_out):,} of {total:,} that cannot be "
                     f"used, first {first_left_out(left_out)}; try removing or replacing them{more}")


def first_left_out(left_out: Sequence[tuple[str, str]], most: int = 3) -> str:
    """Returns the first names with their reasons as one line: "a.png (the file is empty), b.png (...), ..."."""
    named = [f"{name} ({reason})" for name, reason in left_out[:most]]
    return ", ".join(named + ["..."] * (len(left_out) > most))


def check_size(shape: tuple[int, ...], where: str) -> None:
    """Checks [N,H,W,3] before memory is taken: sides in 1..MAX_SIDE and less than the free memory, or InputError."""
    n, height, width, channels = shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InputError(f"{where}: expected images of 1 to {MAX_SIDE} pixels a side, received {height}x{width}; "
                         "try cropping one cell an image")
    needed, free = n * height * width * channels, _free_memory()
    if free is not None and needed > free:
        raise InputError(f"{where}: expected images that fit the free memory of {free / 2**30:.1f} GiB, received {n} "
                         f"of {height}x{width} ({needed / 2**30:.1f} GiB); try fewer or smaller images")


CACHES = ("auto", "memory", "device", "none")  # where decoded images are kept: `--cache`
_MEMORY_SHARE = 4  # "auto" keeps a set that takes less than a fourth of the free memory


def keeps_in_memory(shape: tuple[int, ...], cache: str, where: str) -> bool:
    """Returns whether images [N,H,W,3] that could stay in files are to be held in memory, before memory is taken.

    Args:
      shape: of the images.
      cache: one of `CACHES`.
      where: file or pattern, for the error's line.

    Raises:
      InputError: sides beyond MAX_SIDE, or "memory" or "device" and more than there is free.
    """
    asked = cache in ("memory", "device")  # on its way to a device a set is in memory too
    check_size(shape if asked else (1, *shape[1:]), where)
    free = _free_memory()
    return asked or (cache == "auto" and (free is None or math.prod(shape) * _MEMORY_SHARE < free))


def _free_memory() -> int | None:
    """Bytes that can be taken without swapping, or None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
