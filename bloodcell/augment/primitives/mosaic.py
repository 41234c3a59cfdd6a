"""Primitive mosaic: an image in rectangular cells of one colour each, their mean.

A pixel belongs to the cell that holds its centre. Where a centre lies on the border of two cells, it counts towards the
mean of the first one and shows the colour of the second, as when Pillow shrinks by `BOX` and enlarges by `NEAREST`.
"""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

_BITS = 22  # of the fraction that a sum is multiplied by, as in Pillow: 255 times as much still fits 32 bits


class Mosaic(NamedTuple):
    """rows, columns: int32 [B], how many cells there are down and across an image, 1 to its side."""

    rows: tf.Tensor
    columns: tf.Tensor


def apply(packed: tf.Tensor, mosaic: Mosaic) -> tf.Tensor:
    """Shows packed images int32 [B, H, W] in cells; means are rounded after the rows, then after the columns."""
    count, height, width = packed.shape
    across, down = _cells(mosaic.columns, width), _cells(mosaic.rows, height)
    lines = tf.range(count, dtype=tf.int32)[:, tf.newaxis] * height  # where each image's lines begin among all
    start = (lines + tf.range(height, dtype=tf.int32))[:, :, tf.newaxis] * width  # and where each line's pixels do
    parts = []
    for level in pixels.channels(packed):
        index = tf.reshape(start + across.counted[:, tf.newaxis], [-1, 1])
        total = tf.tensor_scatter_nd_add(tf.zeros([count * height * width], tf.int32), index, tf.reshape(level, [-1]))
        means = _mean(tf.gather(total, start + across.shown[:, tf.newaxis]), across.share[:, tf.newaxis])
        index = tf.reshape(lines + down.counted, [-1, 1])
        total = tf.tensor_scatter_nd_add(tf.zeros([count * height, width], tf.int32), index,
                                         tf.reshape(means, [-1, width]))
        parts.append(_mean(tf.gather(total, lines + down.shown), down.share[:, :, tf.newaxis]))
    return pixels.join(parts)


class _Cells(NamedTuple):
    """What cells a side's pixels belong to; int32 [B, side] each.

    counted: the cell whose mean a pixel counts towards; shown: the one whose mean it shows; share: one over the number
    of pixels that count towards that one, in fixed point.
    """

    counted: tf.Tensor
    shown: tf.Tensor
    share: tf.Tensor


def _cells(count: tf.Tensor, side: int) -> _Cells:
    """Divides each image's side, in pixels, into cells, int32 [B]."""
    place = (2 * tf.range(side, dtype=tf.int32) + 1)[tf.newaxis, :] * count[:, tf.newaxis]
    shown, counted = place // (2 * side), (place - 1) // (2 * side)
    start = tf.range(count.shape[0], dtype=tf.int32)[:, tf.newaxis] * side
    index = tf.reshape(start + counted, [-1, 1])
    number = tf.tensor_scatter_nd_add(tf.zeros([count.shape[0] * side], tf.int32), index, tf.ones_like(index[:, 0]))
    number = tf.gather(number, start + shown)
    return _Cells(counted, shown, (2 ** (_BITS + 1) + number) // (2 * number))


def _mean(total: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns the rounded product of totals and fixed-point shares, int32."""
    return tf.bitwise.right_shift(total * share + 2 ** (_BITS - 1), _BITS)
