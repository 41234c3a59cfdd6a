"""Occlusion: ops that lower to a mask."""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.primitives.mask import ONCE, Mask
from bloodcell.augment.primitives.tone import Statistics
from bloodcell.spec import Param


def _constant(like: tf.Tensor, value: float) -> tf.Tensor:
    return tf.zeros_like(like) + value


def _cutout_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {"size": strength, "centre_x": u[:, 0], "centre_y": u[:, 1]}


def _cutout_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mask:
    height, width = size
    # The centre is any pixel, and what hangs over the edge is cut off (DeVries and Taylor 2017, Keras's RandomCutout).
    box_h, box_w = (tf.round(draws["size"] * side) for side in (height, width))
    left = tf.floor(draws["centre_x"] * width) - tf.floor(box_w / 2)
    top = tf.floor(draws["centre_y"] * height) - tf.floor(box_h / 2)
    one = tf.ones_like(left)
    return Mask(one, 0 * one, -left, -top, ONCE * one, box_w, box_h, _constant(one, options["value"]))


register(Op("cutout", "Fills a square at a random place.", "mask", "NumPy, exact", _cutout_sample, _cutout_lower,
            uniforms=2, random_strength=False, identity=0.0, full=1.0,
            params=(Param("size", float, 0.5, 0, 1, unit="of the side"),
                    Param("value", float, 128.0, 0, 255, unit="grey levels"))))


def _gridmask_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {"ratio": strength,
            "period": options["d_min"] + u[:, 0] * (options["d_max"] - options["d_min"]),
            "offset_x": u[:, 1], "offset_y": u[:, 2],
            "degrees": (2.0 * u[:, 3] - 1.0) * options["rotate"]}


def _gridmask_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mask:
    height, width = size
    period = tf.maximum(tf.round(draws["period"] * min(height, width)), 2.0)
    dropped = period - tf.round(period * draws["ratio"])
    offset_x, offset_y = (tf.floor(draws[f"offset_{axis}"] * period) for axis in "xy")
    angle = draws["degrees"] * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    u0 = cx - cos * cx - sin * cy - offset_x
    v0 = cy - cos * cy + sin * cx - offset_y
    return Mask(cos, sin, u0, v0, period, dropped, dropped, _constant(period, options["value"]))


register(Op("gridmask", "Fills the squares of a turned grid; of each period's side, the given ratio is kept.", "mask",
            "GridMask's formulas (arXiv 2001.04086) in NumPy", _gridmask_sample, _gridmask_lower, uniforms=4,
            random_strength=False, identity=1.0, full=0.0,
            params=(Param("ratio", float, 0.6, 0, 1, unit="of the period kept"),
                    Param("d_min", float, 0.3, 0.02, 2, unit="of the side"),
                    Param("d_max", float, 0.8, 0.02, 2, unit="of the side"),
                    Param("rotate", float, 45.0, 0, 180, unit="degrees"),
                    Param("value", float, 0.0, 0, 255, unit="grey levels"))))


def _erasing_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {"area": strength, "aspect": tf.exp((2.0 * u[:, 0] - 1.0) * -math.log(options["ratio"])),
            "left": u[:, 1], "top": u[:, 2]}


def _erasing_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Mask:
    height, width = size
    pixels = draws["area"] * (height * width)
    box_h = tf.minimum(tf.round(tf.sqrt(pixels * draws["aspect"])), height)
    box_w = tf.minimum(tf.round(tf.sqrt(pixels / draws["aspect"])), width)
    left = tf.floor(draws["left"] * (width - box_w + 1))
    top = tf.floor(draws["top"] * (height - box_h + 1))
    one = tf.ones_like(left)
    return Mask(one, 0 * one, -left, -top, ONCE * one, box_w, box_h, _constant(one, options["value"]))


register(Op("random_erasing", "Fills a rectangle of random area and shape, inside the image.", "mask",
            "the paper's rectangle (arXiv 1708.04896) in NumPy, exact", _erasing_sample, _erasing_lower, uniforms=3,
            identity=0.0, full=0.5,
            params=(Param("area", float, 0.4, 0, 0.5, unit="of the image"),
                    Param("ratio", float, 0.3, 0.1, 1, unit="height to width, or its inverse"),
                    Param("value", float, 128.0, 0, 255, unit="grey levels"))))
