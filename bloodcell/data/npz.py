"""Reads `.npz` files: `images` + `labels`, or MedMNIST's six keys (train_images, train_labels, val_..., test_...).

Every header inside the zip is checked against the zip's own sizes and the free memory before an array is read, and
nothing is ever unpickled. Other array files, and downloading, do not belong here.
"""

import contextlib
import dataclasses
import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from bloodcell.data.dataset import ImageSet, check_labels, check_size
from bloodcell.errors import InputError

PARTS = ("train", "val", "test")

_HEADER_BYTES = 16_384  # of an array's head that are read; NumPy itself takes headers up to 10,000
_DEFLATE_LIMIT = 1032  # deflate cannot shrink further than 1032 to 1 (zlib's technical notes)
_KEYS = "images and labels, or MedMNIST's train_images, train_labels, val_... and test_..."


@dataclasses.dataclass(frozen=True)
class _Array:
    """What one array's header says: nothing of the data has been read."""

    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype


def parts(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the parts that the file itself holds: ("train", "val", "test") or fewer of MedMNIST's keys, else ()."""
    with _reading(path):
        keys = _keys(path)
    if "images" in keys:
        return ()
    return tuple(part for part in PARTS if f"{part}_images" in keys)


def load(path: pathlib.Path, *, part: str = "train", labelled: bool = True,
         class_names: tuple[str, ...] | None = None, origin: str = "") -> ImageSet:
    """Reads the images of a file.

    Args:
      path: the file.
      part: which of MedMNIST's parts; a file with `images` is one whole and is given whatever the part.
      labelled: whether labels are read; without, only the images' key has to be there.
      class_names: the classes there are, where they are known already (see `check_labels`).
      origin: what the user typed; the path where empty.

    Returns:
      The set. Peak memory is one copy of the images (two where the file has them in Fortran order).

    Raises:
      InputError: the file is missing, empty, damaged, pickled or too large, lacks the keys, or its arrays are not uint8
        [N,H,W,3] images and [N] or [N,1] whole-number labels of the same length, without gaps from 0 up.
    """
    with _reading(path):
        keys = _keys(path)
        prefix = "" if "images" in keys else f"{part}_"
        image_key, label_key = f"{prefix}images", f"{prefix}labels"
        wanted = [image_key, label_key] if labelled else [image_key]
        if labelled and prefix and class_names is None and part != "train" and "train_labels" in keys:
            wanted.append("train_labels")  # the training part says what classes there are
        missing = [key for key in wanted if key not in keys]
        if missing:
            found = ", ".join(keys) if len(keys) <= 12 else ", ".join(keys[:12]) + f" and {len(keys) - 12} more"
            raise InputError(f"{path}: expected the keys {_KEYS}, received {found or 'none'} (no {missing[0]}); "
                             "try renaming the arrays with np.savez")
        arrays = {key: _header(path, key) for key in wanted}
        n = _check_images(arrays[image_key], f"{path}: {image_key}")
        for key in wanted[1:]:
            _check_label_array(arrays[key], n if key == label_key else None, f"{path}: {key}")
        with np.load(path, allow_pickle=False) as data:
            # labels first: a wrong label is found before the images take memory
            labels = None
            names = tuple(class_names or ())
            if labelled:
                if "train_labels" in wanted[2:]:
                    names = check_labels(data[arrays["train_labels"].entry].reshape(-1), f"{path}: train_labels")[1]
                labels, names = check_labels(data[arrays[label_key].entry].reshape(-1), f"{path}: {label_key}",
                                             names or None)
            images = np.ascontiguousarray(data[arrays[image_key].entry])
    files = tuple(f"{path.name}#{index}" for index in range(n))
    return ImageSet(images, labels, np.arange(n, dtype=np.int64), names, origin or str(path), files)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what zipfile, zlib and NumPy raise over a bad file into one line."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a .npz file, received a name that does not exist; try its full "
                         "path") from None
    except MemoryError:
        raise InputError(f"{path}: expected images that fit in memory; try fewer or smaller images") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: expected a whole .npz file, received one that cannot be read ({reason}); "
                         "try copying or writing it again") from None


def _keys(path: pathlib.Path) -> list[str]:
    if path.is_dir():
        raise InputError(f"{path}: expected a .npz file, received a folder; try the file inside it")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected a .npz file, received an empty one; try copying or writing it again")
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: expected a .npz file, received a single .npy array; try np.savez(images=, labels=)")
    with zipfile.ZipFile(path) as archive:
        return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


def _header(path: pathlib.Path, key: str) -> _Array:
    where = f"{path}: {key}"
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{key}.npy")
        with archive.open(entry) as file:
            # only the head is read: a header that claims to be 4 GB long must not be given 4 GB
            head = io.BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(head)
    else:
        raise InputError(f"{where}: expected a plain array, received .npy format {version}; try np.savez")
    if dtype.hasobject:
        raise InputError(f"{where}: expected an array of numbers, received pickled Python objects, which are never "
                         "loaded; try np.stack(images).astype('uint8')")
    size = head.tell() + int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
    room = path.stat().st_size
    packed = entry.file_size if entry.compress_type == zipfile.ZIP_STORED else entry.compress_size
    possible = room if entry.compress_type == zipfile.ZIP_STORED else _DEFLATE_LIMIT * entry.compress_size + 64
    if (min(shape, default=0) < 0 or size != entry.file_size or packed > room
            or (entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and entry.file_size > possible)):
        raise InputError(f"{where}: expected the {entry.file_size} bytes that the zip holds, received a header that "
                         f"claims {dtype} {tuple(shape)}; the file is damaged, try writing it again")
    return _Array(entry.filename, tuple(shape), dtype)


def _check_images(array: _Array, where: str) -> int:
    shape, dtype = array.shape, array.dtype
    received = f"received {dtype} {list(shape)}"
    if dtype != np.uint8:
        fix = "images.astype('uint8') in 0..255" + (" (times 255 if they are in 0..1)" if dtype.kind == "f" else "")
        raise InputError(f"{where}: expected uint8 [N,H,W,3], {received}; try {fix}")
    if len(shape) in (2, 3) or (len(shape) == 4 and shape[-1] == 1):
        raise InputError(f"{where}: expected colour images uint8 [N,H,W,3], {received}; grey images must be repeated "
                         "to 3 channels, try np.repeat(images.reshape(N, H, W, 1), 3, -1)")
    if len(shape) != 4 or shape[-1] != 3:
        fix = "images[..., :3]" if len(shape) == 4 and shape[-1] == 4 else "np.transpose to [N,H,W,3]"
        raise InputError(f"{where}: expected uint8 [N,H,W,3], {received}; try {fix}")
    if not shape[0]:
        raise InputError(f"{where}: expected at least one image, received none; try another file")
    check_size(shape, where)
    return shape[0]


def _check_label_array(array: _Array, n: int | None, where: str) -> None:
    shape, dtype = array.shape, array.dtype
    if dtype.kind not in "iu":
        raise InputError(f"{where}: expected whole numbers (any integer dtype), received {dtype} {list(shape)}; "
                         "try labels.astype('int64')")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InputError(f"{where}: expected [N] or [N,1], received {list(shape)}; one-hot labels become numbers by "
                         "argmax, try labels.argmax(1)")
    if n is not None and shape[0] != n:
        raise InputError(f"{where}: expected one label for each of {n} images, received {shape[0]}; "
                         "try writing both from the same list")
