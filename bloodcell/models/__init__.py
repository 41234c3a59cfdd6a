"""Classifiers: a backbone, or several side by side, a head, and which of their layers train.

    model = models.build("efficientnet_lite0", weights="imagenet", head="dropout(0.3)", image_size=96, num_classes=8,
                         seed=0)
    freezing.apply(model, scope="top", percent=80)

What belongs here: networks and their weights. Losses, optimizers and checkpoints belong to `bloodcell.train`.
"""

from pathlib import Path

import keras

from bloodcell.errors import InputError
from bloodcell.models import backbones, concat, heads
from bloodcell.models.backbones import MissingWeights

__all__ = ["MissingWeights", "build", "names", "validate", "weights_sources"]


def names() -> tuple[str, ...]:
    """Returns the backbones; `--model` is one of them, or `concat(...)` of several."""
    return tuple(backbones.BACKBONES)


def validate(name: str, weights: str, head: str, image_size: int) -> None:
    """Checks the flags of a model without building anything or using the network.

    Raises:
      MissingWeights: the ImageNet weights come from a package that is not installed; nothing else is wrong.
      InputError: an unknown model or head operation, an image size out of range, or no such weights file.
    """
    parts = concat.parse(name)
    entries = [backbones.BACKBONES[part] for part in parts]
    neediest = max(entries, key=lambda entry: entry.minimum)
    if not neediest.minimum <= image_size <= backbones.MAX_IMAGE_SIZE:
        raise InputError(f"--image_size: expected {neediest.minimum}..{backbones.MAX_IMAGE_SIZE} pixels for "
                         f"{neediest.name}, received {image_size}")
    heads.parse(head, pooled=len(parts) > 1)
    sources = concat.split_weights(weights, len(parts))
    for source in sources:
        if source not in ("imagenet", "none") and not (source.endswith(".h5") and Path(source).is_file()):
            wrong = "which does not end in .h5" if Path(source).is_file() else "and there is no such file"
            raise InputError(f"--weights: expected imagenet, none or a Keras weights file (.h5), received '{source}', "
                             f"{wrong}")
    for entry, source in zip(entries, sources, strict=True):
        if source == "imagenet" and not entry.download:
            entry.fetch()


def build(name: str, *, weights: str, head: str, image_size: int, num_classes: int, seed: int) -> keras.Model:
    """Builds a classifier.

    The global dtype policy of the moment (`keras.config.set_dtype_policy`) is that of the layers; preprocessing, batch
    statistics, pooling and logits are float32 in any policy. Random weights depend on `seed` alone: the function seeds
    Python, NumPy and TensorFlow with it (`keras.utils.set_random_seed`), a side effect that callers should know of.

    Args:
      name: one of `names()`, or `concat(a, b, ...)` of at least two of them.
      weights: the backbone's: "imagenet", "none" (random), or the path of a Keras weights file (.h5); of a concat one
        of these for each part, with commas between them, or "imagenet" or "none" for all.
      head: spec of what lies between the feature map and the logits, such as "dense(128) | dropout(0.3)"; may be empty.
      image_size: side S of the square images, in pixels.
      num_classes: at least 2.
      seed: 0 to 2^32 - 1.

    Returns:
      A functional model: input float [B,S,S,3] in grey levels 0..255, layers "backbone" and "head", output float32
      logits [B,num_classes].

    Raises:
      MissingWeights: no ImageNet weights, and no way to get them.
      InputError: see `validate`; also a weights file that does not fit, or a head too large for memory.
    """
    validate(name, weights, head, image_size)
    if num_classes < 2:
        raise InputError(f"expected at least 2 classes, received {num_classes}")
    keras.utils.set_random_seed(seed)
    parts = concat.parse(name)
    sources = concat.split_weights(weights, len(parts))
    if len(parts) == 1:
        backbone = backbones.build(backbones.BACKBONES[name], weights=weights, image_size=image_size)
    else:
        backbone = concat.build(parts, weights=sources, image_size=image_size)
    top = heads.build(head, backbone.output, num_classes)
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    return keras.Model(image, top(backbone(image)), name=name if len(parts) == 1 else concat.NAME)


def weights_sources(name: str, weights: str) -> list[dict[str, str | None]]:
    """Says where the backbone's first weights come from, part by part; arguments as for `build`.

    Returns:
      `source` and `sha256` of each part's file, see `backbones.weights_source`; of random weights one entry in all.

    Raises:
      MissingWeights: no ImageNet weights, and no way to get them.
    """
    if weights == "none":
        return [{"source": "none", "sha256": None}]
    parts = concat.parse(name)
    return [backbones.weights_source(backbones.BACKBONES[part], source)
            for part, source in zip(parts, concat.split_weights(weights, len(parts)), strict=True)]
