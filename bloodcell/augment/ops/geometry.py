"""Geometry: ops that lower to a warp."""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment import rng
from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.primitives.tone import Statistics
from bloodcell.augment.primitives.warp import FILLS, Style, Warp, affine
from bloodcell.spec import Param

OPTIONS = (
    Param("fill", str, Style().fill, choices=FILLS),
    Param("value", float, Style().value, 0, 255, unit="grey levels"),
    Param("interpolation", str, Style().interpolation, choices=("bilinear", "nearest")),
)


def _flip_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    never = tf.zeros_like(u[:, 0], dtype=tf.bool)
    return {"horizontal": never if options["axis"] == "vertical" else u[:, 0] < 0.5,
            "vertical": never if options["axis"] == "horizontal" else u[:, 1] < 0.5}


def _flip_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    x = tf.where(draws["horizontal"], -1.0, 1.0)
    y = tf.where(draws["vertical"], -1.0, 1.0)
    return Warp(affine(size, (x, tf.zeros_like(x), tf.zeros_like(y), y)))


register(Op(
    "flip", "Mirrors left-right, top-bottom or both; each axis with probability 1/2.", "warp", "NumPy, exact",
    _flip_sample, _flip_lower, uniforms=2,
    params=(Param("axis", str, "both", choices=("both", "horizontal", "vertical")),)))


def _rot90_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    # Counter-clockwise: the sine and cosine of whole quarter turns, exact.
    cos = tf.gather(tf.constant([1.0, 0.0, -1.0, 0.0]), draws["turns"])
    sin = tf.gather(tf.constant([0.0, 1.0, 0.0, -1.0]), draws["turns"])
    return Warp(affine(size, (cos, -sin, sin, cos)))


register(Op(
    "rot90", "Turns by 0, 90, 180 or 270 degrees.", "warp", "NumPy, exact",
    lambda strength, u, options: {"turns": rng.index(u[:, 0], 4)}, _rot90_lower, uniforms=1, square=True))


def _rotate_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    angle = draws["degrees"] * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    return Warp(affine(size, (cos, -sin, sin, cos)))


register(Op(
    "rotate", "Turns about the centre, either way.", "warp", "Pillow `rotate`, TFA `rotate`",
    lambda strength, u, options: {"degrees": strength * rng.sign(u[:, 0])}, _rotate_lower, uniforms=1,
    params=(Param("degrees", float, 180.0, 0, 180, unit="degrees"), *OPTIONS), identity=0.0, full=180.0))


def _shear_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    one = tf.ones_like(draws["x"])
    return Warp(affine(size, (one, draws["x"], draws["y"], one)))


def _shift_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    one, zero = tf.ones_like(draws["x"]), tf.zeros_like(draws["x"])
    return Warp(affine(size, (one, zero, zero, one), (draws["x"] * size[1], draws["y"] * size[0])))


def _signed_axes(axes: str) -> Any:
    """Draws `x` and `y`: the strength with a random sign on the given axes, 0 on the other."""
    def sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
        return {axis: strength * rng.sign(u[:, position]) if axis in axes else tf.zeros_like(strength)
                for position, axis in enumerate("xy")}
    return sample


for _name, _axes, _where in (("shear", "xy", "both ways"), ("shear_x", "x", "sideways"), ("shear_y", "y", "upwards")):
    register(Op(
        _name, f"Slants {_where} about the centre.", "warp", "Pillow affine",
        _signed_axes(_axes), _shear_lower, uniforms=2,
        # At tangent 1 both ways the map is singular; 0.9 is the strongest that still shows an image.
        params=(Param("level", float, 0.3, 0, 0.9 if _axes == "xy" else 1, unit="tangent"), *OPTIONS),
        identity=0.0, full=0.9 if _axes == "xy" else 1.0))

for _name, _axes, _where in (("translate", "xy", "on both axes"), ("translate_x", "x", "sideways"),
                             ("translate_y", "y", "up or down")):
    register(Op(
        _name, f"Moves {_where}.", "warp", "Pillow affine", _signed_axes(_axes), _shift_lower, uniforms=2,
        params=(Param("fraction", float, 0.2, 0, 0.5, unit="of the side"), *OPTIONS), identity=0.0, full=0.5))


def _zoom_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    inverse = 1.0 / draws["scale"]
    zero = tf.zeros_like(inverse)
    return Warp(affine(size, (inverse, zero, zero, inverse)))


register(Op(
    "zoom", "Enlarges or shrinks about the centre, to 1 + or 1 - the level.", "warp", "Pillow affine",
    lambda strength, u, options: {"scale": 1.0 + strength * rng.sign(u[:, 0])}, _zoom_lower, uniforms=1,
    params=(Param("level", float, 0.2, 0, 0.9, unit="of the scale"), *OPTIONS), identity=0.0, full=0.9))
