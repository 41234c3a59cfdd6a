"""What the two peers in `tf.data` share."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.peers import CORES, Run


def over_batches(function: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray) -> Run:
    """Maps batches [B, H, W, 3] in parallel."""
    return _run(len(images), lambda: tf.data.Dataset.from_tensors(images), lambda source: source.map(
        function, num_parallel_calls=tf.data.AUTOTUNE))


def over_images(function: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray) -> Run:
    """Maps images [H, W, 3] in parallel and puts the results together to batches."""
    return _run(len(images), lambda: tf.data.Dataset.from_tensor_slices(images), lambda source: source.map(
        function, num_parallel_calls=tf.data.AUTOTUNE).batch(len(images)))


def _run(images: int, batch: Callable[[], tf.data.Dataset],
         mapped: Callable[[tf.data.Dataset], tf.data.Dataset]) -> Run:
    """Runs `mapped` over so many times `batch` as the variable says, so that the function is traced once.

    tf.data works ahead, and must not do so on another contestant's time: each run has an iterator of its own, and the
    source, not the result, ends after the last batch.
    """
    times = tf.Variable(1, dtype=tf.int64)
    made: list[tf.data.Dataset] = []

    def call(batches: int) -> list[np.ndarray]:
        if not made:
            made.append(mapped(tf.data.Dataset.range(1).flat_map(lambda _: batch().repeat(times))))
        times.assign(batches)
        return list(made[0].as_numpy_iterator())

    return Run(call, images, batches=CORES, pipeline=True)
