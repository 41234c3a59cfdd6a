"""Primitive tone: a curve of 256 entries per image and channel, and the image statistics that some curves need."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

# Pillow's luma in 16-bit fixed point (ITU-R 601).
LUMA = (19595, 38470, 7471)


class Tone(NamedTuple):
    """curve: int32 [B, 3, 256], or [B, 1, 256] for all channels: the new grey level of each old one."""

    curve: tf.Tensor


class Statistics(NamedTuple):
    """Of each image, in grey levels or counts; rows of samples that asked for none are zero.

    mean: int32 [B], mean of the luma, rounded as Pillow's `ImageEnhance.Contrast` does; extremes: int32 [B, 3, 2],
    least and greatest level per channel; cumulative: int32 [B, 3, 256], pixels at or below each level.
    """

    mean: tf.Tensor
    extremes: tf.Tensor
    cumulative: tf.Tensor


def luma(parts: list[tf.Tensor]) -> tf.Tensor:
    """Returns the luma of red, green and blue (int32), rounded as Pillow's `convert("L")`."""
    total = sum(weight * part for weight, part in zip(LUMA, parts, strict=True))
    return tf.bitwise.right_shift(total + 0x8000, 16)


def apply(packed: tf.Tensor, tone: Tone) -> tf.Tensor:
    """Looks every level of packed images int32 [B, H, W] up in its curve."""
    # One table an image: flat indices into the chunk's tables take XLA:CPU half as long again.
    count, shape = packed.shape[0], packed.shape
    return pixels.join([
        tf.reshape(tf.gather(tone.curve[:, channel % tone.curve.shape[1]], tf.reshape(part, [count, -1]), batch_dims=1),
                   shape) for channel, part in enumerate(pixels.channels(packed))])


def mean_luma(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B]."""
    levels = luma(pixels.channels(packed))
    count = levels.shape[1] * levels.shape[2]
    # Rows first: 32 bits hold the sum of a row, but of no image beyond 8 million pixels.
    rows = tf.cast(tf.reduce_sum(levels, axis=2), tf.float64)
    mean = tf.reduce_sum(rows, axis=1) / count
    return tf.cast(mean + 0.5, tf.int32)


def extremes(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B, 3, 2]."""
    parts = pixels.channels(packed)
    least = tf.stack([tf.reduce_min(part, axis=(1, 2)) for part in parts], axis=-1)
    greatest = tf.stack([tf.reduce_max(part, axis=(1, 2)) for part in parts], axis=-1)
    return tf.stack([least, greatest], axis=-1)


def cumulative(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B, 3, 256]."""
    # One scatter a channel: XLA:CPU takes five times as long over one segment sum for all three.
    batch, area = packed.shape[0], packed.shape[1] * packed.shape[2]
    start = tf.range(batch, dtype=tf.int32)[:, tf.newaxis] * 256
    tables = []
    for part in pixels.channels(packed):
        index = tf.reshape(start + tf.reshape(part, [batch, area]), [-1, 1])
        counts = tf.tensor_scatter_nd_add(tf.zeros([batch * 256], tf.int32), index, tf.ones([batch * area], tf.int32))
        tables.append(tf.reshape(counts, [batch, 256]))
    return tf.cumsum(tf.stack(tables, axis=1), axis=-1)
