"""Images that stay in TFRecord shards and are read, one by one and in any order, when somebody looks at them.

A table says where each image lies: 41 bytes an image are all that a set takes, however many pixels it has. Every read
is held to the checksum that the image had when the shards were scanned. Scanning shards, and refusing what they should
not hold, is `tfrecord`'s business; the order of an epoch is `pipeline`'s.
"""

import math
import os
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from bloodcell.data.decode import decode
from bloodcell.data.resize import square
from bloodcell.errors import InputError

# Where an image lies: shard, position and length of its encoded bytes, their CRC-32 (zlib's), whether TensorFlow is
# given these bytes as they are (`plain`), and BLAKE2b (16 bytes) of its pixels in their final size.
ROW = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("crc", "<u4"), ("plain", "?"),
                ("digest", "u1", 16)])

CORES = os.cpu_count() or 1
_GROUP = 32  # images decoded by one call of the stream's stage, at most: what a core does at a time
_CHUNK = 64  # images decoded by one call when they are asked for by index
_OPEN_FILES = 256  # shards kept open; systems allow a process about a thousand files


class Shards:
    """The files of a set, read at any position by any number of threads.

    Files that were deleted or replaced after they were opened go on giving what they held.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on, fewer where the file ends; raises OSError or tf.errors.OpError."""
        path = self.paths[shard]
        if "://" in path:  # a file system of TensorFlow's, which has no reading at a position
            with tf.io.gfile.GFile(path, "rb") as remote:
                remote.seek(offset)
                return bytes(remote.read(length))
        file = self._open.get(shard)
        if file is None:
            with self._lock:
                file = self._open.get(shard)
                if file is None and len(self._open) < _OPEN_FILES:
                    file = self._open[shard] = os.open(path, os.O_RDONLY)
        if file is not None:
            return os.pread(file, length, offset)
        with open(path, "rb") as briefly:
            briefly.seek(offset)
            return briefly.read(length)


