"""Primitive stain: a 3x4 matrix an image on the logarithms of the levels, where the amounts of stains add up."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell.augment import pixels

DARK = 0.25  # grey levels; what 0, whose logarithm is infinite, counts as: it still rounds to 0
LOGS = np.log(np.maximum(np.arange(256), DARK)).astype(np.float32)


class Stain(NamedTuple):
    """matrix: float32 [B, 3, 4], natural logarithms of the new levels (red, green, blue) from (those of the old, 1)."""

    matrix: tf.Tensor


def apply(packed: tf.Tensor, stain: Stain) -> tf.Tensor:
    """Restains packed images int32 [B, H, W]; levels are rounded and clipped."""
    logs = [tf.gather(tf.constant(LOGS), part) for part in pixels.channels(packed)]
    rows = []
    for row in range(3):
        weight = [stain.matrix[:, row, column][:, tf.newaxis, tf.newaxis] for column in range(4)]
        log = weight[0] * logs[0] + weight[1] * logs[1] + weight[2] * logs[2] + weight[3]
        rows.append(pixels.to_levels(tf.exp(log) + 0.5))
    return pixels.join(rows)
