"""Our side of the races: ops at a fixed level and whole policies, compiled (`xla`) and one by one (`eager`)."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks import BATCH, SIDE
from benchmarks.timing import Contestant
from bloodcell import augment
from bloodcell.data import demo

LEVEL = 0.4  # of every op; at 0.5 `rotate` would be a quarter turn, for which Pillow has a short cut

Function = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def cells() -> np.ndarray:
    """Returns the batch that everybody gets: rendered cells, uint8 [BATCH, SIDE, SIDE, 3]."""
    return demo.render(BATCH, seed=0, size=SIDE)[0]


def op_function(name: str) -> Function:
    """Returns an op at LEVEL for all samples: (uint8 [B, H, W, 3], ids int64 [B], step) -> float32 [B, H, W, 3]."""
    op = augment.REGISTRY[name]

    def apply(images: tf.Tensor, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        level = tf.fill([images.shape[0]], LEVEL)
        return op(tf.cast(images, tf.float32), level, seed=ids + step * images.shape[0])
    return apply


def policy_function(text: str) -> Function:
    """Returns a policy: (uint8 [B, H, W, 3], ids int64 [B], epoch) -> float32 [B, H, W, 3]."""
    policy = augment.parse(text)

    def apply(images: tf.Tensor, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=step, seed=0)
    return apply


def contestants(case: str, function: Function, images: np.ndarray) -> list[Contestant]:
    """Returns the function compiled and eager, from images in memory to a NumPy array.

    The array is the tensor's own memory where that is the host's, as tf.data gives it to the peers: `.numpy()` copies,
    and the copy of 28 MB would take longer than many an op.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)
    held, ids = tf.constant(images), tf.range(len(images), dtype=tf.int64)

    def runs(each: Function) -> Callable[[int], np.ndarray]:
        return lambda step: np.asarray(each(held, ids, tf.constant(step, tf.int64)))

    return [Contestant(case, name, len(images), runs(each)) for name, each in (("xla", compiled), ("eager", function))]
