"""Neighbourhood: ops that lower to a small kernel."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.ops.tonal import FACTOR, factor_sample
from bloodcell.augment.primitives.filter import Filter
from bloodcell.augment.primitives.tone import Statistics

_DELTA = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def _sharpness_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Filter:
    factor = draws["factor"][:, tf.newaxis, tf.newaxis]
    return Filter(factor * _DELTA + (1.0 - factor) * _SMOOTH)


register(Op("sharpness", "Sharpens or smooths; the border pixels stay.", "filter", "Pillow `ImageEnhance.Sharpness`",
            factor_sample, _sharpness_lower, params=(FACTOR,), identity=0.0, full=0.95, uniforms=1))
