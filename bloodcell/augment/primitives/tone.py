"""Primitive tone: a curve of 256 entries per image and channel, and the image statistics that some curves need."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels

# Pillow's luma in 16-bit fixed point (ITU-R 601).
LUMA = (19595, 38470, 7471)


class Tone(NamedTuple):
    """curve: int32 [B, 3, 256], the new grey level of each old one."""

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
        tf.reshape(tf.gather(tone.curve[:, channel], tf.reshape(part, [count, -1]), batch_dims=1), shape)
        for channel, part in enumerate(pixels.channels(packed))])


def mean_luma(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B]."""
    levels = luma(pixels.channels(packed))
    count = levels.shape[1] * levels.shape[2]
    mean = tf.cast(tf.reduce_sum(levels, axis=(1, 2)), tf.float64) / count
    return tf.cast(mean + 0.5, tf.int32)


def extremes(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B, 3, 2]."""
    parts = pixels.channels(packed)
    least = tf.stack([tf.reduce_min(part, axis=(1, 2)) for part in parts], axis=-1)
    greatest = tf.stack([tf.reduce_max(part, axis=(1, 2)) for part in parts], axis=-1)
    return tf.stack([least, greatest], axis=-1)


def cumulative(packed: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B, 3, 256]."""
    batch, area = packed.shape[0], packed.shape[1] * packed.shape[2]
    start = tf.range(batch * 3, dtype=tf.int32)[:, tf.newaxis] * 256
    levels = tf.reshape(tf.stack(pixels.channels(packed), axis=1), [batch * 3, area])
    histogram = tf.math.unsorted_segment_sum(
        tf.ones([batch * 3 * area], tf.int32), tf.reshape(start + levels, [-1]), batch * 768)
    return tf.cumsum(tf.reshape(histogram, [batch, 3, 256]), axis=-1)
