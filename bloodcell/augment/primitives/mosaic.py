"""Primitive mosaic: an image in rectangular cells of one colour each, their mean.

A pixel belongs to the cell that holds its centre. Where a centre lies on the border of two cells, it counts towards the
mean of the first one and shows the colour of the second, as when Pillow shrinks by `BOX` and enlarges by `NEAREST`.
"""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

_BITS = 22  # of the fraction that a sum is multiplied by, as in Pillow: 255 times as much still fits 32 bits
_LONGEST = 2 ** 21 // 255  # pixels of a side of which three channels' sums fit one number of 64 bits


class Mosaic(NamedTuple):
    """rows, columns: int32 [B], how many cells there are down and across an image, 1 to its side."""

    rows: tf.Tensor
    columns: tf.Tensor


def apply(packed: tf.Tensor, mosaic: Mosaic) -> tf.Tensor:
    """Shows packed images int32 [B, H, W] in cells; means are rounded after the rows, then after the columns."""
    across, down = _cells(mosaic.columns, packed.shape[2]), _cells(mosaic.rows, packed.shape[1])
    columns = _averaged(tf.transpose(packed, [0, 2, 1]), across)
    return _averaged(tf.transpose(columns, [0, 2, 1]), down)


class _Cells(NamedTuple):
    """What cells a side's pixels belong to, numbered through all images in steps of a side; int32 [B, side] each.

    counted: the cell whose mean a pixel counts towards; shown: the one whose mean it shows; share: one over the number
    of pixels that count towards that one, in fixed point.
    """

    counted: tf.Tensor
    shown: tf.Tensor
    share: tf.Tensor


def _cells(count: tf.Tensor, side: int) -> _Cells:
    """Divides each image's side, in pixels, into cells, int32 [B]."""
    place = (2 * tf.range(side, dtype=tf.int32) + 1)[tf.newaxis, :] * count[:, tf.newaxis]
    start = tf.range(count.shape[0], dtype=tf.int32)[:, tf.newaxis] * side
    shown, counted = start + place // (2 * side), start + (place - 1) // (2 * side)
    index = tf.reshape(counted, [-1, 1])
    number = tf.tensor_scatter_nd_add(tf.zeros([count.shape[0] * side], tf.int32), index, tf.ones_like(index[:, 0]))
    number = tf.gather(number, shown)
    return _Cells(counted, shown, (2 ** (_BITS + 1) + number) // (2 * number))


def _averaged(lines: tf.Tensor, cells: _Cells) -> tf.Tensor:
    """Returns lines of packed pixels, int32 [B, N, length], as the rounded mean of those in their cell.

    Whole lines are added, and the three channels in one number where their sums fit: adding single pixels takes half as
    long again on a CPU, the turning of images included, and so does adding each channel by itself.
    """
    count, number, length = lines.shape
    together = 3 if number <= _LONGEST else 1
    room, levels, sums = 63 // together, pixels.channels(lines), []
    for first in range(0, 3, together):
        level = tf.add_n([tf.bitwise.left_shift(tf.cast(level, tf.int64), room * place)
                          for place, level in enumerate(levels[first:first + together])])
        total = tf.tensor_scatter_nd_add(tf.zeros([count * number, length], tf.int64),
                                         tf.reshape(cells.counted, [-1, 1]), tf.reshape(level, [-1, length]))
        total = tf.gather(total, cells.shown)
        sums += [tf.cast(tf.bitwise.right_shift(total, room * place) & 2 ** room - 1, tf.int32)
                 for place in range(together)]
    share = cells.share[:, :, tf.newaxis]
    return pixels.join([tf.bitwise.right_shift(each * share + 2 ** (_BITS - 1), _BITS) for each in sums])
