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
    schedule = _schedule(key)
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
    key = _rolled(_split(seed), _split(epoch))
    return _join(_rolled(key, _split(sample_ids)))


def uniform(keys: tf.Tensor, count: int) -> tf.Tensor:
    """Returns float32 [B, count] in [0, 1), 24 random bits each, from int64 keys [B]."""
    low, high = (part[:, tf.newaxis] for part in _split(keys))
    counter = tf.cast(tf.range(count, dtype=tf.int32), tf.uint32)[tf.newaxis, :]
    bits, _ = _rolled((low, high), (counter, tf.zeros_like(counter)))
    return tf.cast(tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32), tf.float32) * 2.0**-24


def _rolled(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `threefry2x32(key, counter)`, its rounds in a loop.

    XLA would fuse unrolled rounds into every reader of the bits, hash again for each, and compile each copy; what a
    loop carries is computed once.
    """
    schedule = _schedule(key)
    rotations = tuple(tf.constant(each, tf.uint32) for each in _ROTATIONS)
    like = tf.zeros_like(key[0] + counter[0])

    def four_rounds(step: tf.Tensor, x0: tf.Tensor, x1: tf.Tensor, now: tf.Tensor, then: tf.Tensor,
                    *keys: tf.Tensor) -> tuple[tf.Tensor, ...]:
        for number in range(4):
            x0 = x0 + x1
            x1 = _xor(_rotate_left(x1, now[number]), x0)
        step = step + 1
        return (step, x0 + keys[1], x1 + keys[2] + step, then, now, keys[1], keys[2], keys[0])

    _, x0, x1, *_ = tf.while_loop(
        lambda step, *_: step < _ROUNDS // 4, four_rounds,
        (tf.constant(0, tf.uint32), like + counter[0] + schedule[0], like + counter[1] + schedule[1], *rotations,
         *schedule))
    return x0, x1


def sign(u: tf.Tensor) -> tf.Tensor:
    """Returns -1 or 1 with equal probability from uniforms in [0, 1)."""
    return tf.where(u < 0.5, -tf.ones_like(u), tf.ones_like(u))


def index(u: tf.Tensor, count: int) -> tf.Tensor:
    """Returns int32 in 0..count-1 with equal probability from uniforms in [0, 1)."""
    return tf.minimum(tf.cast(u * count, tf.int32), count - 1)


def normal(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns standard normals from two uniforms in [0, 1) (Box and Muller 1958)."""
    return tf.sqrt(-2.0 * tf.math.log(1.0 - u)) * tf.cos(2.0 * math.pi * v)


def words(u: tf.Tensor) -> tf.Tensor:
    """Returns int32 in 0..2**24-1, all the random bits of uniforms in [0, 1): keys for a field of an image's own."""
    return tf.cast(u * 2.0**24, tf.int32)


def field(keys: tf.Tensor, shape: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns two uint32 [B, *shape] of bits, the hash of each place's number (row by row), from keys int32 [B, 2].

    Not in a loop: a field is read once, where it is made, and never lies in memory.
    """
    first, second = (tf.cast(keys[:, word], tf.uint32)[:, tf.newaxis, tf.newaxis] for word in (0, 1))
    number = tf.cast(tf.reshape(tf.range(shape[0] * shape[1], dtype=tf.int32), [1, *shape]), tf.uint32)
    return threefry2x32((first, second), (number, tf.zeros_like(number)))


def normals(word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns two independent standard normals from each uint32 (Box and Muller 1958).

    The upper half is the radius and the lower half the angle, each at the middle of its 65,536th part, so normals go
    up to 4.9. The angle's first two bits are the quadrant, which is a pair of signs; within one, sine and cosine
    are polynomials about 45 degrees (error below 4e-7), which on XLA:CPU take a third of the time of its own.
    """
    high = tf.cast(tf.bitwise.right_shift(word, tf.constant(16, tf.uint32)), tf.int32)
    u = (tf.cast(high, tf.float32) + 0.5) * 2.0**-16
    radius = tf.sqrt(-2.0 * tf.math.log(u))
    low = tf.cast(tf.bitwise.bitwise_and(word, tf.constant(0xFFFF, tf.uint32)), tf.int32)
    quadrant, rest = tf.bitwise.right_shift(low, 14), tf.bitwise.bitwise_and(low, 0x3FFF)
    angle = (tf.cast(rest, tf.float32) - (2.0**13 - 0.5)) * (math.pi / 2**15)  # from 45 degrees
    square = angle * angle
    sine = angle * (1 + square * (-1 / 6 + square * (1 / 120 - square / 5040)))
    cosine = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square / 40320)))
    radius *= math.sqrt(0.5)
    x, y = radius * (cosine - sine), radius * (cosine + sine)
    return tf.where(tf.bitwise.bitwise_and(quadrant, 1) == 0, x, -x), tf.where(quadrant < 2, y, -y)


def _xor(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(a, b)


def _schedule(key: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return key[0], key[1], _xor(_xor(key[0], key[1]), tf.constant(_PARITY, tf.uint32))


def _rotate_left(x: tf.Tensor, by: tf.Tensor | int) -> tf.Tensor:
    by = tf.convert_to_tensor(by, tf.uint32)
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(x, by), tf.bitwise.right_shift(x, 32 - by))


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
