"""Primitive jpeg: what a JPEG round trip does to an image, in libjpeg's own whole numbers.

Baseline JPEG (ITU-T T.81) with JFIF's YCbCr, chroma at half the size on both axes, and the accurate integer transform
of the Independent JPEG Group's library (Loeffler, Ligtenberg and Moschytz 1989, constants of 13 bits), down to its
roundings: a coefficient at the middle of two steps falls to the same side here, in libjpeg, eagerly, compiled and on a
GPU. The entropy coder loses nothing and is left out. Colour, borders and chroma upsampling are libjpeg's too.

Blocks lie as [8, 8, ..., blocks], so that each step is elementwise over the last axis, which vectorises.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment import pixels

# Annex K.1 of the standard: steps at quality 50, by vertical (row) and horizontal frequency.
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])
CHROMINANCE = np.full([8, 8], 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_BITS = 13  # of the transform's constants
_EXTRA = 2  # bits that the first pass keeps below the point


class Jpeg(NamedTuple):
    """quality: int32 [B], 1..99 as libjpeg's; at 100 and above the image stays as it is, where libjpeg still rounds."""

    quality: tf.Tensor


def apply(packed: tf.Tensor, jpeg: Jpeg) -> tf.Tensor:
    """Compresses packed images int32 [B, H, W] and decompresses them."""
    height, width = packed.shape[1], packed.shape[2]
    luma, *chroma = _to_ycc(pixels.channels(packed))
    small = [_pad(_halve(plane), 8) for plane in chroma]
    luma = _pad(luma, 8)
    grids = [(plane.shape[1] // 8, plane.shape[2] // 8) for plane in (luma, *small)]
    blocks = tf.concat([_to_blocks(plane) for plane in (luma, *small)], axis=-1)
    counts = [rows * columns for rows, columns in grids]

    steps = _steps(jpeg.quality, counts)
    coefficients = _transform(blocks, MATRIX, (_BITS - _EXTRA, _BITS + _EXTRA))
    coefficients = tf.transpose(_quantise(coefficients, steps), [1, 0, 2, 3])
    blocks = _transform(coefficients, MATRIX.T, (_BITS - _EXTRA, _BITS + _EXTRA + 3))

    parts = tf.split(blocks, counts, axis=-1)
    luma, *small = (_from_blocks(part, grid) for part, grid in zip(parts, grids, strict=True))
    half = (-(-height // 2), -(-width // 2))
    chroma = [_double(plane[:, :half[0], :half[1]])[:, :height, :width] for plane in small]
    restored = pixels.join(_to_rgb(luma[:, :height, :width], *chroma))
    return tf.where(jpeg.quality[:, tf.newaxis, tf.newaxis] < 100, restored, packed)


# ---------------------------------------------------------------------------------------------------------------------
# The transform
# ---------------------------------------------------------------------------------------------------------------------


def _islow() -> np.ndarray:
    """Returns int [8, 8]: the cosine transform times sqrt(8) 2**13, each entry the sum of libjpeg's constants.

    The library's flow graph is exact until the one rounding at its end, so a matrix of whole numbers says the same.
    """
    def fixed(x: float) -> int:
        return round(x * 2**_BITS)

    def c(k: int) -> float:
        return math.sqrt(2) * math.cos(k * math.pi / 16)

    one = 2**_BITS
    small, plus, minus = fixed(c(6)), fixed(c(2) - c(6)), fixed(c(2) + c(6))
    matrix = np.zeros([8, 8], np.int64)
    matrix[0] = one
    matrix[4] = [one, -one, -one, one] * 2
    matrix[2, :4] = [small + plus, small, -small, -small - plus]
    matrix[6, :4] = [small, small - minus, minus - small, -small]
    # Odd rows: four products of one input each, and five of sums of inputs (z1 to z5 in the library).
    alone = [fixed(x) for x in (-c(1) + c(3) + c(5) - c(7), c(1) + c(3) - c(5) + c(7),
                                c(1) + c(3) + c(5) - c(7), c(1) + c(3) - c(5) - c(7))]
    z1, z2, z3, z4, z5 = (fixed(x) for x in (c(7) - c(3), -c(1) - c(3), -c(3) - c(5), c(5) - c(3), c(3)))
    # By output 7, 5, 3, 1 and input 3 - 4, 2 - 5, 1 - 6, 0 - 7.
    odd = np.diag(alone) + z5
    for outputs in ((0, 3), (1, 2)):
        odd[np.ix_(outputs, outputs)] += z1 if outputs == (0, 3) else z2
    for outputs in ((0, 2), (1, 3)):
        odd[np.ix_(outputs, outputs)] += z3 if outputs == (0, 2) else z4
    matrix[[7, 5, 3, 1], :4] = odd[:, ::-1]
    matrix[[2, 6], 4:] = matrix[[2, 6], 3::-1]
    matrix[1::2, 4:] = -matrix[1::2, 3::-1]
    return matrix


MATRIX = _islow()


def _transform(blocks: tf.Tensor, matrix: np.ndarray, shifts: tuple[int, int]) -> tf.Tensor:
    """Multiplies int32 [8, 8, ...] by an 8x8 matrix along the first axis, then the second; rounds away `shifts` bits.

    The passes are the trips of a loop, since only what a loop carries is computed once: each of the eight products
    that read the first pass's result would compute it again.
    """
    table, bits = tf.constant(matrix, tf.int32), tf.constant(shifts, tf.int32)
    shape = [1, 8] + [1] * (blocks.shape.rank - 2)

    def one_pass(number: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        total = sum(tf.reshape(table[:, k], shape) * x[k, :, tf.newaxis] for k in range(8))
        half = tf.bitwise.left_shift(1, bits[number] - 1)
        return number + 1, tf.bitwise.right_shift(total + half, bits[number])

    _, blocks = tf.while_loop(lambda number, _: number < 2, one_pass, (tf.constant(0), blocks))
    return blocks


def _steps(quality: tf.Tensor, counts: list[int]) -> tf.Tensor:
    """Returns the quantisation steps of each block, float32 [8, 8, B, blocks] by (horizontal, vertical) frequency."""
    quality = tf.clip_by_value(quality, 1, 100)
    scale = tf.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    luma, chroma = (tf.constant(table.T[:, :, np.newaxis, np.newaxis], tf.int32) for table in (LUMINANCE, CHROMINANCE))
    of_luma, of_chroma = (tf.cast(tf.clip_by_value((table * scale[:, tf.newaxis] + 50) // 100, 1, 255), tf.float32)
                          for table in (luma, chroma))
    is_luma = tf.range(sum(counts)) < counts[0]
    return tf.where(is_luma, of_luma, of_chroma)


def _quantise(coefficients: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """Rounds coefficients, scaled by 8, to whole steps (halves away from zero) and removes the scale."""
    size = tf.cast(tf.abs(coefficients), tf.float32)
    # Whole numbers below 2**16: half a unit keeps the quotient off the whole numbers, so that its rounding is harmless.
    # The library divides whole numbers, half of an odd divisor rounded down; steps of 8 are even.
    levels = tf.floor((size + 4.0 * steps + 0.5) / (8.0 * steps)) * steps
    return tf.where(coefficients < 0, -1, 1) * tf.cast(levels, tf.int32)


# ---------------------------------------------------------------------------------------------------------------------
# Colour, size and blocks
# ---------------------------------------------------------------------------------------------------------------------


def _fixed(x: float) -> int:
    return round(x * 65536)


def _to_ycc(parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """Turns red, green and blue (int32) into JFIF's Y, Cb and Cr, each less 128."""
    red, green, blue = parts
    weights = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
    # Chroma rounds half down: 255.5 must not become 256.
    halves = (32768 - (128 << 16), 32767, 32767)
    return [tf.bitwise.right_shift(_fixed(r) * red + _fixed(g) * green + _fixed(b) * blue + half, 16)
            for (r, g, b), half in zip(weights, halves, strict=True)]


def _to_rgb(luma: tf.Tensor, cb: tf.Tensor, cr: tf.Tensor) -> list[tf.Tensor]:
    """Turns Y, Cb and Cr, each less 128, into red, green and blue, clipped."""
    def scaled(x: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(luma + 128 + tf.bitwise.right_shift(x + 32768, 16), 0, 255)
    green = _fixed(-0.34414) * cb + _fixed(-0.71414) * cr
    return [scaled(_fixed(1.402) * cr), scaled(green), scaled(_fixed(1.772) * cb)]


def _pad(plane: tf.Tensor, multiple: int, axes: tuple[int, ...] = (1, 2)) -> tf.Tensor:
    """Repeats the last row and column of [B, H, W] up to a multiple of both sides."""
    for axis in axes:
        missing = -plane.shape[axis] % multiple
        if missing:
            last = tf.gather(plane, [plane.shape[axis] - 1] * missing, axis=axis)
            plane = tf.concat([plane, last], axis=axis)
    return plane


def _halve(plane: tf.Tensor) -> tf.Tensor:
    """Averages 2x2 pixels of [B, H, W] as libjpeg does: halves are rounded down in even columns and up in odd ones.

    Columns are padded before, so that the rest of the last block holds the last column alone; rows only to an even
    number, so that it holds the last average.
    """
    plane = _pad(_pad(plane, 16, axes=(2,)), 2, axes=(1,))
    total = plane[:, ::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, ::2] + plane[:, 1::2, 1::2]
    bias = 1 + tf.bitwise.bitwise_and(tf.range(plane.shape[2] // 2), 1)
    return tf.bitwise.right_shift(total + bias, 2)


def _double(plane: tf.Tensor) -> tf.Tensor:
    """Doubles the sides of [B, H, W] by libjpeg's triangle filter: 3/4 of a pixel, 1/4 of the next, on each axis."""
    if plane.shape[2] <= 2:  # the library repeats what is as narrow as this
        return tf.repeat(tf.repeat(plane, 2, axis=1), 2, axis=2)
    above = tf.concat([plane[:, :1], plane[:, :-1]], axis=1)
    below = tf.concat([plane[:, 1:], plane[:, -1:]], axis=1)
    tall = tf.stack([3 * plane + above, 3 * plane + below], axis=2)
    tall = tf.reshape(tall, [-1, 2 * plane.shape[1], plane.shape[2]])
    left = tf.concat([tall[:, :, :1], tall[:, :, :-1]], axis=2)
    right = tf.concat([tall[:, :, 1:], tall[:, :, -1:]], axis=2)
    wide = tf.stack([3 * tall + left + 8, 3 * tall + right + 7], axis=3)
    return tf.bitwise.right_shift(tf.reshape(wide, [-1, tall.shape[1], 2 * tall.shape[2]]), 4)


def _to_blocks(plane: tf.Tensor) -> tf.Tensor:
    """Cuts [B, 8 rows, 8 columns] into blocks [8, 8, B, rows * columns], by (column, row) inside."""
    count, height, width = plane.shape
    cut = tf.reshape(plane, [count, height // 8, 8, width // 8, 8])
    return tf.reshape(tf.transpose(cut, [4, 2, 0, 1, 3]), [8, 8, count, -1])


def _from_blocks(blocks: tf.Tensor, grid: tuple[int, int]) -> tf.Tensor:
    """Joins blocks [8, 8, B, rows * columns], by (row, column) inside, to [B, 8 rows, 8 columns], clipped to a byte."""
    cut = tf.reshape(tf.clip_by_value(blocks, -128, 127), [8, 8, -1, *grid])
    return tf.reshape(tf.transpose(cut, [2, 3, 0, 4, 1]), [-1, 8 * grid[0], 8 * grid[1]])
