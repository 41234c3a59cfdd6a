"""Primitive noise: Gaussian noise of each pixel and channel, hashed from a key an image and the pixel's number."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels, rng


class Noise(NamedTuple):
    """key: int32 [B, 2], what the noise of an image is hashed from; std: float32 [B], grey levels."""

    key: tf.Tensor
    std: tf.Tensor


def apply(packed: tf.Tensor, noise: Noise) -> tf.Tensor:
    """Adds noise to packed images int32 [B, H, W]; the sum is rounded and clipped.

    One hash a pixel gives 64 bits, which are four normals; the three channels take one each. Hashing once for two
    pixels and using all four would cost more: XLA:CPU computes a hash again for every array that reads it.
    """
    first, second = rng.field(noise.key, (packed.shape[1], packed.shape[2]))
    drawn = (*rng.normals(first), *rng.normals(second))
    std = noise.std[:, tf.newaxis, tf.newaxis]
    return pixels.join([pixels.to_levels(tf.cast(part, tf.float32) + std * normal + 0.5)
                        for part, normal in zip(pixels.channels(packed), drawn[:3], strict=True)])
