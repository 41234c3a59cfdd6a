"""Degradation: what a camera and a file format take from an image."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bloodcell.augment import rng
from bloodcell.augment.entry import Draws, Op, Size, register
from bloodcell.augment.primitives.jpeg import Jpeg
from bloodcell.augment.primitives.noise import Noise
from bloodcell.augment.primitives.tone import Statistics
from bloodcell.spec import Param


def _noise_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Noise:
    return Noise(draws["key"], draws["std"])


register(Op("noise", "Adds Gaussian noise, independent in every pixel and channel.", "noise",
            "Threefry (SC 2011) and Box-Muller in NumPy, float64",
            lambda strength, u, options: {"key": rng.words(u[:, :2]), "std": strength}, _noise_lower, uniforms=2,
            params=(Param("std", float, 16.0, 0, 64, unit="grey levels"),), identity=0.0, full=64.0))


def _jpeg_lower(draws: Draws, options: Mapping[str, Any], size: Size, statistics: Statistics) -> Jpeg:
    return Jpeg(draws["quality"])


# By convention 100 leaves the image alone; libjpeg's 100 still halves the chroma's size and rounds.
register(Op("jpeg", "Compresses as JPEG and decompresses; at quality 100 nothing happens.", "jpeg",
            "Pillow's JPEG, exact",
            lambda strength, u, options: {"quality": tf.cast(tf.round(strength), tf.int32)}, _jpeg_lower,
            params=(Param("quality", int, 50, 5, 100, unit="of 100"),), identity=100.0, full=5.0))
