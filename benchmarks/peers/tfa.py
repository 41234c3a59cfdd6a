"""tf.image and TensorFlow Addons, mapped over images by `tf.data`: what users of TensorFlow write today.

What differs from ours. `tf.image` knows brightness by addition, contrast about each channel's mean, and saturation in
HSV; what neither library has (autocontrast, posterize, the channel ops, noise) is written with TensorFlow's own ops, as
AutoAugment's published code does. TFA's `shear_x` samples the nearest pixel, so `transform` does the warps, bilinearly.
None of the warps compile under XLA. TFA's own kernels (hue) do not load beside TensorFlow 2.21, so its Python ops run.
Results are uint8, or float32 where the function gives that.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers import FILL, Run, tfdata

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is at its end of life, and knows no such TensorFlow
    import tensorflow_addons as tfa

tfa.options.disable_custom_kernel()  # the wheel's C++ ops do not load beside TensorFlow 2.21; its Python ones take over

Function = Callable[[tf.Tensor], tf.Tensor]


def _transform(*numbers: float) -> Function:
    """A projective map about the centre, from the output to the source: a0, a1, shift x, b0, b1, shift y, c0, c1."""
    a0, a1, dx, b0, b1, dy, c0, c1 = (*numbers, 0.0, 0.0)[:8]

    def apply(image: tf.Tensor) -> tf.Tensor:
        cx, cy = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
        shift_x = cx - a0 * cx - a1 * cy + dx * image.shape[1]
        shift_y = cy - b0 * cx - b1 * cy + dy * image.shape[0]
        return tfa.image.transform(image, [a0, a1, shift_x, b0, b1, shift_y, c0, c1], "bilinear", "constant",
                                   fill_value=float(FILL))
    return apply


def _resized_crop(area: float) -> Function:
    def apply(image: tf.Tensor) -> tf.Tensor:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.zeros([1, 0, 4]), area_range=(area, 1.0), use_image_if_no_bounding_boxes=True)
        return tf.image.resize(tf.slice(image, begin, size), image.shape[:2])
    return apply


def _flip(image: tf.Tensor) -> tf.Tensor:
    return tf.image.random_flip_up_down(tf.image.random_flip_left_right(image))


def _scaled(factor: float) -> Function:
    return lambda image: tf.saturate_cast(tf.cast(image, tf.float32) * factor, tf.uint8)


def _posterize(bits: float) -> Function:
    shift = tf.constant(8 - round(bits), tf.uint8)
    return lambda image: tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize(threshold: float) -> Function:
    return lambda image: tf.where(image < math.ceil(threshold), image, 255 - image)


def _solarize_add(addition: float) -> Function:
    def apply(image: tf.Tensor) -> tf.Tensor:
        added = tf.saturate_cast(tf.cast(image, tf.int32) + round(addition), tf.uint8)
        return tf.where(image < 128, added, image)
    return apply


def _autocontrast(image: tf.Tensor) -> tf.Tensor:
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float32)
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float32)
    stretched = (tf.cast(image, tf.float32) - low) * (255.0 / tf.maximum(high - low, 1.0))
    return tf.where(high > low, tf.saturate_cast(stretched, tf.uint8), image)


def _channel_shift(level: float) -> Function:
    return lambda image: tf.saturate_cast(
        tf.cast(image, tf.float32) + tf.random.uniform([3], -255.0 * level, 255.0 * level), tf.uint8)


def _noise(std: float) -> Function:
    return lambda image: tf.saturate_cast(
        tf.cast(image, tf.float32) + tf.random.normal(image.shape, stddev=std), tf.uint8)


def _cutout(size: float) -> Function:
    def apply(image: tf.Tensor) -> tf.Tensor:
        side = 2 * round(size * image.shape[0] / 2)  # TFA wants an even side
        return tfa.image.random_cutout(image[tf.newaxis], (side, side), constant_values=FILL)[0]
    return apply


def _pixelate(scale: float) -> Function:
    def apply(image: tf.Tensor) -> tf.Tensor:
        small = tf.image.resize(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)), "area")
        return tf.image.resize(small, image.shape[:2], "nearest")
    return apply


def _elastic(alpha: float) -> Function:
    def apply(image: tf.Tensor) -> tf.Tensor:
        flow = tfa.image.gaussian_filter2d(tf.random.uniform([*image.shape[:2], 2], -alpha, alpha), 25, 4.0)
        return tfa.image.dense_image_warp(tf.cast(image, tf.float32)[tf.newaxis], flow[tf.newaxis])[0]
    return apply


OPS: dict[str, Callable[[float], Function]] = {
    "flip": lambda _: _flip,
    "rot90": lambda _: lambda image: tf.image.rot90(image, tf.random.uniform([], 0, 4, tf.int32)),
    "rotate": lambda degrees: lambda image: tfa.image.rotate(
        image, degrees * (math.pi / 180), "bilinear", "constant", "rotate", float(FILL)),
    "shear": lambda level: _transform(1, level, 0, level, 1, 0),
    "shear_x": lambda level: _transform(1, level, 0, 0, 1, 0),
    "shear_y": lambda level: _transform(1, 0, 0, level, 1, 0),
    "translate": lambda part: _transform(1, 0, part, 0, 1, part),
    "translate_x": lambda part: _transform(1, 0, part, 0, 1, 0),
    "translate_y": lambda part: _transform(1, 0, 0, 0, 1, part),
    "zoom": lambda level: _transform(1 / (1 + level), 0, 0, 0, 1 / (1 + level), 0),
    "resized_crop": _resized_crop,
    "perspective": lambda level: _transform(1 - level, 0, 0, 0, 1 - level, 0, level / 960, level / 960),
    "pixelate": _pixelate,
    "elastic": _elastic,
    "brightness": lambda level: _scaled(1 + level),
    "contrast": lambda level: lambda image: tf.image.adjust_contrast(image, 1 + level),
    "gamma": lambda level: lambda image: tf.image.adjust_gamma(image / 255, math.exp(level)) * 255,
    "color": lambda level: lambda image: tf.image.adjust_saturation(image, 1 + level),
    "hue": lambda turns: lambda image: tfa.image.adjust_hsv_in_yiq(image, 2 * math.pi * turns),
    "gray": lambda _: lambda image: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)),
    "channel_shuffle": lambda _: lambda image: tf.gather(image, tf.random.shuffle([0, 1, 2]), axis=-1),
    "channel_shift": _channel_shift,
    "sharpness": lambda level: lambda image: tfa.image.sharpness(image, 1 + level),
    "blur": lambda sigma: lambda image: tfa.image.gaussian_filter2d(image, 2 * round(3 * sigma) + 1, sigma),
    "autocontrast": lambda _: _autocontrast,
    "equalize": lambda _: tfa.image.equalize,
    "invert": lambda _: lambda image: 255 - image,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "cutout": _cutout,
    "noise": _noise,
    "jpeg": lambda quality: lambda image: tf.image.adjust_jpeg_quality(image, round(quality)),
}


_STRENGTHS = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45,
              "brightness": 0.9, "contrast": 0.9, "color": 0.9, "equalize": 1.0, "sharpness": 0.9}  # at magnitude 1


def two_of_ten(magnitude: float) -> Function:
    """Returns two random ops an image, at a magnitude of 0..1, as a loop over `tf.switch_case`."""
    def apply(image: tf.Tensor) -> tf.Tensor:
        for _ in range(2):
            branches = [lambda image=image, name=name, strength=strength: OPS[name](magnitude * strength)(image)
                        for name, strength in _STRENGTHS.items()]
            image = tf.switch_case(tf.random.uniform([], 0, len(branches), tf.int32), branches)
        return image
    return apply


POLICIES: dict[str, tuple[str, Function]] = {
    "randaugment(2, 9)": ("two random ops of ten an image", two_of_ten(0.9)),
}


def start(thing: Any, images: np.ndarray) -> Run:
    """Returns how to run a function of one image over uint8 images [B, H, W, 3]."""
    return tfdata.over_images(thing, images)
