"""Primitive elastic: a smooth random displacement of every pixel, hashed from a key an image, sampled as a warp.

The field is Simard, Steinkraus and Platt's ("Best practices for convolutional neural networks applied to visual
document analysis", ICDAR 2003): independent uniforms in [-1, 1] for each pixel and axis, smoothed by a Gaussian and
scaled. They normalise the smoothed field and multiply it by their alpha, and most programs multiply it without
normalising, so that the displacement shrinks as sigma grows. Here alpha is the displacement itself: its root mean
square on each axis, over the pixels of an image and all draws, in pixels. That is known beforehand, as a sum of n
uniforms with weights w has the variance sum(w**2) / 3; inside a large image our alpha is their factor times
1 / (sqrt(12 pi) sigma), about 0.041 of it at sigma 4.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment import rng
from bloodcell.augment.primitives import warp
from bloodcell.augment.primitives.blur import mirrored

OWN = 96  # pixels of an axis that one product smooths, at most, where it is longer than that and the Gaussian
TRUNCATE = 4.0  # sigmas at which the Gaussian ends, as in SciPy


class Elastic(NamedTuple):
    """key: int32 [B, 2], what the field of an image is hashed from; alpha: float32 [B], pixels."""

    key: tf.Tensor
    alpha: tf.Tensor


class Style(NamedTuple):
    """What all images of a program share.

    sigma: smoothness of the field in pixels; fill: one of `warp.FILLS`; value: the grey level of a constant fill.
    """

    sigma: float = 4.0
    fill: str = "constant"
    value: float = 128.0


def apply(packed: tf.Tensor, elastic: Elastic, style: Style | None = None) -> tf.Tensor:
    """Displaces packed images int32 [B, H, W]; sampled bilinearly."""
    style = style or Style()
    height, width = packed.shape[1], packed.shape[2]
    dx, dy = field(elastic, (height, width), style.sigma)
    # Of all images, as `warp.sample` has where they start: what a CPU would divide places by a side for, it reads.
    x = tf.broadcast_to(tf.range(width, dtype=tf.float32), packed.shape) + dx
    y = tf.broadcast_to(tf.range(height, dtype=tf.float32)[:, tf.newaxis], packed.shape) + dy
    everywhere = tf.constant(True, shape=[1, 1, 1])
    return warp.sample(packed, x, y, everywhere, warp.Style(style.fill, style.value))


def field(elastic: Elastic, size: tuple[int, int], sigma: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the displacements to the right and downwards, in pixels, float32 [B, H, W] for size (H, W)."""
    weights, scale = kernel(size, sigma)
    alpha = elastic.alpha[:, tf.newaxis, tf.newaxis]
    # Across last, so that the result lies in memory as the image does.
    dx, dy = (alpha * _smooth(_smooth(_signed(bits), weights, axis=1, scale=scale), weights, axis=2)
              for bits in rng.field(elastic.key, size))
    return dx, dy


def kernel(size: tuple[int, int], sigma: float) -> tuple[np.ndarray, float]:
    """Returns the Gaussian filter's weights, float64 [2 radius + 1], and what a field smoothed by it is scaled by."""
    weights = _weights(sigma)
    return weights, _scale(*(smoothing(side, weights) for side in size))


def smoothing(size: int, weights: np.ndarray) -> np.ndarray:
    """Returns float64 [size, size], a filter as a matrix; the border reflects (c b a | a b c | c b a)."""
    radius = len(weights) // 2
    offsets = np.arange(-radius, radius + 1)
    source = mirrored(np.arange(size)[:, np.newaxis] + offsets, size)
    matrix = np.zeros([size, size])
    np.add.at(matrix, (np.arange(size)[:, np.newaxis], source), weights)
    return matrix


def _weights(sigma: float) -> np.ndarray:
    radius = int(TRUNCATE * sigma + 0.5)
    bell = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    return np.asarray(bell / bell.sum())


def _scale(down: np.ndarray, across: np.ndarray) -> float:
    """Returns one over the root mean square of smoothed uniforms, whose border reflects: they vary more next to it."""
    variance = np.square(down).sum(axis=1).mean() * np.square(across).sum(axis=1).mean() / 3
    return float(1.0 / np.sqrt(variance))


def _signed(bits: tf.Tensor) -> tf.Tensor:
    """Returns uniforms in [-1, 1), whole multiples of 2**-23, from uint32."""
    whole = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32)
    return tf.cast(whole, tf.float32) * 2.0**-23 - 1.0


def _smooth(field: tf.Tensor, weights: np.ndarray, *, axis: int, scale: float = 1.0) -> tf.Tensor:
    """Filters [B, H, W] along the columns (axis 1) or the rows (axis 2), and scales it.

    By a product with a matrix. A pixel's part of that grows with the side, so a long axis is cut into windows.
    """
    side, radius = field.shape[axis], len(weights) // 2
    if side <= OWN + 2 * radius:
        matrix = tf.constant(scale * smoothing(side, weights), tf.float32)
        return tf.einsum("byx,fy->bfx" if axis == 1 else "byx,fx->byf", field, matrix)
    windows = _windows(side, radius)
    own = windows.shape[1] - 2 * radius
    band = np.zeros([own, windows.shape[1]])
    for pixel in range(own):
        band[pixel, pixel:pixel + len(weights)] = weights
    product = tf.einsum("bnwx,fw->bnfx" if axis == 1 else "bynw,fw->bynf", tf.gather(field, windows, axis=axis),
                        tf.constant(scale * band, tf.float32))
    others = [field.shape[1], field.shape[2]]
    others[axis - 1] = windows.shape[0] * own
    return tf.slice(tf.reshape(product, [-1, *others]), [0, 0, 0], [-1, *field.shape[1:]])


def _windows(side: int, reach: int) -> np.ndarray:
    """Divides a mirrored axis into windows that overlap.

    Args:
      side: the axis's length in pixels.
      reach: pixels that a window takes in more at either end.

    Returns:
      int [windows, own + 2 reach]: the pixels of each; their own ones, one after another, are the axis and what lies
      beyond its end.
    """
    number = -(-side // OWN)
    own = -(-side // number)
    return mirrored(np.arange(number)[:, np.newaxis] * own + np.arange(-reach, own + reach), side)
