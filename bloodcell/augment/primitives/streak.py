"""Primitive streak: a kernel per image that is the same seen from either end, as a line through the centre is.

Such a kernel is the sum of one that is symmetric in x and in y, which multiplies the cosines of the DCT-II
(`primitives.blur`), and one that is antisymmetric in both, which multiplies them too and turns them into sines. So a
streak costs half as much again as a blur, whatever its length, and no more where the FFT takes its place.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment.primitives.blur import basis, by_fourier, frequencies, from_middle, response, transform

WHOLE = 112  # pixels: the largest side that is multiplied by matrices; those of a blur are fewer, and pay for longer


class Streak(NamedTuple):
    """A kernel in two quadrants, each float32 [B, RADIUS + 1, RADIUS + 1] over distances (down, across).

    The weight at the offset (y, x) is even[|y|, |x|] + sign(y) sign(x) odd[|y|, |x|]; all weights sum to 1.
    """

    even: tf.Tensor
    odd: tf.Tensor


def apply(packed: tf.Tensor, streak: Streak) -> tf.Tensor:
    """Filters packed images int32 [B, H, W], mirrored beyond the border; results are rounded to whole grey levels."""
    height, width = packed.shape[1], packed.shape[2]
    if max(height, width) > WHOLE:  # products of two sines of opposite signs, whence the minus
        return by_fourier(packed, lambda *angles: (response(streak.even, angles, np.cos)
                                                   - response(streak.odd, angles, np.sin)))
    spectrum = transform(packed)
    cosines, sines = (
        tf.einsum("bcfg,fy->bcyg", spectrum * response(quadrant, (frequencies(height), frequencies(width)), wave),
                  basis(height, wave))
        for quadrant, wave in ((streak.even, np.cos), (streak.odd, np.sin)))
    # One product over twice the frequencies is faster than two products and their sum.
    both = np.concatenate([basis(width, np.cos), basis(width, np.sin)])
    return from_middle(tf.einsum("bcyg,gx->bcyx", tf.concat([cosines, sines], axis=-1), both))
