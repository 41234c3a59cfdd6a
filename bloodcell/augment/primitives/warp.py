"""Primitive warp: a projective map per image, sampled bilinearly or at the nearest pixel.

Convention: pixel centres lie at whole numbers; the map takes an output pixel to its source. A source further than
half a pixel outside the image is filled; nearer ones use the border pixel, as Pillow's `Image.transform` does (OpenCV
blends the fill into the last pixel instead).
"""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

FILLS = ("constant", "edge", "reflect")


class Warp(NamedTuple):
    """matrix: float32 [B, 3, 3], (x, y, 1) of the output to the source."""

    matrix: tf.Tensor


class Style(NamedTuple):
    """How a warp samples, the same for all images of a program.

    fill: one of FILLS; value: the grey level of a constant fill; interpolation: `bilinear` or `nearest`.
    """

    fill: str = "constant"
    value: float = 128.0
    interpolation: str = "bilinear"


def affine(size: tuple[int, int], linear: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
           shift: tuple[tf.Tensor, tf.Tensor] | tuple[float, float] = (0.0, 0.0)) -> tf.Tensor:
    """Returns [B, 3, 3] of the map (a, b; c, d) about the image's centre, then a shift (dx, dy) in pixels."""
    (a, b, c, d), (dx, dy) = linear, shift
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    zero, one = tf.zeros_like(a), tf.ones_like(a)
    rows = [a, b, cx - a * cx - b * cy + dx, c, d, cy - c * cx - d * cy + dy, zero, zero, one]
    return tf.reshape(tf.stack(rows, axis=-1), [-1, 3, 3])


def compose(first: tf.Tensor, then: tf.Tensor) -> tf.Tensor:
    """Returns the map of warping by `first` and warping the result by `then` ([B, 3, 3] each).

    Written out, since a GPU may multiply matrices with 10-bit mantissas.
    """
    return tf.reduce_sum(first[:, :, :, tf.newaxis] * then[:, tf.newaxis, :, :], axis=2)


def apply(packed: tf.Tensor, warp: Warp, style: Style | None = None) -> tf.Tensor:
    """Warps packed images int32 [B, H, W]."""
    height, width = packed.shape[1], packed.shape[2]
    x = tf.range(width, dtype=tf.float32)[tf.newaxis, tf.newaxis, :]
    y = tf.range(height, dtype=tf.float32)[tf.newaxis, :, tf.newaxis]
    m = [[warp.matrix[:, row, column][:, tf.newaxis, tf.newaxis] for column in range(3)] for row in range(3)]
    depth = m[2][0] * x + m[2][1] * y + m[2][2]
    source_x = (m[0][0] * x + m[0][1] * y + m[0][2]) / depth
    source_y = (m[1][0] * x + m[1][1] * y + m[1][2]) / depth
    return sample(packed, source_x, source_y, depth > 0, style or Style())  # behind the camera nothing is seen


def sample(packed: tf.Tensor, source_x: tf.Tensor, source_y: tf.Tensor, visible: tf.Tensor, style: Style) -> tf.Tensor:
    """Samples packed images int32 [B, H, W] where each output pixel comes from.

    XLA:CPU computes coordinates again for each of the four gathers that read them, unless they end in something that
    it holds to be expensive, as a division or a product of matrices. From there on pixels are listed one after another,
    [B * H * W, 1], as XLA has gathers on a GPU: another shape after a gather, and it writes four images of corners to
    memory and reads them again.

    Args:
      packed: int32 [B, H, W].
      source_x: float32 [B, H, W], columns; not-a-number is the first.
      source_y: float32 [B, H, W], rows.
      visible: bool [B, H, W], False where the fill is wanted whatever the source; what broadcasts to it will do.
      style: how to sample, and what lies outside.
    """
    def listed(values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.broadcast_to(values, packed.shape), [-1, 1])

    count, height, width = packed.shape
    source_x, source_y, visible = listed(source_x), listed(source_y), listed(visible)
    if style.fill == "constant":
        visible &= (source_x >= -0.5) & (source_x < width - 0.5) & (source_y >= -0.5) & (source_y < height - 0.5)
    elif style.fill == "reflect":
        source_x, source_y = _fold(source_x, width), _fold(source_y, height)
    if style.interpolation == "nearest":
        source_x, source_y = tf.floor(source_x + 0.5), tf.floor(source_y + 0.5)
    # Not-a-number compares false everywhere; the maximum below sends it to the first pixel and never out of bounds.
    source_x = tf.minimum(tf.maximum(source_x, 0.0), width - 1.0)
    source_y = tf.minimum(tf.maximum(source_y, 0.0), height - 1.0)

    x0, y0 = tf.floor(source_x), tf.floor(source_y)
    right, down = source_x - x0, source_y - y0
    x0, y0 = tf.cast(x0, tf.int32), tf.cast(y0, tf.int32)
    x1, y1 = tf.minimum(x0 + 1, width - 1), tf.minimum(y0 + 1, height - 1)
    # Up to 10 MiB TensorFlow makes this a constant, which a CPU reads sooner than it divides places by an image's size.
    start = listed(tf.range(count, dtype=tf.int32)[:, tf.newaxis, tf.newaxis] * (height * width))
    flat = tf.reshape(packed, [-1])
    corners = [pixels.channels(tf.gather(flat, start + row * width + column))
               for row in (y0, y1) for column in (x0, x1)]

    levels = []
    for channel in range(3):
        top_left, top_right, low_left, low_right = (tf.cast(corner[channel], tf.float32) for corner in corners)
        top = top_left + (top_right - top_left) * right
        low = low_left + (low_right - low_left) * right
        levels.append(tf.where(visible, pixels.to_levels(top + (low - top) * down + 0.5), round(style.value)))
    return tf.reshape(pixels.join(levels), packed.shape)


def _fold(x: tf.Tensor, size: int) -> tf.Tensor:
    """Reflects a coordinate about the image's outer edges (d c b a | a b c d | d c b a)."""
    around = x + 0.5 - tf.floor((x + 0.5) / (2.0 * size)) * (2.0 * size)
    return size - tf.abs(around - size) - 0.5
