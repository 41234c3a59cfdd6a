"""Writes a set as TFRecord shards that `tfrecord` reads: image/encoded, image/class/label, image/class/text, filename.

A set is there whole or it is not there: the shards get temporary names until all of them are on the disk, and their
numbers of so many (-00000-of-00007), without one of which `tfrecord` reads none. Which images are worth writing does
not belong here.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

SHARD_BYTES = 2**26

_CHUNK = 256  # images encoded ahead of being written
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write(images: ImageSet, folder: pathlib.Path, *, name: str = "images", encoding: str = "png", quality: int = 95,
          shard_bytes: int = SHARD_BYTES, on_images: Callable[[int], None] | None = None) -> list[pathlib.Path]:
    """Writes every image of a set, in order, as `folder`/`name`-00000-of-00007.tfrecord and so on.

    A set of the same name that is there already is replaced. Memory holds a few hundred images at a time, so a set may
    be larger than it.

    Args:
      images: the set; without labels, the records have none.
      folder: is made where it is missing.
      name: what the shards' names begin with.
      encoding: "png" (without loss) or "jpeg".
      quality: of jpeg, 1..100; colour is kept at full resolution.
      shard_bytes: a shard ends with the record that fills it so far.
      on_images: called with the number of images written, again and again.

    Returns:
      The shards.

    Raises:
      InputError: the folder cannot be written, or the disk is full. A set that was there is then still there, unless
        that happened while the new names were given.
    """
    if encoding not in ("png", "jpeg") or not 1 <= quality <= 100 or not _NAME.fullmatch(name) or not len(images):
        raise ValueError(f"expected images, png or jpeg at 1..100 and a plain name, received {len(images)}, "
                         f"{encoding} at {quality} and {name!r}")
    written: list[pathlib.Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f".{name}-*.tmp"):  # of a run that was killed
            stale.unlink()
        records = _records(images, encoding, quality, on_images)
        record: bytes | None = next(records)
        while record is not None:
            written.append(folder / f".{name}-{len(written):05d}.{os.getpid()}.tmp")
            record = _write_shard(written[-1], record, records, shard_bytes)
        return _give_names(written, folder, name)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise InputError(f"cannot write {folder}/{name}-*: {reason}; expected a writable folder with free space, try "
                         "making room or another folder") from None
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _write_shard(path: pathlib.Path, first: bytes, records: Iterator[bytes], most: int) -> bytes | None:
    """Writes `first` and as many of `records` as fill the shard; returns the one that comes after, None at the end."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        record: bytes | None = first
        size = 0
        while record is not None and (not size or size + len(record) <= most):
            writer.write(record)
            size += len(record)
            record = next(records, None)
    _sync(path)
    return record


def _give_names(written: list[pathlib.Path], folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Renames all shards; first those of an older set go, as with some of them left a mixture would look whole."""
    old = re.compile(rf"{re.escape(name)}-\d{{5}}-of-\d{{5}}\.tfrecord")
    for path in sorted(folder.iterdir()):
        if old.fullmatch(path.name):
            path.unlink()
    _sync(folder)
    named = [folder / f"{name}-{number:05d}-of-{len(written):05d}.tfrecord" for number in range(len(written))]
    for temporary, path in zip(written, named, strict=True):
        os.rename(temporary, path)
    _sync(folder)
    return named


def _sync(path: pathlib.Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _records(images: ImageSet, encoding: str, quality: int, on_images: Callable[[int], None] | None) -> Iterator[bytes]:
    """Encodes image by image, a chunk ahead, on all cores."""
    def encode(image: np.ndarray) -> bytes:
        with tf.device("CPU:0"):
            encoded = (tf.io.encode_png(image) if encoding == "png" else
                       tf.io.encode_jpeg(image, format="rgb", quality=quality, chroma_downsampling=False))
        return bytes(encoded.numpy())

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(images), _CHUNK):
            pixels = images.images[start:start + _CHUNK]
            for index, encoded in enumerate(threads.map(encode, pixels), start):
                label = None if images.labels is None else int(images.labels[index])
                yield _example(encoded, label, images.class_names, images.files[index])
            if on_images:
                on_images(min(start + _CHUNK, len(images)))


def _example(encoded: bytes, label: int | None, class_names: tuple[str, ...], file: str) -> bytes:
    feature = {"image/encoded": _of_bytes(encoded), "image/filename": _of_bytes(file.encode())}
    if label is not None:
        feature["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
        feature["image/class/text"] = _of_bytes(class_names[label].encode())
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _of_bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
