"""Reads `.npz` files: `images` + `labels`, or MedMNIST's six keys (train_images, train_labels, val_..., test_...).

The zip's directory and every array's header are checked against the file's size and the free memory before an array is
read. Nothing is ever unpickled, nor written under a name that the zip holds. Other array files, and downloading, do not
belong here.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from bloodcell.data.dataset import ImageSet, check_labels, check_size
from bloodcell.errors import InputError, shown

PARTS = ("train", "val", "test")

_HEADER_BYTES = 16_384  # of an array's head that are read; NumPy itself takes headers up to 10,000
_DEFLATE_LIMIT = 1032  # deflate cannot shrink further than 1032 to 1 (zlib's technical notes)
_BOMB_BYTES, _BOMB_RATIO = 2**28, 100  # pictures shrink to a third or a half; what is larger and shrinks more is none
_DIRECTORY_BYTES = 2**20  # of a zip's directory, which zipfile reads at once; an array takes about 60
_MOST_LABELS = 2**26
_PIECE_BYTES = 2**20  # of images that are read one after the other

# An array's header as NumPy and others write it: a Python dictionary, of which nothing else is let through to NumPy's
# parser, for which a deep or broken expression is hard work. Each piece matches in one way only, so this is quick.
_SHAPE = r"\(\s*(?:-?\d{1,40}\s*(?:,\s*-?\d{1,40}\s*){0,31},?\s*)?\)"
_ITEM = (r"(?:'descr'\s*:\s*'[<>|=]?[A-Za-z]\d{0,9}(?:\[[a-z]{1,2}\])?'|'fortran_order'\s*:\s*(?:True|False)|"
         rf"'shape'\s*:\s*{_SHAPE})")
_ARRAY_HEADER = re.compile(rf"\{{\s*{_ITEM}\s*(?:,\s*{_ITEM}\s*){{2}}(?:,\s*)?\}}\s*")
_KEYS = "images and labels, or MedMNIST's train_images, train_labels, val_... and test_..."


@dataclasses.dataclass(frozen=True)
class _Array:
    """What one array's header says: nothing of the data has been read."""

    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # of the data behind the header, in bytes
    fortran: bool


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
        _check_keys(path, keys, wanted)
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
        audited = "audited" in keys and not prefix  # written by `npz_writer`
        if audited and labelled and class_names is None and "class_names" in keys:
            names = _class_names(path, len(names))
    files = tuple(f"{shown(path.name)}#{index}" for index in range(n))
    return ImageSet(images, labels, np.arange(n, dtype=np.int64), names, origin or str(path), files, audited=audited)


