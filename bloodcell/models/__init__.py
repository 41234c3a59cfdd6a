"""Classifiers: a backbone, a head, and which of their layers train.

    model = models.build("efficientnet_lite0", weights="imagenet", head="dropout(0.3)", image_size=96, num_classes=8,
                         seed=0)
    freezing.apply(model, scope="top", percent=80)

What belongs here: networks and their weights. Losses, optimizers and checkpoints belong to `bloodcell.train`.
"""

from pathlib import Path

import keras

from bloodcell.errors import InputError, did_you_mean
from bloodcell.models import backbones, heads
from bloodcell.models.backbones import MissingWeights

__all__ = ["MissingWeights", "build", "names", "validate"]


def names() -> tuple[str, ...]:
    """Returns what `--model` may be."""
    return tuple(backbones.BACKBONES)


def validate(name: str, weights: str, head: str, image_size: int) -> None:
    """Checks the flags of a model without building anything or using the network.

    Raises:
      MissingWeights: the ImageNet weights come from a package that is not installed.
      InputError: an unknown model or head operation, an image size out of range, or no such weights file.
    """
    if name not in backbones.BACKBONES:
        raise InputError(f"--model: unknown name '{name}'; {did_you_mean(name, names())}")
    entry = backbones.BACKBONES[name]
    if not entry.minimum <= image_size <= backbones.MAX_IMAGE_SIZE:
        raise InputError(f"--image_size: expected {entry.minimum}..{backbones.MAX_IMAGE_SIZE} pixels for {name}, "
                         f"received {image_size}")
    if weights == "imagenet":
        if not entry.download:
            entry.fetch()
    elif weights != "none" and not (weights.endswith(".h5") and Path(weights).is_file()):
        raise InputError(f"--weights: expected imagenet, none or a Keras weights file (.h5), received '{weights}', "
                         f"{'which does not end in .h5' if Path(weights).is_file() else 'and there is no such file'}")
    heads.parse(head)


def build(name: str, *, weights: str, head: str, image_size: int, num_classes: int, seed: int) -> keras.Model:
    """Builds a classifier.

    The global dtype policy of the moment (`keras.config.set_dtype_policy`) is that of the layers; preprocessing, batch
    statistics, pooling and logits are float32 in any policy. Random weights depend on `seed` alone: the function seeds
    Python, NumPy and TensorFlow with it (`keras.utils.set_random_seed`), a side effect that callers should know of.

    Args:
      name: one of `names()`.
      weights: the backbone's: "imagenet", "none" (random), or the path of a Keras weights file (.h5).
      head: spec of the layers between pooling and logits, such as "dense(128) | dropout(0.3)"; may be empty.
      image_size: side S of the square images, in pixels.
      num_classes: at least 2.
      seed: 0 to 2^32 - 1.

    Returns:
      A functional model: input float [B,S,S,3] in grey levels 0..255, layers "backbone" and "head", output float32
      logits [B,num_classes].

    Raises:
      MissingWeights: no ImageNet weights, and no way to get them.
      InputError: see `validate`; also a weights file that does not fit.
    """
    validate(name, weights, head, image_size)
    if num_classes < 2:
        raise InputError(f"expected at least 2 classes, received {num_classes}")
    keras.utils.set_random_seed(seed)
    backbone = backbones.build(backbones.BACKBONES[name], weights=weights, image_size=image_size)
    top = heads.build(head, backbone.output, num_classes)
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    return keras.Model(image, top(backbone(image)), name=name)
