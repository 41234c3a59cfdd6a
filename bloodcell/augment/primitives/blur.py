"""Primitive blur: a kernel per image, symmetric in x and in y, at a cost that does not depend on the kernel's size.

Beyond its border an image goes on as its mirror image (d c b a | a b c d | d c b a), as often as the kernel needs. The
cosines of the DCT-II continue in just this way, so each of them passes through a symmetric kernel multiplied by one
number (Martucci, "Symmetric convolution and the discrete sine and cosine transforms", 1994): a blur is a DCT, a
product and a DCT back, and each transform is a matrix product with a matrix that all images share.

A pixel's part of such a product grows with the side. A large image goes through the FFT instead (`by_fourier`), whose
part hardly does; of a small one the border that this needs would be too large a part.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment import pixels

RADIUS = 12  # pixels that a kernel reaches from its centre, at most
DISTANCE = np.arange(RADIUS + 1, dtype=np.float32)  # the rows and the columns of a quadrant
TIMES = np.minimum(DISTANCE + 1, 2)  # how often a quadrant's row, or column, stands in the whole kernel
WHOLE = 128  # pixels: the largest side of an image that is multiplied by matrices
MIDDLE = 128.0  # grey levels; small numbers lose less where a GPU multiplies with 10-bit mantissas

Wave = Callable[[np.ndarray], np.ndarray]


class Blur(NamedTuple):
    """quadrant: float32 [B, RADIUS + 1, RADIUS + 1], the weight at each distance (down, across) from the centre.

    The weights of the whole kernel, of which a quadrant shows its axes once and the rest at a quarter, sum to 1.
    """

    quadrant: tf.Tensor


def apply(packed: tf.Tensor, blur: Blur) -> tf.Tensor:
    """Blurs packed images int32 [B, H, W]; results are rounded to whole grey levels."""
    height, width = packed.shape[1], packed.shape[2]
    if max(height, width) > WHOLE:
        return by_fourier(packed, lambda *angles: response(blur.quadrant, angles, np.cos))
    passed = transform(packed) * response(blur.quadrant, (frequencies(height), frequencies(width)), np.cos)
    columns = tf.einsum("bcfg,fy->bcyg", passed, basis(height, np.cos))
    return from_middle(tf.einsum("bcyg,gx->bcyx", columns, basis(width, np.cos)))


def by_fourier(packed: tf.Tensor, passes: Callable[[np.ndarray, np.ndarray], tf.Tensor]) -> tf.Tensor:
    """Filters packed images int32 [B, H, W] by the FFT; results are rounded to whole grey levels.

    Args:
      packed: the images.
      passes: from the angles per pixel of frequencies down [F] and across [G] to what each image's kernel multiplies
        them by, float32 [B, 1, F, G]. Seen from either end a kernel is the same, so that the factors are real.
    """
    rows, columns = (_bordered(side) for side in packed.shape[1:])
    size = height, width = len(rows), len(columns)
    bordered = tf.gather(tf.gather(packed, rows, axis=1), columns, axis=2)
    factors = passes(2 * np.pi * np.arange(height) / height, 2 * np.pi * np.arange(width // 2 + 1) / width)
    passed = tf.signal.rfft2d(_levels(bordered)) * tf.cast(factors, tf.complex64)
    return from_middle(tf.signal.irfft2d(passed, size)[
        :, :, RADIUS:RADIUS + packed.shape[1], RADIUS:RADIUS + packed.shape[2]])


def _bordered(side: int) -> np.ndarray:
    """Returns int [L], an axis with RADIUS pixels or a few more of its mirror images at either end.

    L is a number that the FFT is fast for: even, and without a factor above 5.
    """
    length = side + 2 * RADIUS
    while length % 2 or 60**24 % length:  # 60 has these factors and no others
        length += 1
    return mirrored(np.arange(-RADIUS, length - RADIUS), side)


def mirrored(places: np.ndarray, side: int) -> np.ndarray:
    """Returns the pixels, int 0..side-1, that an axis shows at places on it or beyond (d c b a | a b c d | d c b a)."""
    around = places % (2 * side)
    return np.asarray(np.minimum(around, 2 * side - 1 - around))


def transform(packed: tf.Tensor) -> tf.Tensor:
    """Returns the orthonormal DCT-II, float32 [B, 3, H, W], of packed images' levels less MIDDLE."""
    rows = tf.einsum("bcyx,gx->bcyg", _levels(packed), basis(packed.shape[2], np.cos))
    return tf.einsum("bcyg,fy->bcfg", rows, basis(packed.shape[1], np.cos))


def frequencies(side: int) -> np.ndarray:
    """Returns float64 [side], the angles by which the DCT-II's cosines go on from a pixel to the next."""
    return np.asarray(np.pi * np.arange(side) / side)


def basis(side: int, wave: Wave) -> np.ndarray:
    """Returns float32 [frequency, pixel]: the DCT-II's cosines, or the sines of the same scale and frequency."""
    frequency, pixel = frequencies(side)[:, np.newaxis], np.arange(side)[np.newaxis, :]
    scale = np.where(frequency == 0, np.sqrt(1 / side), np.sqrt(2 / side))
    return np.asarray(scale * wave(frequency * (pixel + 0.5)), np.float32)


def response(quadrant: tf.Tensor, angles: tuple[np.ndarray, ...], wave: Wave) -> tf.Tensor:
    """Returns what a kernel multiplies each frequency by, float32 [B, 1, F, G].

    Args:
      quadrant: float32 [B, RADIUS + 1, RADIUS + 1].
      angles: of the frequencies down [F] and across [G], per pixel.
      wave: `np.cos` for a kernel symmetric in x and in y, `np.sin` for one antisymmetric in both.
    """
    down, across = ((TIMES * wave(axis[:, np.newaxis] * DISTANCE)).astype(np.float32) for axis in angles)
    return tf.einsum("fi,bij,gj->bfg", down, quadrant, across)[:, tf.newaxis]


def from_middle(levels: tf.Tensor) -> tf.Tensor:
    """Packs float32 [B, 3, H, W], grey levels less MIDDLE, rounded."""
    return pixels.join(tf.unstack(pixels.to_levels(levels + (MIDDLE + 0.5)), axis=1))


def _levels(packed: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, 3, H, W], grey levels less MIDDLE."""
    return tf.stack([tf.cast(part, tf.float32) - MIDDLE for part in pixels.channels(packed)], axis=1)