def _close(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def is_plain(data: bytes) -> bool:
    """Returns whether TensorFlow decodes these bytes as `decode` does.

    It does not apply a BMP's palette, refuses what stands behind a BMP's pixels, and inflates a PNG's texts and
    profiles, however large they turn out; such files are brought into another form first (`plain`).
    """
    if data.startswith(b"\x89PNG"):
        return not any(name in data for name in (b"zTXt", b"iTXt", b"iCCP"))
    return not data.startswith(b"BM")


def plain(data: bytes) -> bytes:
    """Returns a PNG with the pixels that `decode` gives; raises ValueError with its reason where it gives none."""
    image = decode(data)
    if isinstance(image, str):
        raise ValueError(image)
    with tf.device("CPU:0"):
        return bytes(tf.io.encode_png(image, compression=1).numpy())


class Decoder:
    """From encoded images to pixels of one size, alike in a graph and outside.

    Args:
      height, width: of the result, in pixels.
      image_size: the side to which images are brought (centred square, bicubic); None: they have that size already.
    """

    def __init__(self, height: int, width: int, image_size: int | None) -> None:
        self.shape = (height, width, 3)
        self._image_size = image_size
        self._all = tf.function(self._map, autograph=False, input_signature=[tf.TensorSpec([None], tf.string)])

    def one(self, data: tf.Tensor) -> tf.Tensor:
        """Returns uint8 [H,W,3] of one encoded jpg or png; for use in a graph."""
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        return tf.ensure_shape(image if self._image_size is None else square(image, self._image_size), self.shape)

    def __call__(self, data: Sequence[bytes]) -> np.ndarray:
        """Returns uint8 [N,H,W,3] of N encoded images; raises tf.errors.OpError where one cannot be decoded."""
        with tf.device("CPU:0"):
            return np.asarray(self._all(tf.constant(list(data), tf.string, [len(data)])).numpy())

    def _map(self, data: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(self.one, data, parallel_iterations=2 * CORES,
                         fn_output_signature=tf.TensorSpec(self.shape, tf.uint8))


class RecordImages:
    """Images as an array that is not in memory: uint8 [N,H,W,3].

    Indexing by a whole number, a slice, whole numbers [M] or bool [N] reads, checks and decodes those images and gives
    an `ndarray`; `take` gives another such array without reading anything.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shards: Shards, table: np.ndarray, decoder: Decoder) -> None:
        """Takes what a scan found; `table` is [N] of `ROW`."""
        self._shards, self._table, self._decoder = shards, table, decoder

    def __len__(self) -> int:
        return len(self._table)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, height, width, 3."""
        return (len(self._table), *self._decoder.shape)

    @property
    def digests(self) -> np.ndarray:
        """uint8 [N,16]: BLAKE2b of each image's pixels, taken when the shards were scanned."""
        return self._table["digest"]

    def take(self, index: np.ndarray) -> "RecordImages":
        """Returns the images at `index` (whole numbers [M], or bool [N]); they stay where they are."""
        return RecordImages(self._shards, self._table[index], self._decoder)

    def __getitem__(self, index: "int | np.integer | slice | np.ndarray | Sequence[int]") -> np.ndarray:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._decoder(self.encoded(rows[None]))[0]
        images = np.empty((len(rows), *self._decoder.shape), np.uint8)
        for start in range(0, len(rows), _CHUNK):
            images[start:start + _CHUNK] = self._decoder(self.encoded(rows[start:start + _CHUNK]))
        return images

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images in TFRecords: expected copy=True or None, there is no array to share")
        images = self[:]
        return images if dtype is None else images.astype(dtype, copy=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start:start + _CHUNK]

    def encoded(self, index: np.ndarray) -> list[bytes]:
        """Returns the images at `index` (whole numbers [M]) as jpg or png files.

        Raises:
          InputError: a shard is gone, or no longer holds what it held when it was scanned.
        """
        files = []
        for shard, offset, length, crc, whole, _ in self._table[index].tolist():
            path = self._shards.paths[shard]
            try:
                data = self._shards.read(shard, offset, length)
            except (OSError, tf.errors.OpError) as error:
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise InputError(f"{path}: expected a file that stays readable during the run, received: {reason}; "
                                 "try again when it is there, the run goes on") from None
            if len(data) != length or zlib.crc32(data) != crc:
                raise InputError(f"{path}: expected the bytes that were there when the run began, received others at "
                                 f"{offset}; the file has changed or the disk fails, try copying it again")
            files.append(data if whole else plain(data))
        return files

    def batches(self, index: np.ndarray) -> tf.data.Dataset:
        """Returns batches of images, read and decoded on all cores while others are in use.

        Args:
          index: int64 [steps, B], steps from 1.

        Returns:
          `steps` elements uint8 [B,H,W,3] in the order of `index`. A shard that is gone or has changed ends the
          iteration with a tf.errors.OpError whose message holds that of `encoded`.
        """
        batch = index.shape[1]
        group = math.gcd(batch, _GROUP)

        def read(rows: np.ndarray) -> np.ndarray:
            return np.array(self.encoded(rows), object)

        @tf.autograph.experimental.do_not_convert
        def load(rows: tf.Tensor) -> tf.Tensor:
            data = tf.ensure_shape(tf.numpy_function(read, [rows], tf.string), [group])
            # unrolled: a third less work than one image an element
            return tf.stack([self._decoder.one(each) for each in tf.unstack(data)])

        groups = tf.data.Dataset.from_tensor_slices(index.reshape(-1, group))
        # a fixed number of calls: an automatic one grows, and with it the memory
        groups = groups.map(load, num_parallel_calls=CORES, deterministic=True)
        if group == batch:
            return groups
        groups = groups.batch(batch // group, drop_remainder=True)
        return groups.map(tf.autograph.experimental.do_not_convert(
            lambda images: tf.reshape(images, (batch, *self._decoder.shape))))