class Images:
    """The images of a file in their order, a few at a time, for who looks at each once.

    Attributes:
      shape: N, height, width, 3.
      digest: of their bytes, for people who come back: the zip's checksum and their number.
    """

    def __init__(self, path: pathlib.Path, *, part: str = "test") -> None:
        """Takes a file and part as `load` does, and reads all bytes once, so that damage is found here.

        Raises:
          InputError: as of `load`, but for images that memory does not hold.
        """
        self._path, self._part = path, part
        with _reading(path):
            keys = _keys(path)
            key = "images" if "images" in keys else f"{part}_images"
            _check_keys(path, keys, [key])
            self._array = _header(path, key)
            # images in Fortran order lie across the file, and are read whole
            _check_images(self._array, f"{path}: {key}", streamed=not self._array.fortran)
            with zipfile.ZipFile(path) as archive, archive.open(self._array.entry) as file:
                while file.read(_PIECE_BYTES):
                    pass
                checksum = archive.getinfo(self._array.entry).CRC
        self.shape = self._array.shape
        self.digest = f"{checksum:08x} {self.shape}"

    def read(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields images uint8 [H,W,3] from `start` on; raises InputError where the file has changed meanwhile."""
        if self._array.fortran:
            yield from load(self._path, part=self._part, labelled=False).images[start:]
            return
        count, *shape = self.shape
        size = math.prod(shape)
        with _reading(self._path), zipfile.ZipFile(self._path) as archive, archive.open(self._array.entry) as file:
            file.seek(self._array.start + start * size)
            while start < count:
                pieces = min(max(1, _PIECE_BYTES // size), count - start)
                data = file.read(pieces * size)
                if len(data) != pieces * size:
                    raise EOFError("it ends early")
                yield from np.frombuffer(data, np.uint8).reshape(pieces, *shape)
                start += pieces


def _check_keys(path: pathlib.Path, keys: list[str], wanted: list[str]) -> None:
    """Checks that a file holds each array that is needed, once."""
    twice = [key for key in wanted if keys.count(key) > 1]
    if twice:
        raise InputError(f"{path}: expected each array once, received {twice[0]} {keys.count(twice[0])} times; try "
                         "writing the file again with np.savez")
    missing = [key for key in wanted if key not in keys]
    if missing:
        found = ", ".join(shown(key[:80]) for key in keys[:12])
        found += f" and {len(keys) - 12} more" if len(keys) > 12 else ""
        raise InputError(f"{path}: expected the keys {_KEYS}, received {found or 'none'} (no {missing[0]}); "
                         "try renaming the arrays with np.savez")


def _class_names(path: pathlib.Path, least: int) -> tuple[str, ...]:
    """The names that the file gives its classes, of which the last may have no image."""
    header = _header(path, "class_names")
    shape, dtype = header.shape, header.dtype
    if dtype.kind != "U" or len(shape) != 1 or not least <= shape[0] <= 65_536 or dtype.itemsize > 4_096:
        raise InputError(f"{path}: class_names: expected a text for each of {least} classes, received {dtype} "
                         f"{list(shape)}; try writing the file again with --mode=audit")
    with np.load(path, allow_pickle=False) as data:
        return tuple(shown(str(name)) for name in data[header.entry])


def arrays(path: pathlib.Path, keys: tuple[str, ...], most_bytes: int) -> dict[str, np.ndarray]:
    """Reads arrays that are no labelled set (masks, say), as carefully as `load` does.

    What shape and dtype they must have is the caller's business.

    Raises:
      InputError: the file is missing, empty, damaged or pickled, lacks a key, or an array takes more than `most_bytes`.
    """
    with _reading(path):
        found = _keys(path)
        missing = [key for key in keys if found.count(key) != 1]
        if missing:
            received = ", ".join(shown(key[:80]) for key in found[:12]) or "none"
            raise InputError(f"{path}: expected the keys {', '.join(keys)}, received {received}; "
                             f"try np.savez({', '.join(f'{key}={key}' for key in keys)})")
        headers = [_header(path, key) for key in keys]
        for key, header in zip(keys, headers, strict=True):
            size = math.prod(header.shape) * header.dtype.itemsize
            if size > most_bytes:
                raise InputError(f"{path}: {key}: expected at most {most_bytes:,} bytes, received {size:,}; try fewer")
        with np.load(path, allow_pickle=False) as data:
            return {key: np.ascontiguousarray(data[header.entry]) for key, header in zip(keys, headers, strict=True)}


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
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, OSError, RuntimeError,
            NotImplementedError) as error:
        reason = shown(" ".join(str(error).split())[:160]) or type(error).__name__
        raise InputError(f"{path}: expected a whole .npz file, received one that cannot be read ({reason}); "
                         "try copying or writing it again") from None


def _keys(path: pathlib.Path) -> list[str]:
    if path.is_dir():
        raise InputError(f"{path}: expected a .npz file, received a folder; try the file inside it")
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path}: expected a .npz file, received a pipe or a device; try copying it to a file")
    if about.st_size == 0:
        raise InputError(f"{path}: expected a .npz file, received an empty one; try copying or writing it again")
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(max(0, about.st_size - 98))
        end = file.read(98)
    if start.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: expected a .npz file, received a single .npy array; try np.savez(images=, labels=)")
    _check_end(end)
    with zipfile.ZipFile(path) as archive:
        return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


def _check_end(tail: bytes) -> None:
    """Checks a zip's last record (APPNOTE.TXT, 4.3.16 and 4.3.14): it ends the file, and its directory is small.

    Args:
      tail: the file's last 98 bytes: that record (22), behind the locator (20) and the 64-bit record (56) of a large
        file.
    """
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end as a zip does")
    size = struct.unpack_from("<I", tail, len(tail) - 10)[0]
    if len(tail) == 98 and tail[:4] == b"PK\6\6" and tail[56:60] == b"PK\6\7":
        size = struct.unpack_from("<Q", tail, 40)[0]
    if size > _DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"its directory says {size} bytes of entries, for a few arrays")


def _header(path: pathlib.Path, key: str) -> _Array:
    where = f"{path}: {key}"
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{key}.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{where}: expected an array that is stored or deflated, received another compression; "
                             "try np.savez_compressed")
        with archive.open(entry) as file:
            # only the head is read: a header that claims to be 4 GB long must not be given 4 GB
            head = io.BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{where}: expected a plain array, received .npy format {version}; try np.savez")
    start, count = (10, "<H") if version == (1, 0) else (12, "<I")
    length = struct.unpack_from(count, head.getbuffer(), 8)[0]
    text = head.getbuffer()[start:start + min(length, _HEADER_BYTES)].tobytes().decode("latin-1").rstrip()
    if _ARRAY_HEADER.fullmatch(text) is None:
        raise InputError(f"{where}: expected a plain array of numbers, received one whose header is "
                         f"'{shown(text[:60])}'; try np.savez with one dtype an array")
    try:
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except (TypeError, SyntaxError) as error:  # a dtype that there is not
        raise ValueError(f"its header: {error}") from None
    if dtype.hasobject:
        raise InputError(f"{where}: expected an array of numbers, received pickled Python objects, which are never "
                         "loaded; try np.stack(images).astype('uint8')")
    size = head.tell() + int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
    room = path.stat().st_size
    packed = entry.file_size if entry.compress_type == zipfile.ZIP_STORED else entry.compress_size
    possible = room if entry.compress_type == zipfile.ZIP_STORED else _DEFLATE_LIMIT * entry.compress_size + 64
    if min(shape, default=0) < 0 or size != entry.file_size or packed > room or entry.file_size > possible:
        raise InputError(f"{where}: expected the {entry.file_size} bytes that the zip holds, received a header that "
                         f"claims {dtype} {tuple(shape)}; the file is damaged, try writing it again")
    if size > max(_BOMB_BYTES, _BOMB_RATIO * entry.compress_size):
        raise InputError(f"{where}: expected pictures, received {size} bytes packed into {entry.compress_size}, "
                         "which no pictures are; try np.savez if they really are so plain")
    return _Array(entry.filename, tuple(shape), dtype, head.tell(), fortran)


def _check_images(array: _Array, where: str, *, streamed: bool = False) -> int:
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
    check_size((1, *shape[1:]) if streamed else shape, where)
    return shape[0]


def _check_label_array(array: _Array, n: int | None, where: str) -> None:
    shape, dtype = array.shape, array.dtype
    if dtype.kind not in "iu":
        raise InputError(f"{where}: expected whole numbers (any integer dtype), received {dtype} {list(shape)}; "
                         "try labels.astype('int64')")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InputError(f"{where}: expected [N] or [N,1], received {list(shape)}; one-hot labels become numbers by "
                         "argmax, try labels.argmax(1)")
    if shape[0] > _MOST_LABELS:
        raise InputError(f"{where}: expected at most {_MOST_LABELS} labels, received {shape[0]}; try fewer images")
    if n is not None and shape[0] != n:
        raise InputError(f"{where}: expected one label for each of {n} images, received {shape[0]}; "
                         "try writing both from the same list")
