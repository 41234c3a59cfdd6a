"""Random bits that depend on what is asked for and on nothing else.

A counter-based generator has no state: bits are a function of a key and a counter, so a sample draws the same
numbers in any batch, on any replica, eagerly or compiled, on CPU or GPU. The function is Threefry-2x32 with 20
rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which passes BigCrush
and needs only 32-bit additions, rotations and exclusive ors.

What belongs here: bits, keys and the basic distributions. What is drawn for which op belongs to the policy.
"""

import math

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # Skein's key-schedule constant
_ROUNDS = 20


def threefry2x32(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Hashes a 64-bit counter under a 64-bit key.

    Args:
      key: two uint32 tensors.
      counter: two uint32 tensors; all four shapes broadcast.

    Returns:
      Two uint32 tensors of independent uniform bits.
    """
    schedule = (key[0], key[1], _xor(_xor(key[0], key[1]), tf.constant(_PARITY, tf.uint32)))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for step in range(_ROUNDS // 4):
        for rotation in _ROTATIONS[step % 2]:
            x0 = x0 + x1
            x1 = _xor(_rotate_left(x1, rotation), x0)
        x0 = x0 + schedule[(step + 1) % 3]
        x1 = x1 + schedule[(step + 2) % 3] + tf.constant(step + 1, tf.uint32)
    return x0, x1


def sample_keys(sample_ids: tf.Tensor, *, epoch: tf.Tensor | int, seed: tf.Tensor | int) -> tf.Tensor:
    """Returns the key of each sample.

    Args:
      sample_ids: int64 [B], the same for an image wherever it turns up.
      epoch: int64 scalar.
      seed: int64 scalar.

    Returns:
      int64 [B]: a hash of (seed, epoch, sample id).
    """
    key = threefry2x32(_split(seed), _split(epoch))
    return _join(threefry2x32(key, _split(sample_ids)))


def uniform(keys: tf.Tensor, count: int) -> tf.Tensor:
    """Returns float32 [B, count] in [0, 1), 24 random bits each, from int64 keys [B]."""
    low, high = (part[:, tf.newaxis] for part in _split(keys))
    counter = tf.cast(tf.range(count, dtype=tf.int32), tf.uint32)[tf.newaxis, :]
    bits, _ = threefry2x32((low, high), (counter, tf.zeros_like(counter)))
    return tf.cast(tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32), tf.float32) * 2.0**-24


def sign(u: tf.Tensor) -> tf.Tensor:
    """Returns -1 or 1 with equal probability from uniforms in [0, 1)."""
    return tf.where(u < 0.5, -tf.ones_like(u), tf.ones_like(u))


def index(u: tf.Tensor, count: int) -> tf.Tensor:
    """Returns int32 in 0..count-1 with equal probability from uniforms in [0, 1)."""
    return tf.minimum(tf.cast(u * count, tf.int32), count - 1)


def normal(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns standard normals from two uniforms in [0, 1) (Box and Muller 1958)."""
    return tf.sqrt(-2.0 * tf.math.log(1.0 - u)) * tf.cos(2.0 * math.pi * v)


def _xor(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(a, b)


def _rotate_left(x: tf.Tensor, by: int) -> tf.Tensor:
    left = tf.bitwise.left_shift(x, tf.constant(by, tf.uint32))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, tf.constant(32 - by, tf.uint32)))


def _split(x: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the low and high 32 bits of int64."""
    x = tf.cast(x, tf.int64)
    low = tf.cast(tf.bitwise.bitwise_and(x, tf.constant(0xFFFFFFFF, tf.int64)), tf.uint32)
    high = tf.cast(tf.bitwise.bitwise_and(tf.bitwise.right_shift(x, tf.constant(32, tf.int64)),
                                          tf.constant(0xFFFFFFFF, tf.int64)), tf.uint32)
    return low, high


def _join(parts: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    low, high = (tf.cast(part, tf.int64) for part in parts)
    return tf.bitwise.bitwise_or(low, tf.bitwise.left_shift(high, tf.constant(32, tf.int64)))
