"""Primitive mask: a region per image and the grey level that fills it.

Every region is a lattice of rectangles in a turned frame: a pixel (x, y) has coordinates
u = cos x + sin y + u0 and v = cos y - sin x + v0, and is filled where u mod period < extent_u and
v mod period < extent_v. A single rectangle is a lattice whose period is larger than any image.
"""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

ONCE = 65536.0  # pixels; the period of a region that does not repeat


class Mask(NamedTuple):
    """A lattice of rectangles an image; every field is float32 [B].

    cos, sin: of the frame's angle; u0, v0, period, extent_u, extent_v: pixels; value: grey level.
    """

    cos: tf.Tensor
    sin: tf.Tensor
    u0: tf.Tensor
    v0: tf.Tensor
    period: tf.Tensor
    extent_u: tf.Tensor
    extent_v: tf.Tensor
    value: tf.Tensor


def apply(packed: tf.Tensor, mask: Mask) -> tf.Tensor:
    """Fills the region of each packed image int32 [B, H, W]."""
    height, width = packed.shape[1], packed.shape[2]
    x = tf.range(width, dtype=tf.float32)[tf.newaxis, tf.newaxis, :]
    y = tf.range(height, dtype=tf.float32)[tf.newaxis, :, tf.newaxis]
    cos, sin, u0, v0, period, extent_u, extent_v, value = (field[:, tf.newaxis, tf.newaxis] for field in mask)
    # Not floormod: XLA:CPU calls a library function for it, pixel by pixel.
    u, v = cos * x + sin * y + u0, cos * y - sin * x + v0
    inside = (u - tf.floor(u / period) * period < extent_u) & (v - tf.floor(v / period) * period < extent_v)
    level = tf.cast(value + 0.5, tf.int32)
    return tf.where(inside, pixels.join([level, level, level]), packed)
