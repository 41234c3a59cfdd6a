"""Tone: ops that lower to a curve per channel. Factors and roundings are Pillow's."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment import pixels, rng
from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.primitives.tone import Statistics, Tone
from bloodcell.spec import Param


def _levels() -> tf.Tensor:
    return tf.range(256, dtype=tf.int32)[tf.newaxis, :]


def _all_channels(curve: tf.Tensor) -> Tone:
    return Tone(curve[:, tf.newaxis, :])


def _blend(pivot: tf.Tensor, factor: tf.Tensor) -> Tone:
    """Extrapolates from `pivot` (float32 [B, 1]) through each level by `factor` [B]."""
    level = tf.cast(_levels(), tf.float32)
    return _all_channels(pixels.to_levels(pivot + pixels.rounded(factor[:, tf.newaxis] * (level - pivot))))


def factor_sample(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    """Draws an enhancement's factor, 1 + or 1 - the strength."""
    return {"factor": 1.0 + strength * rng.sign(u[:, 0])}


def _nothing(strength: tf.Tensor, u: tf.Tensor, options: Mapping[str, Any]) -> Draws:
    return {}


FACTOR = Param("level", float, 0.3, 0, 0.95, unit="of the factor")


def _brightness_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    return _blend(tf.zeros_like(draws["factor"])[:, tf.newaxis], draws["factor"])


register(Op("brightness", "Multiplies the levels by 1 + or 1 - the level.", "tone", "Pillow `ImageEnhance.Brightness`",
            factor_sample, _brightness_lower, params=(FACTOR,), identity=0.0, full=0.95, uniforms=1))


def _contrast_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    return _blend(tf.cast(statistics.mean, tf.float32)[:, tf.newaxis], draws["factor"])


register(Op("contrast", "Stretches or flattens the levels about the mean luma.", "tone",
            "Pillow `ImageEnhance.Contrast`", factor_sample, _contrast_lower, params=(FACTOR,), identity=0.0, full=0.95,
            uniforms=1, statistic="mean"))


def _autocontrast_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    least, greatest = (statistics.extremes[:, :, end, tf.newaxis] for end in (0, 1))
    # float64 as in Pillow's Python: a level that lands on a whole number must land on the same side of it.
    span = tf.cast(tf.maximum(greatest - least, 1), tf.float64)
    scale = 255.0 / span
    offset = -tf.cast(least, tf.float64) * scale
    stretched = pixels.rounded(tf.cast(_levels(), tf.float64) * scale) + offset
    curve = tf.cast(tf.clip_by_value(stretched, 0.0, 255.0), tf.int32)
    return Tone(tf.where(greatest > least, curve, _levels()))


register(Op("autocontrast", "Stretches each channel to the full range.", "tone",
            "Pillow `ImageOps.autocontrast`, exact", _nothing, _autocontrast_lower, statistic="extremes"))


def _equalize_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    total = size[0] * size[1]
    at_or_below = statistics.cumulative
    below_last = tf.reduce_max(tf.where(at_or_below < total, at_or_below, 0), axis=-1, keepdims=True)
    step = below_last // 255  # pixels per output level; those of the brightest occupied level do not count
    below = tf.concat([tf.zeros_like(at_or_below[..., :1]), at_or_below[..., :-1]], axis=-1)
    curve = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    return Tone(tf.where(step > 0, curve, _levels()))


register(Op("equalize", "Flattens the histogram of each channel.", "tone", "Pillow `ImageOps.equalize`, exact",
            _nothing, _equalize_lower, statistic="cumulative"))


def _invert_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    return _all_channels(255 - _levels())


# Every curve has one row per sample, or one row that all samples share.
register(Op("invert", "Turns levels upside down.", "tone", "Pillow `ImageOps.invert`, exact", _nothing, _invert_lower))


def _posterize_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    dropped = 8 - draws["bits"][:, tf.newaxis]
    return _all_channels(tf.bitwise.left_shift(tf.bitwise.right_shift(_levels(), dropped), dropped))


register(Op("posterize", "Keeps the leading bits of each level.", "tone", "Pillow `ImageOps.posterize`, exact",
            lambda strength, u, options: {"bits": tf.cast(tf.round(strength), tf.int32)}, _posterize_lower,
            params=(Param("bits", int, 4, 1, 8, unit="bits kept"),), identity=8.0, full=1.0, random_strength=False))


def _solarize_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    bright = tf.cast(_levels(), tf.float32) >= draws["threshold"][:, tf.newaxis]
    return _all_channels(tf.where(bright, 255 - _levels(), _levels()))


register(Op("solarize", "Inverts the levels at or above a threshold.", "tone", "Pillow `ImageOps.solarize`, exact",
            lambda strength, u, options: {"threshold": strength}, _solarize_lower,
            params=(Param("threshold", float, 128.0, 0, 256, unit="grey levels"),), identity=256.0, full=0.0,
            random_strength=False))


def _gamma_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    level = tf.cast(_levels(), tf.float32) / 255.0
    return _all_channels(pixels.to_levels(255.0 * tf.pow(level, draws["exponent"][:, tf.newaxis]) + 0.5))


register(Op("gamma", "Raises the levels, as a share of 255, to a power: e to the level or to minus the level.", "tone",
            "scikit-image `adjust_gamma`",
            lambda strength, u, options: {"exponent": tf.exp(strength * rng.sign(u[:, 0]))}, _gamma_lower, uniforms=1,
            params=(Param("level", float, 0.5, 0, 1.5, unit="of the exponent's logarithm"),), identity=0.0, full=1.5))


def _solarize_add_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Tone:
    added = tf.minimum(_levels() + draws["addition"][:, tf.newaxis], 255)
    return _all_channels(tf.where(tf.cast(_levels(), tf.float32) < options["threshold"], added, _levels()))


register(Op("solarize_add", "Adds to the levels below a threshold.", "tone",
            "AutoAugment's `SolarizeAdd` in NumPy, exact",
            lambda strength, u, options: {"addition": tf.cast(tf.round(strength), tf.int32)}, _solarize_add_lower,
            params=(Param("addition", float, 110.0, 0, 110, unit="grey levels"),
                    Param("threshold", float, 128.0, 0, 256, unit="grey levels")), identity=0.0, full=110.0))
