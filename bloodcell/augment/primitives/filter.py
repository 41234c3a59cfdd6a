"""Primitive filter: a small kernel per image, as shifted slices (XLA:CPU's own convolution is ten times slower)."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels


class Filter(NamedTuple):
    """kernel: float32 [B, 3, 3], weights of the neighbours (row, column); pixels on the image's border stay."""

    kernel: tf.Tensor


def apply(packed: tf.Tensor, kernel: Filter) -> tf.Tensor:
    """Filters packed images int32 [B, H, W]; results are truncated to whole grey levels, as Pillow's `blend` does."""
    height, width = packed.shape[1], packed.shape[2]
    if height < 3 or width < 3:
        return packed
    inner = []
    for part in pixels.channels(packed):
        level = tf.cast(part, tf.float32)
        total = tf.zeros_like(level[:, 1:-1, 1:-1])
        for row in range(3):
            for column in range(3):
                weight = kernel.kernel[:, row, column][:, tf.newaxis, tf.newaxis]
                total += weight * level[:, row:row + height - 2, column:column + width - 2]
        # The nudge undoes the rounding of sums that are whole numbers in exact arithmetic.
        inner.append(pixels.to_levels(total + 2.0**-10))
    filtered = tf.pad(pixels.join(inner), [[0, 0], [1, 1], [1, 1]])
    y, x = tf.range(height)[:, tf.newaxis], tf.range(width)[tf.newaxis, :]
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return tf.where(border[tf.newaxis], packed, filtered)
