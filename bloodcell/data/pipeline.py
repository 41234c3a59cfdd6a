"""Feeds a set to the step: uint8 images in batches of one fixed shape, in an order computed from (seed, epoch).

Nothing is augmented here, and there is no shuffle buffer: an epoch is a permutation of the rows, so any epoch can be
had again, or taken up in the middle, without running those before it. Which rows there are is `rows`' business.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import ImageSet
from bloodcell.data.records import CORES
from bloodcell.data.rows import Rows


def num_batches(n: int, batch_size: int) -> int:
    """Returns how many batches of `batch_size` hold `n` images, the last one padded."""
    return -(-n // batch_size)


# Batches that are ready before they are asked for; of a streamed set they are what it costs in memory.
_WAITING = 4
_ALIGNMENT = 64  # bytes; what TensorFlow's CPU kernels ask of a tensor


def _host_tensor(array: np.ndarray, extra: int = 0, write: Callable[[np.ndarray], None] | None = None) -> tf.Tensor:
    """Returns an eager tensor over one private copy of `array`, and behind it `extra` rows that `write` fills.

    `tf.convert_to_tensor` takes twice the array's size (0.78 GB for the course's 0.38) and does not give it all back;
    memory that is aligned already and handed over by DLPack is used in place, and freed with the tensor.
    """
    shape = (len(array) + extra, *array.shape[1:])
    size = math.prod(shape) * array.dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start:start + size].view(array.dtype).reshape(shape)
    copy[:len(array)] = array
    if write is not None:
        write(copy[len(array):])
    return tf.experimental.dlpack.from_dlpack(copy.__dlpack__())


class Pipeline:
    """Hands out epochs as `tf.data` sets, of one copy of the images in host memory, or of images that stay in files.

    Every element is {"image": uint8 [B,H,W,3], "label": int64 [B], "id": int64 [B], "weight": float32 [B]} with static
    shapes, and "share": float32 [B] where the rows have shares. Weight is 1, and 0 for the rows that fill the last
    batch (they repeat images of the same epoch). Under a strategy B is the global batch size, of which
    `Runtime.distribute` gives each replica its part; where there are several workers, B is `of_worker`'s part of it.

    Attributes:
      batch_size: of the global batch.
      num_batches: of an epoch.
      resident: after `on_devices`, the images on each replica's device, uint8 [N,H,W,3]; else None.
    """

    def __init__(self, images: ImageSet, *, batch_size: int, rows: Rows | None = None) -> None:
        """Takes a non-empty set; one without labels is given label 0. Without `rows` each image is one."""
        if not len(images) or batch_size < 1:
            raise ValueError(f"expected images and a batch size from 1, received {len(images)} and {batch_size}")
        self._rows = rows or Rows(np.arange(len(images)), images.ids)
        self.batch_size = batch_size
        self.num_batches = num_batches(len(self._rows), batch_size)
        self._worker, self._workers = 0, 1
        self.resident: Any = None
        labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
        extra = self._rows.extra
        if extra is not None:
            labels = np.concatenate([labels, extra.labels])
        self._stored = None if isinstance(images.images, np.ndarray) else images.images
        if self._stored is not None and extra is not None:
            raise ValueError("images beside the set's: expected a set in memory, received one in files")
        with tf.device("CPU:0"):
            # eager tensors, captured by reference: as constants they would be copied into every graph
            self._images = None
            if isinstance(images.images, np.ndarray):
                self._images = (_host_tensor(images.images) if extra is None else
                                _host_tensor(images.images, len(extra.labels), extra.write))
            self._labels = tf.convert_to_tensor(labels)

    def of_batch_size(self, batch_size: int) -> "Pipeline":
        """Returns a pipeline of the same images, not copied, in batches of another size."""
        if batch_size < 1:
            raise ValueError(f"expected a batch size from 1, received {batch_size}")
        other = copy.copy(self)
        other.batch_size, other.num_batches = batch_size, num_batches(len(self._rows), batch_size)
        return other

    def on_devices(self, strategy: tf.distribute.Strategy) -> "Pipeline":
        """Returns a pipeline of the same rows, whose images lie on the device of each of a strategy's replicas.

        Its elements hold "index", int64 [B], in place of "image": the image's position in `resident`. Only such numbers
        travel to the devices in each step.

        Raises:
          ValueError: the images stay in files.
        """
        if self._images is None:
            raise ValueError("on_devices: expected images in memory, received some that stay in files")
        other, images = copy.copy(self), self._images

        @tf.function(autograph=False)
        def place() -> Any:
            return strategy.run(lambda: tf.identity(images))

        other.resident = place()
        other._images = None
        return other

    def batch(self, seed: int, epoch: int, number: int = 0) -> dict[str, tf.Tensor]:
        """Returns one batch of an epoch as `epoch` does, by its number from 0, its images with it in any case."""
        batch = next(iter(self.epoch(seed, epoch, skip_steps=number)))
        if self.resident is not None:
            images = getattr(self.resident, "values", (self.resident,))[0]  # of several replicas, the first's
            batch = {"image": tf.gather(images, batch.pop("index")), **batch}
        return batch

    def of_worker(self, worker: int, workers: int) -> "Pipeline":
        """Returns a pipeline of the same images, not copied, that gives one worker's rows of every batch.

        Its elements hold `batch_size / workers` rows, the `worker`-th part of the global batch's; `batch_size` stays
        that of the global batch.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"expected a worker 0..{workers - 1}, received {worker}")
        other = copy.copy(self)
        other._worker, other._workers = worker, workers
        return other

    def epoch(self, seed: int, epoch: int, *, skip_steps: int = 0) -> tf.data.Dataset:
        """Returns one epoch in random order.

        Args:
          seed: of the run.
          epoch: from 0; the order is a pure function of (seed, epoch).
          skip_steps: how many batches to leave out at the start (to resume inside an epoch), 0..num_batches.
        """
        key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self._rows))
        return self._batches(self._rows.epoch(seed, epoch).take(order), skip_steps)

    def in_order(self) -> tf.data.Dataset:
        """Returns all rows once, in their order; without rows of their own all images, in the set's order."""
        return self._batches(self._rows, 0)

    def _batches(self, rows: Rows, skip_steps: int) -> tf.data.Dataset:
        if not 0 <= skip_steps <= self.num_batches:
            raise ValueError(f"skip_steps: expected 0..{self.num_batches}, received {skip_steps}")
        shape = (self.num_batches, self.batch_size)
        own = {"index": rows.index.astype(np.int64), "id": rows.ids}
        if rows.share is not None:
            own["share"] = rows.share
        own = {name: np.resize(values, shape) for name, values in own.items()}  # fills the last batch from the start
        own["weight"] = (np.arange(math.prod(shape)) < len(rows)).astype(np.float32).reshape(shape)
        if self.batch_size % self._workers:
            raise ValueError(f"expected a batch of {self._workers} equal parts, received {self.batch_size}")
        part = self.batch_size // self._workers
        here = slice(self._worker * part, (self._worker + 1) * part)
        own = {name: values[skip_steps:, here] for name, values in own.items()}
        images, labels, stored = self._images, self._labels, self._stored
        plain = tf.autograph.experimental.do_not_convert  # for every epoch anew it would write and load a source file

        @plain
        def gather(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            index = batch.pop("index")
            pixels = {} if stored else {"index": index} if images is None else {"image": tf.gather(images, index)}
            return {**pixels, "label": tf.gather(labels, index), **batch}

        with tf.device("CPU:0"):
            batches = tf.data.Dataset.from_tensor_slices(own)
            batches = batches.map(gather, num_parallel_calls=CORES, deterministic=True)
            if stored:
                batches = tf.data.Dataset.zip(stored.batches(own["index"]), batches)
                batches = batches.map(plain(lambda pixels, batch: {"image": pixels, **batch}))
        options = tf.data.Options()
        options.deterministic = True
        # the graph optimizer copies the captured images (a second 0.4 GB and a second of time on the course's set), and
        # has nothing to gain here
        options.experimental_optimization.apply_default_optimizations = False
        # there are no files to share out among workers: each takes every n-th element
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        # automatic tuning has nothing to find here, and an iterator under it ends no earlier than its next look: of
        # the looks each is twice as long after the one before, so that an epoch of 5 s may end 5 s late (TF 2.21)
        options.autotune.enabled = False
        return batches.with_options(options).prefetch(_WAITING)
