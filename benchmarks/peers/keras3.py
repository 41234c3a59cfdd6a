"""Keras 3's own preprocessing layers, mapped over batches by `tf.data`: its documented use.

What differs from ours. `RandAugment` draws its ops once a batch, ours once an image; most single layers draw their
parameters per image. `RandomBrightness` adds, ours multiplies as Pillow does; `RandomContrast` keeps each channel's
mean, ours the luma's; `RandomHue` and `RandomSaturation` work in HSV. Layers take and give float32. `RandAugment` fails
under XLA, so all run as TensorFlow graphs. `Solarization` draws its threshold from about 0 up to the given one;
`RandomGaussianBlur` stops at sigma 1. `RandomElasticTransform` gets batches of 32: with 256 a run takes a minute.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peers import FILL, Run, tfdata

_RANGE = {"value_range": (0, 255)}
_OUTSIDE = {"fill_mode": "constant", "fill_value": FILL}
_ALWAYS = (1.0, 1.0)
_HALF = 0.5  # Keras's scale of enhancements: 0.5 changes nothing, 1 doubles

layers = keras.layers

OPS: dict[str, Callable[[float], Any]] = {
    "flip": lambda _: layers.RandomFlip("horizontal_and_vertical"),
    "rotate": lambda degrees: layers.RandomRotation((degrees / 360,) * 2, **_OUTSIDE),
    "shear": lambda level: layers.RandomShear((level,) * 2, (level,) * 2, **_OUTSIDE),
    "shear_x": lambda level: layers.RandomShear(x_factor=(level,) * 2, **_OUTSIDE),
    "shear_y": lambda level: layers.RandomShear(y_factor=(level,) * 2, **_OUTSIDE),
    "translate": lambda part: layers.RandomTranslation((part,) * 2, (part,) * 2, **_OUTSIDE),
    "translate_x": lambda part: layers.RandomTranslation(0.0, (part,) * 2, **_OUTSIDE),
    "translate_y": lambda part: layers.RandomTranslation((part,) * 2, 0.0, **_OUTSIDE),
    "zoom": lambda level: layers.RandomZoom((1 / (1 + level) - 1,) * 2, **_OUTSIDE),
    "perspective": lambda level: layers.RandomPerspective(_ALWAYS, level, fill_value=FILL),
    "elastic": lambda alpha: layers.RandomElasticTransform(_ALWAYS, 0.5, **_OUTSIDE, **_RANGE),
    "brightness": lambda level: layers.RandomBrightness((level,) * 2, **_RANGE),
    "contrast": lambda level: layers.RandomContrast((0.0, level), **_RANGE),
    "color": lambda level: layers.RandomSaturation((_HALF * (1 + level),) * 2, **_RANGE),
    "hue": lambda turns: layers.RandomHue((turns,) * 2, **_RANGE),
    "sharpness": lambda level: layers.RandomSharpness((_HALF * (1 + level),) * 2, **_RANGE),
    "posterize": lambda bits: layers.RandomPosterization((round(bits),) * 2, **_RANGE),
    "solarize": lambda threshold: layers.Solarization(threshold_factor=(threshold / 255,) * 2, **_RANGE),
    "equalize": lambda _: layers.Equalization(**_RANGE),
    "autocontrast": lambda _: layers.AutoContrast(**_RANGE),
    "gray": lambda _: layers.RandomGrayscale(1.0),
    "invert": lambda _: layers.RandomInvert(_ALWAYS, **_RANGE),
    "random_erasing": lambda area: layers.RandomErasing(_ALWAYS, (area, area), FILL, **_RANGE),
    "blur": lambda sigma: layers.RandomGaussianBlur(
        _ALWAYS, 2 * round(3 * sigma) + 1, (min(sigma, 1.0),) * 2, **_RANGE),
}

POLICIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "randaugment(2, 9)": ("RandAugment(num_ops=2)", lambda: layers.RandAugment(num_ops=2, **_RANGE)),
    "augmix(severity=3)": ("AugMix()", lambda: layers.AugMix(**_RANGE)),
}


def start(thing: Any, images: np.ndarray) -> Run:
    """Returns how to run a layer, or what makes one, over uint8 images [B, H, W, 3]."""
    layer = thing if isinstance(thing, keras.Layer) else thing()
    images = images[:32] if isinstance(layer, layers.RandomElasticTransform) else images
    return tfdata.over_batches(lambda batch: layer(tf.cast(batch, tf.float32), training=True), images)
