"""Primitive mix: a 3x4 colour matrix per image."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell.augment import pixels


class Mix(NamedTuple):
    """matrix: float32 [B, 3, 4], new (red, green, blue) from (red, green, blue, 1) in grey levels.

    The result is truncated, so an op that rounds puts 0.5 into the last column.
    """

    matrix: tf.Tensor


def apply(packed: tf.Tensor, mix: Mix) -> tf.Tensor:
    """Multiplies every pixel of packed images int32 [B, H, W] by its image's matrix."""
    parts = [tf.cast(part, tf.float32) for part in pixels.channels(packed)]
    rows = []
    for row in range(3):
        weight = [mix.matrix[:, row, column][:, tf.newaxis, tf.newaxis] for column in range(4)]
        rows.append(pixels.to_levels(weight[0] * parts[0] + weight[1] * parts[1] + weight[2] * parts[2] + weight[3]))
    return pixels.join(rows)
