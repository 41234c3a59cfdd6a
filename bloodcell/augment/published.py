"""The op tables of published policies: which ops, and how strong each is at a magnitude.

A ramp takes float32 [B] magnitudes and returns the op's strength, in its first parameter's unit. A missing op is the
paper's identity.
"""

from collections.abc import Callable, Mapping

import tensorflow as tf

Ramp = Callable[[tf.Tensor], tf.Tensor]
IDENTITY = "identity"

# RandAugment (Cubuk et al. 2020, arXiv 1909.13719): 14 ops; strength at a magnitude 0..1 of the maximum, with timm's
# ranges. Posterize keeps 8 to 4 bits, as in torchvision, so that strength grows with the magnitude.
RANDAUGMENT: Mapping[str, Ramp] = {
    IDENTITY: tf.zeros_like,
    "autocontrast": tf.ones_like,
    "equalize": tf.ones_like,
    "rotate": lambda f: 30.0 * f,
    "solarize": lambda f: 256.0 * (1.0 - f),
    "color": lambda f: 0.9 * f,
    "posterize": lambda f: 8.0 - tf.round(4.0 * f),
    "contrast": lambda f: 0.9 * f,
    "brightness": lambda f: 0.9 * f,
    "sharpness": lambda f: 0.9 * f,
    "shear_x": lambda f: 0.3 * f,
    "shear_y": lambda f: 0.3 * f,
    "translate_x": lambda f: 0.45 * f,
    "translate_y": lambda f: 0.45 * f,
}

# TrivialAugment's wide space (Müller and Hutter 2021, arXiv 2103.10158): 14 ops, strength at one of 31 magnitudes 0..1.
# Translation there is 32 pixels whatever the image's size; here it is a third of the side, which is 32 of 96.
TRIVIALAUGMENT: Mapping[str, Ramp] = {
    IDENTITY: tf.zeros_like,
    "autocontrast": tf.ones_like,
    "equalize": tf.ones_like,
    "rotate": lambda f: 135.0 * f,
    "solarize": lambda f: 256.0 - 256.0 * f,
    "color": lambda f: 0.99 * f,
    "posterize": lambda f: 8.0 - tf.round(6.0 * f),
    "contrast": lambda f: 0.99 * f,
    "brightness": lambda f: 0.99 * f,
    "sharpness": lambda f: 0.99 * f,
    "shear_x": lambda f: 0.99 * f,
    "shear_y": lambda f: 0.99 * f,
    "translate_x": lambda f: f / 3.0,
    "translate_y": lambda f: f / 3.0,
}
TRIVIALAUGMENT_BINS = 31

# AugMix (Hendrycks et al. 2020, arXiv 1912.02781): 9 ops, none of which is among the corruptions that the paper tests
# on; strength at a level 0..10, drawn from 0.1 to the severity. Whole numbers are truncated, as there; translation,
# there a whole number of pixels up to a third of the side, is a fraction here.
AUGMIX: Mapping[str, Ramp] = {
    "autocontrast": tf.ones_like,
    "equalize": tf.ones_like,
    "posterize": lambda level: tf.maximum(4.0 - tf.floor(0.4 * level), 1.0),
    "rotate": lambda level: tf.floor(3.0 * level),
    "solarize": lambda level: 256.0 - tf.floor(25.6 * level),
    "shear_x": lambda level: 0.03 * level,
    "shear_y": lambda level: 0.03 * level,
    "translate_x": lambda level: level / 30.0,
    "translate_y": lambda level: level / 30.0,
}
AUGMIX_LEAST_LEVEL = 0.1
