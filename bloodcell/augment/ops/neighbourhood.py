"""Neighbourhood: ops that make each pixel of those around it, by a kernel or by cells."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.ops.tonal import FACTOR, factor_sample
from bloodcell.augment.primitives.blur import DISTANCE, TIMES, Blur
from bloodcell.augment.primitives.filter import Filter
from bloodcell.augment.primitives.mosaic import Mosaic
from bloodcell.augment.primitives.streak import Streak
from bloodcell.augment.primitives.tone import Statistics
from bloodcell.spec import Param

register(Op("sharpness", "Sharpens or smooths; the border pixels stay.", "filter",
            "Pillow `ImageEnhance.Sharpness`, exact", factor_sample,
            lambda draws, options, size, statistics: Filter(draws["factor"]),
            params=(FACTOR,), identity=0.0, full=0.95, uniforms=1))

_DOWN, _ACROSS = DISTANCE[:, np.newaxis], DISTANCE[np.newaxis, :]


def _blur_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Blur:
    sigma = draws["sigma"][:, tf.newaxis]
    last = tf.floor(4.0 * sigma + 0.5)  # SciPy cuts the bell off here
    bell = tf.where(last >= DISTANCE, tf.exp(-0.5 * tf.square(DISTANCE / tf.maximum(sigma, 1e-3))), 0.0)
    bell /= tf.reduce_sum(TIMES * bell, axis=-1, keepdims=True)
    return Blur(bell[:, :, tf.newaxis] * bell[:, tf.newaxis, :])


register(Op("blur", "Blurs by a Gaussian; beyond the border lies the mirror image.", "blur",
            "SciPy `gaussian_filter`, mode `reflect`", lambda strength, u, options: {"sigma": strength}, _blur_lower,
            params=(Param("sigma", float, 1.0, 0, 3, unit="pixels"),), identity=0.0, full=3.0))


def _defocus_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Blur:
    disc = tf.clip_by_value(draws["radius"][:, tf.newaxis, tf.newaxis] + (0.5 - np.hypot(_DOWN, _ACROSS)), 0.0, 1.0)
    times = TIMES[:, np.newaxis] * TIMES[np.newaxis, :]
    return Blur(disc / tf.reduce_sum(times * disc, axis=(1, 2), keepdims=True))


register(Op("defocus", "Spreads each pixel over a smooth-edged disc; beyond the border lies the mirror image.", "blur",
            "OpenCV `filter2D`", lambda strength, u, options: {"radius": strength}, _defocus_lower,
            params=(Param("radius", float, 3.0, 0, 8, unit="pixels"),), identity=0.0, full=8.0))


def _motion_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {"length": strength, "degrees": (2.0 * u[:, 0] - 1.0) * options["angle"]}


def _motion_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Streak:
    """Samples a line at every whole step along its major axis, -n..n.

    A step lies between two pixels across the axis and is shared out between them by its distance to each. The weight
    of step t is clip(reach + 1 - |t|, 0, 1), where `reach` is half the length as seen along the major axis; all weights
    together are 2 reach + 1.
    """
    angle = draws["degrees"][:, tf.newaxis, tf.newaxis] * (math.pi / 180)
    across, down = tf.abs(tf.cos(angle)), tf.abs(tf.sin(angle))
    major = tf.maximum(across, down)
    reach = draws["length"][:, tf.newaxis, tf.newaxis] / 2 * major

    def line(along: np.ndarray, beside: np.ndarray, slope: tf.Tensor) -> tf.Tensor:
        weight = tf.clip_by_value(reach + 1.0 - along, 0.0, 1.0) / (2.0 * reach + 1.0)
        return weight * tf.maximum(1.0 - tf.abs(along * slope - beside), 0.0)

    quadrant = tf.where(across >= down, line(_ACROSS, _DOWN, down / major), line(_DOWN, _ACROSS, across / major))
    # Off the axes the line passes through two opposite quadrants of the four.
    even = quadrant * np.where((_DOWN > 0) & (_ACROSS > 0), np.float32(0.5), np.float32(1.0))
    # Rows count downwards and angles counter-clockwise.
    return Streak(even, -tf.sign(tf.cos(angle) * tf.sin(angle)) * even)


register(Op("motion_blur", "Draws each pixel out along a straight line; beyond the border lies the mirror image.",
            "streak", "OpenCV `filter2D`", _motion_sample, _motion_lower, uniforms=1, identity=0.0, full=24.0,
            params=(Param("length", float, 7.0, 0, 24, unit="pixels"),
                    Param("angle", float, 180.0, 0, 180, unit="degrees either way"))))


def _pixelate_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mosaic:
    return Mosaic(*(tf.cast(tf.maximum(tf.round(draws["scale"] * side), 1.0), tf.int32) for side in size))


register(Op("pixelate", "Shows the image in fewer, larger pixels.", "mosaic", "Pillow `resize`, BOX down, NEAREST up",
            lambda strength, u, options: {"scale": strength}, _pixelate_lower,
            params=(Param("scale", float, 0.5, 0.1, 1, unit="of the side"),), identity=1.0, full=0.1))
