"""Colour: ops that lower to a 3x4 matrix."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.augment import rng
from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.ops.tonal import FACTOR, factor_sample
from bloodcell.augment.primitives.mix import Mix
from bloodcell.augment.primitives.tone import LUMA, Statistics
from bloodcell.spec import Param

ROUND = 0.5
NUDGE = 2.0**-10  # undoes the rounding of sums that are whole numbers in exact arithmetic, where the result truncates

_LUMA_ROWS = np.tile(np.array(LUMA, np.float64) / 65536, (3, 1))
# The NTSC's RGB to luma, in-phase, quadrature.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _mix(weights: tf.Tensor, shift: tf.Tensor | float) -> Mix:
    """Joins weights [B, 3, 3] and a shift (broadcast to [B, 3]) to matrices."""
    shift = tf.zeros_like(weights[:, :, :1]) + (shift if isinstance(shift, float) else shift[:, :, tf.newaxis])
    return Mix(tf.concat([weights, shift], axis=-1))


def _color_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mix:
    factor = draws["factor"][:, tf.newaxis, tf.newaxis]
    grey = tf.constant(_LUMA_ROWS, tf.float32)
    return _mix(factor * tf.eye(3) + (1.0 - factor) * grey, NUDGE)


register(Op("color", "Strengthens or fades the colours, away from or towards grey.", "mix",
            "Pillow `ImageEnhance.Color`", factor_sample, _color_lower, params=(FACTOR,), identity=0.0, full=0.95,
            uniforms=1))


def _hue_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mix:
    # The rotation of the chroma plane is linear in its cosine and sine, so three constant matrices say it all.
    back = np.linalg.inv(_YIQ)
    keep = back @ np.diag([1.0, 0, 0]) @ _YIQ
    along = back @ np.diag([0, 1.0, 1.0]) @ _YIQ
    across = back @ np.array([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]) @ _YIQ
    angle = draws["turn"][:, tf.newaxis, tf.newaxis] * (2 * math.pi)
    weights = (tf.constant(keep, tf.float32) + tf.cos(angle) * tf.constant(along, tf.float32)
               + tf.sin(angle) * tf.constant(across, tf.float32))
    return _mix(weights, ROUND)


register(Op("hue", "Turns the hue in the YIQ plane, either way.", "mix", "colorsys's YIQ, TFA `adjust_hsv_in_yiq`",
            lambda strength, u, options: {"turn": strength * rng.sign(u[:, 0])}, _hue_lower, uniforms=1,
            params=(Param("level", float, 0.1, 0, 0.5, unit="turns"),), identity=0.0, full=0.5))


def _gray_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mix:
    return _mix(tf.constant(_LUMA_ROWS[np.newaxis], tf.float32), ROUND)


register(Op("gray", "Replaces each channel by the luma.", "mix", 'Pillow `convert("L")`, exact',
            lambda strength, u, options: {}, _gray_lower))

_PERMUTATIONS = tuple(itertools.permutations(range(3)))


def _shuffle_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mix:
    order = tf.gather(tf.constant(_PERMUTATIONS), draws["permutation"])
    return _mix(tf.one_hot(order, 3), ROUND)


register(Op("channel_shuffle", "Puts the channels in one of the six orders.", "mix", "NumPy, exact",
            lambda strength, u, options: {"permutation": rng.index(u[:, 0], 6)}, _shuffle_lower, uniforms=1))


def _shift_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {"shift": 255.0 * strength[:, tf.newaxis] * (2.0 * u[:, :3] - 1.0)}


def _shift_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mix:
    shift = draws["shift"]
    return _mix(tf.zeros_like(shift)[:, :, tf.newaxis] + tf.eye(3), shift + ROUND)


register(Op("channel_shift", "Adds a random amount to each channel, up to 255 times the level.", "mix", "NumPy, exact",
            _shift_sample, _shift_lower, uniforms=3, random_strength=False,
            params=(Param("level", float, 0.1, 0, 1, unit="of 255"),), identity=0.0, full=1.0))
