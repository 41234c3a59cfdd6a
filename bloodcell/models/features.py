"""What a network sees in an image: the pooled output of a backbone. For the audit, and for whatever compares images.

Training and classifying belong elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.errors import InputError, did_you_mean
from bloodcell.models import backbones

PIXELS = "pixels"
_DEFAULT = "efficientnet_lite0"
_SIDE = 96  # pixels: what a backbone is shown
_SHRUNK = 12  # pixels: the side to which "pixels" shrinks
_CHUNK = 256


def validate(name: str) -> None:
    """Raises InputError where `--audit_features` names neither "auto", "pixels" nor a backbone trained on ImageNet."""
    trained = (name for name, entry in backbones.BACKBONES.items() if entry.imagenet)
    names = ("auto", PIXELS, *trained)
    if name not in names:
        raise InputError(f"--audit_features: unknown name '{name}'; {did_you_mean(name, names)}")


def resolve(name: str) -> str:
    """Returns what "auto" stands for: EfficientNet-Lite0 where its weights are installed, else "pixels"."""
    if name != "auto":
        return name
    try:
        backbones.BACKBONES[_DEFAULT].fetch()
    except backbones.MissingWeights:
        return PIXELS
    return _DEFAULT


class Extractor:
    """Gives features of unit length: of a backbone with its ImageNet weights, whose last feature map is averaged.

    Or, for where no weights are at hand, "pixels": the image shrunk to 12x12, without its mean.
    """

    def __init__(self, name: str) -> None:
        """Builds what `name` (a backbone, or "pixels") stands for; MissingWeights where its weights are not at hand."""
        self._look = _shrunk if name == PIXELS else _pooled(name)

    def __call__(self, images: Any, index: np.ndarray) -> np.ndarray:
        """Returns float32 [M, D]; a dot product of two rows is their cosine similarity.

        Args:
          images: uint8 [N, H, W, 3], or an array-like that gives such by index.
          index: int64 [M], which of them.
        """
        parts = [self._look(tf.constant(images[index[start:start + _CHUNK]])).numpy()
                 for start in range(0, len(index), _CHUNK)]
        found = np.concatenate(parts).astype(np.float32)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def _shrunk(images: tf.Tensor) -> tf.Tensor:
    small = tf.image.resize(images, (_SHRUNK, _SHRUNK), tf.image.ResizeMethod.AREA)
    return tf.reshape(small - tf.reduce_mean(small, axis=(1, 2, 3), keepdims=True), (-1, 3 * _SHRUNK ** 2))


def _pooled(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    backbone = backbones.build(backbones.BACKBONES[name], weights="imagenet", image_size=_SIDE)

    @tf.function(autograph=False, reduce_retracing=True)
    def look(images: tf.Tensor) -> tf.Tensor:
        seen = tf.cast(images, tf.float32)
        if seen.shape[1:3] != (_SIDE, _SIDE):
            seen = tf.image.resize(seen, (_SIDE, _SIDE), antialias=True)
        return tf.reduce_mean(backbone(seen, training=False), axis=(1, 2))

    return look
