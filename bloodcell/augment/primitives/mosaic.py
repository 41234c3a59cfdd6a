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
    """Shows packed images int32 [B, H, W] in cells; means are rounded after the rows, then after the columns.

    Exact in any precision: the products sum whole levels with weights 0 and 1.
    """
    levels = tf.stack([tf.cast(part, tf.float32) for part in pixels.channels(packed)], axis=1)
    member, share = _cells(mosaic.columns, packed.shape[2])
    across = _mean(tf.einsum("bcyx,bvx->bcyv", levels, member), share[:, tf.newaxis, tf.newaxis, :])
    member, share = _cells(mosaic.rows, packed.shape[1])
    down = _mean(tf.einsum("bcyx,bvy->bcvx", tf.cast(across, tf.float32), member), share[:, tf.newaxis, :, tf.newaxis])
    return pixels.join(tf.unstack(down, axis=1))


def _cells(count: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Divides each image's side into cells.

    Args:
      count: int32 [B].
      side: pixels.

    Returns:
      float32 [B, side, side], 1 where the second pixel belongs to the mean that the first one shows; and int32
      [B, side], one over the number of such pixels, in fixed point.
    """
    place = (2 * tf.range(side, dtype=tf.int32) + 1)[tf.newaxis, :] * count[:, tf.newaxis]
    shown, counted = place // (2 * side), (place - 1) // (2 * side)
    member = tf.cast(shown[:, :, tf.newaxis] == counted[:, tf.newaxis, :], tf.float32)
    number = tf.cast(tf.reduce_sum(member, axis=-1), tf.int32)
    return member, (2 ** (_BITS + 1) + number) // (2 * number)


def _mean(total: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns the rounded product of whole float totals and fixed-point shares, int32."""
    return tf.bitwise.right_shift(tf.cast(total, tf.int32) * share + 2 ** (_BITS - 1), _BITS)
