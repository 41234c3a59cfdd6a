"""Goes through TFRecord shards once: which records there are, which of them can be used, and where their images lie.

Nothing in a shard is believed. The length of each record has to pass its checksum before it is followed, its content
before it is parsed (TensorFlow does that), and each image is decoded once here, so that reading it again later cannot
fail unless the file changes. Names of files, classes and sets are `tfrecord`'s business.

The format (TensorFlow, `tensorflow/core/lib/io/record_writer.h`): length uint64, its masked CRC-32C uint32, content,
its masked CRC-32C uint32, all little-endian.
"""

import array
import dataclasses
import hashlib
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import UnequalSizes, keeps_in_memory, pixel_digests
from bloodcell.data.decode import MAX_BYTES, decode, header
from bloodcell.data.records import ROW, Decoder, RecordImages, Shards, is_plain, plain
from bloodcell.errors import InputError, shown

_AROUND = 16  # bytes of a record beside its content
_CHUNK = 64  # records read and decoded at a time, at most
_CHUNK_BYTES = 2**26  # their bytes, at most
_MOST_LOST = 2**24  # images that the rest of a shard is said to have held, at most

_BYTES, _INTEGERS = "bytes_list", "int64_list"
_KINDS = {_BYTES: "bytes", _INTEGERS: "whole numbers", "float_list": "floats"}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a scan found, an entry an image that can be used.

    Attributes:
      images: uint8 [N,H,W,3], in memory or in the shards.
      labels: int64 [N]; zeros where labels were not asked for.
      positions: int64 [N], which record of the source each is, the others counted too.
      texts: image/class/text, "" where there is none.
      files: image/filename, "<shard>#<record>" where there is none.
      left_out: name and reason of each record that cannot be used.
      total: records in all.
    """

    images: np.ndarray | RecordImages
    labels: np.ndarray
    positions: np.ndarray
    texts: list[str]
    files: list[str]
    left_out: list[tuple[str, str]]
    total: int


@dataclasses.dataclass(frozen=True)
class _Frames:
    """The records of one shard by their lengths: offsets and lengths (of the content) int64 [R]; what is lost behind.

    lost: how many records cannot be found, an estimate where a length is damaged; reason: why.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    lost: int
    reason: str


@dataclasses.dataclass(frozen=True)
class _Record:
    """A record's features, and where its image begins in its content."""

    image: bytes
    start: int
    label: int
    text: str
    file: str


def scan(paths: Sequence[str], *, labelled: bool, image_size: int | None, cache: str, where: str) -> Found | None:
    """Reads every record of the shards, in order.

    Args:
      paths: the shards.
      labelled: whether a record must have image/class/label.
      image_size: the side to which images are brought; None: all must have one size.
      cache: `dataset.CACHES`: whether images are kept in memory or left where they are.
      where: what the user typed, for the error's line.

    Returns:
      What was found; `images` has no row where no record can be used. None: there is no record at all.

    Raises:
      InputError: a file that cannot be read at all, images of unequal size, or more of them than memory holds.
    """
    frames = [_frames(path) for path in paths]
    total = sum(len(each.offsets) + each.lost for each in frames)
    if not total:
        return None
    scanned = _Scan(Shards(paths), most=sum(len(each.offsets) for each in frames), labelled=labelled,
                    image_size=image_size, cache=cache, where=where)
    for shard, each in enumerate(frames):
        scanned.add_shard(shard, each)
    return scanned.found(total)


