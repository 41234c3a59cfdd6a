"""Colour: ops that lower to a 3x4 matrix, on the levels or on their logarithms."""

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
from bloodcell.augment.primitives.stain import Stain
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

# Optical density in red, green and blue of one unit of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), with
# scikit-image's digits (`rgb_from_hed`).
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
SHIFT = 0.2  # optical density, to the base e, at level 1: the scale does the most, as an empty background has no stain


def _stain_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    signed = strength[:, tf.newaxis] * (2.0 * u[:, :6] - 1.0)
    return {"scale": 1.0 + signed[:, :3], "shift": SHIFT * signed[:, 3:]}


def _stain_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Stain:
    """Scales and shifts the amount of each stain (haematoxylin, eosin, DAB), as Tellez et al. 2018 write it.

    Amounts may be negative. scikit-image's `rgb2hed` sets those to 0, by which alone an image changes: a smear's
    eosinophilic cytoplasm has less than no haematoxylin. Its unit is 13.8 (-log 1e-6) of ours, optical density.
    """
    # Written out, since a GPU may multiply matrices with 10-bit mantissas: what each stain adds, by (stain, old, new).
    parts = np.linalg.inv(_HED).T[:, :, np.newaxis] * _HED[:, np.newaxis, :]
    weights = tf.reduce_sum(draws["scale"][:, :, tf.newaxis, tf.newaxis] * tf.constant(parts, tf.float32), axis=1)
    # The matrix acts on logarithms of grey levels, not of shares of white.
    white = math.log(255.0) * (1.0 - tf.reduce_sum(weights, axis=1))
    added = tf.reduce_sum(draws["shift"][:, :, tf.newaxis] * tf.constant(_HED, tf.float32), axis=1)
    return Stain(tf.concat([tf.transpose(weights, [0, 2, 1]), (white - added)[:, :, tf.newaxis]], axis=-1))


register(Op("stain", "Scales and shifts the amounts of haematoxylin, eosin and DAB, as smears differ.", "stain",
            "scikit-image `hed_from_rgb`, unclamped", _stain_sample, _stain_lower, uniforms=6,
            params=(Param("level", float, 0.3, 0, 1, unit="of the amounts"),), identity=0.0, full=1.0))
