"""Beta and Dirichlet draws from uniforms, by an inverse-CDF table.

TensorFlow's own gamma sampler does not compile under XLA, and rejection would make the count of uniforms depend on
the draws. A table of the quantile function takes one uniform a draw, is monotone in it, and is exact at its knots.
"""

import functools

import numpy as np
import tensorflow as tf

KNOTS = 4097  # quantiles at equal steps of probability; between them the table is linear


@functools.lru_cache(maxsize=64)
def table(a: float, b: float) -> np.ndarray:
    """Returns float32 [KNOTS], the quantiles of Beta(a, b) at probabilities 0, 1/(KNOTS-1), ..., 1.

    The density is integrated from either end to the middle; where it has a pole there (a < 1), in t = x^a, in which
    it has none: x^(a-1) dx = dt / a.
    """
    left_x, left_mass = _integrated(a, b)
    right_x, right_mass = _integrated(b, a)
    x = np.concatenate([left_x, (1.0 - right_x)[::-1][1:]])
    total = left_mass[-1] + right_mass[-1]
    probability = np.concatenate([left_mass, (total - right_mass)[::-1][1:]]) / total
    return np.interp(np.linspace(0.0, 1.0, KNOTS), probability, x).astype(np.float32)


def _integrated(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns x from 0 to 1/2, and the integral of the unnormalised density from 0 to each."""
    power = min(a, 1.0)
    t = np.linspace(0.0, 0.5**power, 200_001)
    x = t ** (1.0 / power)
    density = x ** (a - power) * (1.0 - x) ** (b - 1.0) / power
    mass = np.concatenate([[0.0], np.cumsum(np.diff(t) * (density[1:] + density[:-1]) / 2)])
    return x, mass


def quantile(u: tf.Tensor, a: float, b: float) -> tf.Tensor:
    """Turns uniforms in [0, 1) into draws of Beta(a, b).

    Args:
      u: float32, any shape.
      a: the first shape parameter, positive.
      b: the second.

    Returns:
      float32 in 0..1 of the same shape, increasing with `u`.
    """
    if a == b == 1.0:
        return u
    place = u * (KNOTS - 1.0)
    below = tf.minimum(tf.cast(place, tf.int32), KNOTS - 2)
    values = tf.constant(table(a, b))
    low, high = tf.gather(values, below), tf.gather(values, below + 1)
    return low + (high - low) * (place - tf.cast(below, tf.float32))


def dirichlet(u: tf.Tensor, alpha: float, width: int) -> tf.Tensor:
    """Turns uniforms into draws [B, width] of the symmetric Dirichlet distribution, by stick breaking.

    Of what is left, each part in turn takes a share that is Beta(alpha, alpha * how many parts come after). The first
    width - 1 columns of `u` (float32 [B, 1 or more]) are used.
    """
    parts: list[tf.Tensor] = []
    left = tf.ones_like(u[:, 0])
    for part in range(width - 1):
        share = quantile(u[:, part], alpha, alpha * (width - 1 - part))
        parts.append(left * share)
        left = left * (1.0 - share)
    return tf.stack([*parts, left], axis=1)