class _Scan:
    """Collects `Found`, chunk by chunk."""

    def __init__(self, shards: Shards, *, most: int, labelled: bool, image_size: int | None, cache: str,
                 where: str) -> None:
        self._shards, self._labelled, self._image_size = shards, labelled, image_size
        self._cache, self._where = cache, where
        self._most = most
        self._decoder: Decoder | None = None
        self._kept: np.ndarray | None = None  # pixels, where they stay in memory
        self._first = ""
        self._table = np.zeros(most, ROW)
        self._labels, self._positions = np.zeros(most, np.int64), np.zeros(most, np.int64)
        self._texts: list[str] = []
        self._files: list[str] = []
        self._left_out: list[tuple[str, str]] = []
        self._position = 0

    def add_shard(self, shard: int, frames: _Frames) -> None:
        path = self._shards.paths[shard]
        name = shown(path.rsplit("/", 1)[-1])
        chunk: list[tuple[int, str, _Record]] = []
        size = 0
        for number, content in enumerate(_contents(path, frames)):
            default = f"{name}#{number}"
            record = content if isinstance(content, str) else _parsed(content, self._labelled, default)
            reason = record if isinstance(record, str) else self._look(record)
            if isinstance(record, str) or reason:
                self._left_out.append((default if isinstance(record, str) else record.file, reason))
            else:
                chunk.append((number, default, record))
                size += len(record.image)
            if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
                self._add(shard, frames, chunk)
                chunk, size = [], 0
        self._add(shard, frames, chunk)
        for number in range(len(frames.offsets), len(frames.offsets) + frames.lost):
            self._left_out.append((f"{name}#{number}", frames.reason))
        self._position += len(frames.offsets) + frames.lost

    def _look(self, record: _Record) -> str:
        """Reads an image's header; the first good one says what the set is. Returns the reason against it, or ""."""
        about = header(record.image)
        if isinstance(about, str):
            return about
        _, height, width = about
        if self._image_size is not None:
            height = width = self._image_size
        if self._decoder is None:
            if self._image_size is None and isinstance(reason := decode(record.image), str):
                return reason  # what is damaged does not say what size the others have
            self._decoder = Decoder(height, width, self._image_size)
            self._first = f"{record.file} ({height}x{width})"
            if keeps_in_memory((self._most, height, width, 3), self._cache, self._where):
                self._kept = np.empty((self._most, height, width, 3), np.uint8)
        if (height, width, 3) != self._decoder.shape:
            if isinstance(reason := decode(record.image), str):
                return reason
            raise UnequalSizes(f"{self._where}: expected images of one size, received {self._first} and {record.file} "
                             f"({height}x{width}); try --image_size")
        return ""

    def _add(self, shard: int, frames: _Frames, chunk: list[tuple[int, str, _Record]]) -> None:
        """Decodes records of one shard; those that can be decoded are remembered."""
        good = []
        pixels = []
        for number, default, record in chunk:
            try:
                good.append((number, default, record, record.image if is_plain(record.image) else plain(record.image)))
            except ValueError as error:
                self._left_out.append((record.file, str(error)))
        if not good or self._decoder is None:
            return
        try:
            images = self._decoder([data for *_, data in good])
        except tf.errors.OpError:  # one of them is damaged: look for it
            whole = []
            for each in good:
                try:
                    pixels.append(self._decoder([each[-1]])[0])
                    whole.append(each)
                except tf.errors.OpError:
                    reason = decode(each[2].image)
                    self._left_out.append((each[2].file, reason if isinstance(reason, str) else "it cannot be decoded"))
            good = whole
            images = np.stack(pixels) if pixels else np.zeros((0, *self._decoder.shape), np.uint8)
        start = len(self._files)
        stop = start + len(good)
        if self._kept is not None:
            self._kept[start:stop] = images
        numbers = np.array([number for number, *_ in good], np.int64)
        records = [record for _, _, record, _ in good]
        rows = self._table[start:stop]
        rows["shard"] = shard
        rows["offset"] = frames.offsets[numbers] + _AROUND - 4 + [record.start for record in records]
        rows["length"] = [len(record.image) for record in records]
        rows["crc"] = [zlib.crc32(record.image) for record in records]
        rows["plain"] = [data is record.image for _, _, record, data in good]
        rows["digest"] = pixel_digests(images)
        self._labels[start:stop] = [record.label for record in records]
        self._positions[start:stop] = self._position + numbers
        self._texts += [sys.intern(record.text) for record in records]  # a few words, again and again
        self._files += [record.file for record in records]

    def found(self, total: int) -> Found:
        count = len(self._files)
        images: np.ndarray | RecordImages = np.zeros((0, 1, 1, 3), np.uint8)
        if self._decoder is not None:
            images = RecordImages(self._shards, self._table[:count].copy(), self._decoder)
            if self._kept is not None:
                images = self._kept[:count]
        return Found(images, self._labels[:count], self._positions[:count], self._texts, self._files, self._left_out,
                     total)


