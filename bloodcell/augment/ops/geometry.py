"""Geometry: ops that lower to a warp or to an elastic displacement."""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment import rng
from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.primitives.elastic import Elastic
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


def _crop_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    area = strength + u[:, 0] * (options["max"] - strength)
    aspect = tf.exp((2.0 * u[:, 1] - 1.0) * -math.log(options["ratio"]))
    # Too long a side is cut to the image's, and the other one makes up for it: the area stays as drawn.
    width = tf.minimum(tf.sqrt(area * aspect), 1.0)
    height = tf.minimum(area / width, 1.0)
    width = tf.minimum(area / height, 1.0)
    return {"width": width, "height": height, "left": u[:, 2] * (1.0 - width), "top": u[:, 3] * (1.0 - height)}


def _crop_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    zero = tf.zeros_like(draws["width"])
    shift = ((draws["left"] + draws["width"] / 2 - 0.5) * size[1], (draws["top"] + draws["height"] / 2 - 0.5) * size[0])
    return Warp(affine(size, (draws["width"], zero, zero, draws["height"]), shift))


register(Op(
    "resized_crop", "Cuts out a rectangle of random area, shape and place, and enlarges it to the image's size.",
    "warp", "Pillow affine", _crop_sample, _crop_lower, uniforms=4, random_strength=False, identity=1.0, full=0.05,
    params=(Param("min", float, 0.5, 0.05, 1, unit="of the area"),
            Param("max", float, 1.0, 0.05, 1, unit="of the area"),
            Param("ratio", float, 0.75, 0.1, 1, unit="width to height, or its inverse"), *OPTIONS)))


def _perspective_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    # Inwards, each corner on both axes: (x, y) of top left, top right, low right, low left.
    return {"shifts": strength[:, tf.newaxis] * u[:, :8]}


def _perspective_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Warp:
    """Heckbert's map of the unit square to a quadrilateral ("Fundamentals of texture mapping", 1989), inverted.

    Its sign, which is no part of a projective map, decides which side of the horizon is seen. The map as it stands has
    the first corner before the horizon; where the other three are behind, they are what is to be seen.
    """
    x0, y0, x1, y1, x2, y2, x3, y3 = (
        shift if positive else 1.0 - shift
        for shift, positive in zip(tf.unstack(draws["shifts"], axis=1), (1, 1, 0, 1, 0, 0, 1, 0), strict=True))
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / area, (dx1 * sy - sx * dy1) / area
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    determinant = a * (e - f * h) - b * (d - f * g) + c * (d * h - e * g)
    behind = (1.0 + g < 0) & (1.0 + g + h < 0) & (1.0 + h < 0)
    determinant = tf.where(behind, -determinant, determinant)
    width, height = size[1] - 1.0, size[0] - 1.0
    rows = [(e - f * h), (c * h - b) * width / height, (b * f - c * e) * width,
            (f * g - d) * height / width, (a - c * g), (c * d - a * f) * height,
            (d * h - e * g) / width, (b * g - a * h) / height, (a * e - b * d)]
    return Warp(tf.reshape(tf.stack(rows, axis=-1) / determinant[:, tf.newaxis], [-1, 3, 3]))


register(Op(
    "perspective", "Moves each corner inwards, up to a fraction of the side on each axis.", "warp",
    "Pillow perspective, OpenCV `getPerspectiveTransform`", _perspective_sample, _perspective_lower, uniforms=8,
    params=(Param("level", float, 0.2, 0, 0.45, unit="of the side"), *OPTIONS), identity=0.0, full=0.45))


def _elastic_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Elastic:
    return Elastic(draws["key"], draws["alpha"])


register(Op(
    "elastic", "Displaces the pixels by a smooth random field: `alpha` is the root mean square on each axis.",
    "elastic", "SciPy `gaussian_filter` and `map_coordinates`",
    lambda strength, u, options: {"key": rng.words(u[:, :2]), "alpha": strength}, _elastic_lower, uniforms=2,
    params=(Param("alpha", float, 2.0, 0, 8, unit="pixels"), Param("sigma", float, 4.0, 1, 16, unit="pixels"),
            *OPTIONS[:2]), identity=0.0, full=8.0))
