"""Primitive filter: a blend of the image and its 3x3 smoothing, as Pillow sharpens."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment import pixels

_WEIGHT = 13  # of the smoothing kernel: 5 in the middle, 1 for each of the 8 neighbours (Pillow's ImageFilter.SMOOTH)


class Filter(NamedTuple):
    """factor: float32 [B]; 0 smooths, 1 changes nothing, more sharpens. Pixels on the image's border stay."""

    factor: tf.Tensor


def apply(packed: tf.Tensor, blend: Filter) -> tf.Tensor:
    """Filters packed images int32 [B, H, W]; results are truncated to whole grey levels, as Pillow's `blend` does."""
    height, width = packed.shape[1], packed.shape[2]
    if height < 3 or width < 3:
        return packed
    # Padded and selected, not cut and put together: XLA:CPU fuses a concatenation below one MiB into a loop that asks
    # for each pixel which part it belongs to.
    around = tf.pad(packed, [[0, 0], [1, 1], [1, 1]])
    # Red and blue in the halves of one word, green in another: a sum of 13 levels takes 12 bits, so whole words add.
    words = tf.bitwise.bitwise_and(around, 0xFF00FF), tf.bitwise.bitwise_and(tf.bitwise.right_shift(around, 8), 0xFF)
    red_blue, green = (_sums(word) for word in words)
    sums = tf.bitwise.bitwise_and(red_blue, 0xFFFF), green, tf.bitwise.right_shift(red_blue, 16)
    factor = blend.factor[:, tf.newaxis, tf.newaxis]
    parts = []
    for total, level in zip(sums, pixels.channels(packed), strict=True):
        smooth = tf.cast((2 * total + _WEIGHT) // (2 * _WEIGHT), tf.float32)
        parts.append(pixels.to_levels(smooth + pixels.rounded(factor * (tf.cast(level, tf.float32) - smooth))))
    inner = np.zeros([height, width], bool)
    inner[1:-1, 1:-1] = True
    return tf.where(inner, pixels.join(parts), packed)


def _sums(word: tf.Tensor) -> tf.Tensor:
    """Returns the kernel's weighted sums, [B, H - 2, W - 2] for words [B, H, W]."""
    height, width = word.shape[1], word.shape[2]
    total = 4 * word[:, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total += word[:, row:row + height - 2, column:column + width - 2]
    return total
