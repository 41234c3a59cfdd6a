"""Feeds a set to the step: uint8 images in batches of one fixed shape, in an order computed from (seed, epoch).

Nothing is augmented here, and there is no shuffle buffer: an epoch is a permutation of the index, so any epoch can be
had again, or taken up in the middle, without running those before it.
"""

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import ImageSet


def num_batches(n: int, batch_size: int) -> int:
    """Returns how many batches of `batch_size` hold `n` images, the last one padded."""
    return -(-n // batch_size)


_ALIGNMENT = 64  # bytes; what TensorFlow's CPU kernels ask of a tensor


def _host_tensor(array: np.ndarray) -> tf.Tensor:
    """Returns an eager tensor over one private copy of `array`.

    `tf.convert_to_tensor` takes twice the array's size (0.78 GB for the course's 0.38) and does not give it all back;
    memory that is aligned already and handed over by DLPack is used in place, and freed with the tensor.
    """
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return tf.experimental.dlpack.from_dlpack(copy.__dlpack__())


class Pipeline:
    """Holds one copy of the images as a tensor in host memory and hands out epochs as `tf.data` sets.

    Every element is {"image": uint8 [B,H,W,3], "label": int64 [B], "id": int64 [B], "weight": float32 [B]} with static
    shapes. Weight is 1, and 0 for the rows that fill the last batch (they repeat images of the same epoch). Under a
    strategy B is the global batch size: `experimental_distribute_dataset` gives each replica its share of the rows.
    """

    def __init__(self, images: ImageSet, *, batch_size: int) -> None:
        """Takes a non-empty set; one without labels is given label 0."""
        if not len(images) or batch_size < 1:
            raise ValueError(f"expected images and a batch size from 1, received {len(images)} and {batch_size}")
        self.batch_size = batch_size
        self.num_batches = num_batches(len(images), batch_size)
        labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
        with tf.device("CPU:0"):
            # eager tensors, captured by reference: as constants they would be copied into every graph
            self._images = _host_tensor(images.images)
            self._labels = tf.convert_to_tensor(labels)
            self._ids = tf.convert_to_tensor(images.ids)

    def epoch(self, seed: int, epoch: int, *, skip_steps: int = 0) -> tf.data.Dataset:
        """Returns one epoch in random order.

        Args:
          seed: of the run.
          epoch: from 0; the order is a pure function of (seed, epoch).
          skip_steps: how many batches to leave out at the start (to resume inside an epoch), 0..num_batches.
        """
        key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self._ids))
        return self._batches(order, skip_steps)

    def in_order(self) -> tf.data.Dataset:
        """Returns all images once, in the set's order."""
        return self._batches(np.arange(len(self._ids)), 0)

    def _batches(self, order: np.ndarray, skip_steps: int) -> tf.data.Dataset:
        if not 0 <= skip_steps <= self.num_batches:
            raise ValueError(f"skip_steps: expected 0..{self.num_batches}, received {skip_steps}")
        shape = (self.num_batches, self.batch_size)
        index = np.resize(order.astype(np.int64), shape)  # fills the last batch from the start of the order
        weight = (np.arange(index.size) < len(order)).astype(np.float32).reshape(shape)
        images, labels, ids = self._images, self._labels, self._ids

        def gather(index: tf.Tensor, weight: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"image": tf.gather(images, index), "label": tf.gather(labels, index),
                    "id": tf.gather(ids, index), "weight": weight}

        with tf.device("CPU:0"):
            batches = tf.data.Dataset.from_tensor_slices((index[skip_steps:], weight[skip_steps:]))
            batches = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        # the graph optimizer copies the captured images (a second 0.4 GB and a second of time on the course's set), and
        # has nothing to gain here
        options.experimental_optimization.apply_default_optimizations = False
        # there are no files to share out among workers: each takes every n-th element
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