class Records:
    """The encoded images of shards one after the other, for who looks at each once: none is decoded or kept here.

    What is lost behind a damaged length counts as one record, whose reason says about how many it was.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Follows the lengths of all records; raises InputError where a file cannot be read at all."""
        self._shards = [(path, _frames(path)) for path in paths]

    def __len__(self) -> int:
        return sum(len(frames.offsets) + bool(frames.lost) for _, frames in self._shards)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the shards' names and their records' lengths."""
        digest = hashlib.sha256()
        for path, frames in self._shards:
            digest.update(f"{os.path.basename(path)} {len(frames.lengths)} {frames.lost}\n".encode(errors="replace"))
            digest.update(frames.lengths.astype("<i8").tobytes())
        return digest.hexdigest()

    def read(self, start: int = 0) -> Iterator[tuple[str, bytes | str]]:
        """Yields image/filename (or "<shard>#<record>") and the encoded image, or the reason why there is none.

        Args:
          start: the record to begin with.

        Raises:
          InputError: a file that can no longer be read.
        """
        for path, frames in self._shards:
            name, count = shown(path.rsplit("/", 1)[-1]), len(frames.offsets)
            rest = dataclasses.replace(frames, offsets=frames.offsets[start:], lengths=frames.lengths[start:])
            for number, content in enumerate(_contents(path, rest), min(start, count)):
                record = content if isinstance(content, str) else _parsed(content, False, f"{name}#{number}")
                yield (f"{name}#{number}", record) if isinstance(record, str) else (record.file, record.image)
            if frames.lost and start <= count:
                yield f"{name}#{count}", frames.reason
            start = max(0, start - count - bool(frames.lost))


# ---- Records ---------------------------------------------------------------------------------------------------------


def _frames(path: str) -> _Frames:
    """Follows the lengths of a shard's records; nothing else is read."""
    offsets, lengths = array.array("q"), array.array("q")
    lost, reason = 0, ""
    try:
        if "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for a writer
            raise InputError(f"{path}: expected a TFRecord file, received a folder, a pipe or a device; "
                             "try another pattern")
        size = int(tf.io.gfile.stat(path).length)
        with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb", buffering=0) as file:
            position = 0
            while position < size:
                file.seek(position)
                head = file.read(12)
                if len(head) < 12:
                    lost, reason = 1, "the shard is damaged: it ends inside this record"
                    break
                length, checksum = struct.unpack("<QI", head)
                if _masked_crc32c(head[:8]) != checksum:
                    # no way leads to the next record; as many as these bytes hold at the length of those before
                    usual = sum(lengths) / len(lengths) + _AROUND if lengths else size - position
                    lost = min(max(1, round((size - position) / usual)), _MOST_LOST)
                    reason = (f"the shard is damaged: this record's length is wrong, and the {size - position:,} bytes "
                              f"from it on are lost, about {lost:,} images")
                    break
                if position + _AROUND + length > size:
                    lost, reason = 1, "the shard is damaged: it ends inside this record"
                    break
                offsets.append(position)
                lengths.append(length)
                position += _AROUND + length
    except (OSError, tf.errors.OpError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise InputError(f"{path}: expected a TFRecord file that can be read, received: {why}; "
                         "try another file") from None
    return _Frames(np.array(offsets, np.int64), np.array(lengths, np.int64), lost, reason)


def _contents(path: str, frames: _Frames) -> Iterator[bytes | str]:
    """Yields each record's content, or the reason why it cannot be had, in order."""
    number, count = 0, len(frames.offsets)
    while number < count:
        if frames.lengths[number] > MAX_BYTES:
            yield f"it has {int(frames.lengths[number]):,} bytes, of at most {MAX_BYTES:,}"
            number += 1
            continue
        large = np.flatnonzero(frames.lengths[number:] > MAX_BYTES)
        stop = number + int(large[0]) if len(large) else count
        batch = int(min(_CHUNK, max(1, _CHUNK_BYTES // max(1, int(frames.lengths[number:stop].max())))))
        try:
            for contents in _records(path, int(frames.offsets[number]), stop - number).batch(batch).prefetch(1):
                for content in contents.numpy():
                    yield content
                    number += 1
        except tf.errors.DataLossError:  # somewhere in the next batch, behind records that are whole
            try:
                for content in _records(path, int(frames.offsets[number]), stop - number).as_numpy_iterator():
                    yield content
                    number += 1
            except tf.errors.DataLossError:
                yield "it is damaged: its checksum is wrong"
                number += 1
        except tf.errors.OpError as error:
            raise InputError(f"{path}: expected a TFRecord file that can be read, received: "
                             f"{' '.join(error.message.split())[:160]}; try copying it again") from None


def _records(path: str, offset: int, count: int) -> tf.data.Dataset:
    """The content of `count` records from an offset on; TensorFlow checks the checksums."""
    def read(start: tf.Tensor) -> tf.data.Dataset:
        # `tf.data.TFRecordDataset` has no argument for the offset that its op takes
        variant = tf.raw_ops.TFRecordDatasetV2(filenames=[path], compression_type="", byte_offsets=start[tf.newaxis],
                                               buffer_size=tf.constant(2**18, tf.int64), metadata="")
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))

    with tf.device("CPU:0"):
        # within a function, as the op (TensorFlow 2.21) cannot be written into the graph that tf.data optimizes
        return tf.data.Dataset.from_tensors(tf.constant(offset, tf.int64)).flat_map(read).take(count)


def _parsed(content: bytes, labelled: bool, default: str) -> _Record | str:
    """Returns a record's features, or the reason why they cannot be used."""
    try:
        features = tf.train.Example.FromString(content).features.feature
    except Exception:  # protobuf's own kind, whose package is TensorFlow's requirement and not ours
        return "it is no tf.train.Example"
    values: dict[str, Any] = {}
    for name, kind, needed in (("image/encoded", _BYTES, True), ("image/class/label", _INTEGERS, labelled),
                               ("image/class/text", _BYTES, False), ("image/filename", _BYTES, False)):
        found = features[name].WhichOneof("kind") if name in features else None
        if found is None or (name == "image/class/label" and not labelled):
            if needed:
                return f"it has no {name}"
            values[name] = 0 if kind == _INTEGERS else b""
            continue
        if found != kind:
            return f"its {name} holds {_KINDS[found]}, not {_KINDS[kind]}"
        held = getattr(features[name], kind).value
        if len(held) != 1:
            return f"its {name} holds {len(held)} values, not one"
        values[name] = held[0]
    image = values["image/encoded"]
    return _Record(image, content.index(image), int(values["image/class/label"]),
                   shown(values["image/class/text"].decode(errors="surrogateescape")),
                   shown(values["image/filename"].decode(errors="surrogateescape")) or default)


# ---- CRC-32C: Castagnoli's polynomial, reflected; masked as TFRecord files have it -----------------------------------


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        rest = byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
        table.append(rest)
    return table


_CRC32C = _crc32c_table()


def _masked_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
