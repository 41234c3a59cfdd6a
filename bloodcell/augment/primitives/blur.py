"""Primitive blur: a kernel per image, symmetric in x and in y, at a cost that does not depend on the kernel's size.

Beyond its border an image goes on as its mirror image (d c b a | a b c d | d c b a), as often as the kernel needs. The
cosines of the DCT-II continue in just this way, so each of them passes through a symmetric kernel multiplied by one
number (Martucci, "Symmetric convolution and the discrete sine and cosine transforms", 1994): a blur is a DCT, a
product and a DCT back, and each transform is a matrix product with a matrix that all images share.

A pixel's part of such a product grows with the side, so a large image is cut into tiles (overlap-save): each takes in
RADIUS pixels more on every side, where its own mirror image is not the image's, and loses them again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from bloodcell.augment import pixels

RADIUS = 12  # pixels that a kernel reaches from its centre, at most
DISTANCE = np.arange(RADIUS + 1, dtype=np.float32)  # the rows and the columns of a quadrant
TIMES = np.minimum(DISTANCE + 1, 2)  # how often a quadrant's row, or column, stands in the whole kernel
WHOLE = 256  # pixels: the largest side of an image that is not cut
TILE = 72  # pixels: the side of a tile, at most
MIDDLE = 128.0  # grey levels; small numbers lose less where a GPU multiplies with 10-bit mantissas


Fields = TypeVar("Fields", bound=tuple[Any, ...])


class Blur(NamedTuple):
    """quadrant: float32 [B, RADIUS + 1, RADIUS + 1], the weight at each distance (down, across) from the centre.

    The weights of the whole kernel, of which a quadrant shows its axes once and the rest at a quarter, sum to 1.
    """

    quadrant: tf.Tensor


def apply(packed: tf.Tensor, blur: Blur) -> tf.Tensor:
    """Blurs packed images int32 [B, H, W]; results are rounded to whole grey levels."""
    return by_tiles(packed, blur, _apply)


def _apply(packed: tf.Tensor, blur: Blur, kept: slice) -> tf.Tensor:
    height, width = packed.shape[1], packed.shape[2]
    passed = transform(packed) * response(blur.quadrant, (height, width), np.cos)
    columns = tf.einsum("bcfg,fy->bcyg", passed, basis(height, np.cos)[:, kept])
    return from_middle(tf.einsum("bcyg,gx->bcyx", columns, basis(width, np.cos)[:, kept]))


def by_tiles(packed: tf.Tensor, fields: Fields, whole: Callable[[tf.Tensor, Fields, slice], tf.Tensor]) -> tf.Tensor:
    """Filters packed images int32 [B, H, W], at a cost a pixel that does not grow with a large image's side.

    Args:
      packed: the images.
      fields: a tuple of tensors [B, ...]: each image's kernel, which reaches no further than RADIUS.
      whole: filters images of any size, mirrored beyond their border, and returns the given rows and columns.
    """
    size = height, width = packed.shape[1], packed.shape[2]
    if max(size) <= WHOLE:
        return whole(packed, fields, slice(None))
    rows, columns = (windows(side, RADIUS, TILE) for side in size)
    (down, tall), (across, wide) = rows.shape, columns.shape
    tiles = tf.gather(tf.gather(packed, rows, axis=1), columns, axis=3)
    tiles = tf.reshape(tf.transpose(tiles, [0, 1, 3, 2, 4]), [-1, tall, wide])
    each = type(fields)(*(tf.repeat(field, down * across, axis=0) for field in fields))
    filtered = whole(tiles, each, slice(RADIUS, -RADIUS))
    tall, wide = tall - 2 * RADIUS, wide - 2 * RADIUS
    image = tf.transpose(tf.reshape(filtered, [-1, down, across, tall, wide]), [0, 1, 3, 2, 4])
    return tf.reshape(image, [-1, down * tall, across * wide])[:, :height, :width]


def windows(side: int, reach: int, most: int) -> np.ndarray:
    """Divides a mirrored axis into windows that overlap.

    Args:
      side: the axis's length in pixels.
      reach: pixels that a window takes in more at either end.
      most: pixels of a window's own, at most.

    Returns:
      int [windows, own + 2 reach]: the pixels of each; their own ones, one after another, are the axis and what lies
      beyond its end.
    """
    number = -(-side // most)
    own = -(-side // number)
    places = (np.arange(number)[:, np.newaxis] * own + np.arange(-reach, own + reach)) % (2 * side)
    return np.minimum(places, 2 * side - 1 - places)


def transform(packed: tf.Tensor) -> tf.Tensor:
    """Returns the orthonormal DCT-II, float32 [B, 3, H, W], of packed images' levels less MIDDLE."""
    levels = tf.stack([tf.cast(part, tf.float32) - MIDDLE for part in pixels.channels(packed)], axis=1)
    rows = tf.einsum("bcyx,gx->bcyg", levels, basis(packed.shape[2], np.cos))
    return tf.einsum("bcyg,fy->bcfg", rows, basis(packed.shape[1], np.cos))


def basis(side: int, wave: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns float32 [frequency, pixel]: the DCT-II's cosines, or the sines of the same scale and frequency."""
    frequency, pixel = np.arange(side)[:, np.newaxis], np.arange(side)[np.newaxis, :]
    scale = np.where(frequency == 0, np.sqrt(1 / side), np.sqrt(2 / side))
    return np.asarray(scale * wave(np.pi * frequency * (pixel + 0.5) / side), np.float32)


def response(quadrant: tf.Tensor, size: tuple[int, int], wave: Callable[[np.ndarray], np.ndarray]) -> tf.Tensor:
    """Returns what a kernel multiplies each frequency by, float32 [B, 1, H, W].

    Args:
      quadrant: float32 [B, RADIUS + 1, RADIUS + 1].
      size: (height, width) of the images.
      wave: `np.cos` for a kernel symmetric in x and in y, `np.sin` for one antisymmetric in both.
    """
    down, across = (
        (TIMES * wave(np.pi * np.arange(side)[:, np.newaxis] * DISTANCE / side)).astype(np.float32) for side in size)
    return tf.einsum("fi,bij,gj->bfg", down, quadrant, across)[:, tf.newaxis]


def from_middle(levels: tf.Tensor) -> tf.Tensor:
    """Packs float32 [B, 3, H, W], grey levels less MIDDLE, rounded."""
    return pixels.join(tf.unstack(pixels.to_levels(levels + (MIDDLE + 0.5)), axis=1))
