"""Corruptions of test images: what a model's figures fall to when its images are not as they were in training.

Here stand all of them by name (`CORRUPTIONS`), the reading of `--corruptions`, what their figures are, and the suite
`heavy`; the eleven that are published for BloodMNIST are in `medmnist_c`. None is a training augmentation: the flags of
training know none of these names. What a corruption does was chosen once, by the reasons beside it, and is never fitted
to a model's figures.

The suite `heavy` is in the manner of a course's hidden test set, in which every cell had been through several strong
transforms at once. An image draws 2, 3, 4 or 5 of six families, all numbers and all choices equally likely, and of each
family that it drew one op, all equally likely; the op's strength is drawn as in a policy. Why so:

- One op of a family at most: a second blur or a second occlusion hides the cell and tests nothing new, while different
  families add up as they do in a photograph.
- In the order in which a picture comes about: how the cell lies, light, stain, lens, what covers it, and last what
  sensor and file do.
- Wide ranges, up to where most cells can still be told by who knows them: any turn, half the scale either way, three
  tenths of the side moved, levels up to 70% off, all hues, a lens several pixels out of focus, a fifth of the image
  covered, a file of the worst quality. Strengths from nothing upwards stay in, as hidden images are not all extreme.
- Flips and quarter turns are left out: to a smear they are no change at all.
- Half of the warps fill what comes into view with black and half by reflection, as the usual libraries do.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import rng
from bloodcell.augment.policy import Draws
from bloodcell.errors import InputError, did_you_mean, shown
from bloodcell.evaluate import medmnist_c
from bloodcell.evaluate.classifier import OnHost

ALL = "all"  # what `--corruptions` calls the eleven

# What is measured of each; of the clean images `metrics.compute` says more.
_OF_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
_ERRORS = ("balanced_error", "relative_balanced_error")


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One entry of `CORRUPTIONS`.

    Attributes:
      summary: what it does to an image, for people.
      parameters: what a severity is given by, with commas between them.
      severities: the parameters' values, from severity 1; a suite without severities has one.
      source: where it is defined.
      apply: from uint8 images [B, H, W, 3], their ids int64 [B] and a severity to uint8 images of the same shape. Pure:
        the result for an image depends on it, on its id and on the severity alone.
      compilable: whether it takes and gives tensors, and XLA may compile it; else arrays.
      alexnet: mean balanced error over the severities that is published of an AlexNet at 224x224; None where none is.
    """

    summary: str
    parameters: str
    severities: tuple[str, ...]
    source: str
    apply: Callable[[Any, Any, int], Any]
    compilable: bool = False
    alexnet: float | None = None


def parse(text: str) -> tuple[str, ...]:
    """Reads `--corruptions`: names of `CORRUPTIONS` and `all`, separated by commas; empty text is none.

    Returns:
      The names, each once, `all` replaced by the eleven of `medmnist_c`.

    Raises:
      InputError: an unknown name.
    """
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")) if text.strip() else ():
        if name != ALL and name not in CORRUPTIONS:
            raise InputError(f"--corruptions expected names of corruptions with commas between them, received "
                             f"{shown(name)!r}; {did_you_mean(name, (ALL, *CORRUPTIONS))}")
        names += medmnist_c.CORRUPTIONS if name == ALL else [name]
    return tuple(dict.fromkeys(names))


def described() -> str:
    """Returns the part of `--help` that says what there is."""
    lines = [f"  {ALL}\n      The eleven below that have severities: {medmnist_c.SOURCE}."]
    for name, each in CORRUPTIONS.items():
        lines.append(f"  {name}\n      {each.summary}")
        if len(each.severities) > 1:
            lines.append(f"      {each.parameters} of severity 1 to {len(each.severities)}: "
                         f"{'; '.join(each.severities)}.")
    return "\n".join(lines) + "\n"


def on_host(name: str, severity: int, *, jit: bool) -> OnHost:
    """Returns a corruption as what `Classifier.outputs` takes: from uint8 arrays of images and ids to images.

    Args:
      name: of `CORRUPTIONS`.
      severity: from 1.
      jit: whether XLA compiles it where it can; single pixels may then differ, as with every policy.
    """
    entry = CORRUPTIONS[name]
    if not entry.compilable:
        return lambda images, ids: entry.apply(images, ids, severity)
    graph = tf.function(lambda images, ids: entry.apply(images, ids, severity), jit_compile=jit, autograph=False)
    return lambda images, ids: graph(tf.constant(images), tf.constant(ids)).numpy()


def figures(of_corrupted: Sequence[Mapping[str, Any]], clean: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is said of a corruption.

    Args:
      of_corrupted: of `metrics.compute`, on images corrupted at each severity.
      clean: the same on the images as they are.

    Returns:
      `accuracy`, `balanced_accuracy`, `macro_f1`; `balanced_error`, 1 less the balanced accuracy; and
      `relative_balanced_error`, how much more that is than on the clean images (the relative error of Hendrycks and
      Dietterich, arXiv 1903.12261, before it is divided by another model's). Each is the mean over the severities,
      whose own figures are the list `severities` where there are several.
    """
    clean_error = 1.0 - clean["balanced_accuracy"]
    each = []
    for one in of_corrupted:
        error = 1.0 - one["balanced_accuracy"]
        each.append({**{name: one[name] for name in _OF_METRICS}, "balanced_error": error,
                     "relative_balanced_error": error - clean_error})
    return {**_mean(each), "severities": each} if len(each) > 1 else each[0]


def mean(of_all: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the mean over corruptions, as MedMNIST-C reports it; None where none of them has severities.

    Args:
      of_all: `figures` by name; those that have no severities, as `heavy`, are no part of the mean.

    Returns:
      The five figures of `figures`; `of`, the names; and what the benchmark's paper divides by the published errors of
      an AlexNet, corruption by corruption, before it takes the mean: `balanced_error_to_alexnet` and
      `relative_balanced_error_to_alexnet`. AlexNet's were measured at 224x224 on the test part of BloodMNIST.
    """
    published = {name: alexnet for name in of_all if (alexnet := CORRUPTIONS[name].alexnet) is not None}
    if not published:
        return None
    chosen = [of_all[name] for name in published]
    to_alexnet = [(one["balanced_error"] / error, one["relative_balanced_error"] / (error - medmnist_c.ALEXNET_CLEAN))
                  for one, error in zip(chosen, published.values(), strict=True)]
    return {**_mean(chosen), "of": list(published),
            **{f"{name}_to_alexnet": float(np.mean(values))
               for name, values in zip(_ERRORS, zip(*to_alexnet, strict=True), strict=True)}}


def _mean(of: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in of])) for name in (*_OF_METRICS, *_ERRORS)}


# ---------------------------------------------------------------------------------------------------------------------
# heavy
# ---------------------------------------------------------------------------------------------------------------------

FEWEST, MOST = 2, 5  # ops of an image

_SEED = 0x6865617679
_PARAMETERS, _CHOICE = 0, 1  # "epochs" of the seed: what ops draw, and which families are drawn
_SIDE = 96  # pixels: lengths below are of such an image, and grow with the side up to what the op takes
_BLACK, _REFLECT = "fill='constant', value=0", "fill='reflect'"

HEAVY: Mapping[str, tuple[str, ...]] = {
    "geometry": (f"rotate(180, {_BLACK})", f"zoom(0.5, {_BLACK})", f"shear(0.5, {_BLACK})",
                 f"translate(0.3, {_REFLECT})", f"perspective(0.3, {_REFLECT})", "resized_crop(0.4, 0.9)",
                 "elastic({alpha:g}, {sigma:g})"),
    "light": ("brightness(0.7)", "contrast(0.7)", "gamma(1.0)", "autocontrast", "equalize", "invert", "posterize(3)",
              "solarize(128)", "solarize_add(110)"),
    "colour": ("color(0.95)", "hue(0.5)", "gray", "channel_shuffle", "channel_shift(0.3)", "stain(0.8)"),
    "lens": ("blur({blur:g})", "defocus({defocus:g})", "motion_blur({motion:g})", "pixelate(0.25)", "sharpness(0.95)"),
    "occlusion": ("cutout(0.45, value=0)", "random_erasing(0.25)", "gridmask(0.6, d_min=0.2, d_max=0.6)"),
    "file": ("noise(48)", "jpeg(5)"),
}

_LENGTHS = {"alpha": ("elastic", "alpha", 3.0), "sigma": ("elastic", "sigma", 5.0), "blur": ("blur", "sigma", 2.0),
            "defocus": ("defocus", "radius", 4.0), "motion": ("motion_blur", "length", 13.0)}


def heavy(images: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Puts each image through 2 to 5 transforms of its own; see the head of this file.

    Args:
      images: uint8 [B, H, W, 3].
      ids: int64 [B]; an image under another id gets other transforms.

    Returns:
      uint8 [B, H, W, 3].
    """
    images = tf.convert_to_tensor(images)
    side = min(images.shape[1], images.shape[2])
    return _policy(side).apply(images, draw_heavy(ids, side), dtype="uint8")


def draw_heavy(ids: tf.Tensor, side: int) -> Draws:
    """Returns what the images of these ids get under `heavy`.

    Args:
      ids: int64 [B].
      side: of the images, in pixels.

    Returns:
      Draws by place ("2.oneof/1/1.brightness"), as of `Policy.draw`; the first number is the family's, from 1.
    """
    ids = tf.cast(ids, tf.int64)
    u = rng.uniform(rng.sample_keys(ids, epoch=_CHOICE, seed=_SEED), 1 + len(HEAVY))
    count = FEWEST + rng.index(u[:, 0], MOST - FEWEST + 1)
    rank = tf.argsort(tf.argsort(u[:, 1:], stable=True))
    chosen = rank < count[:, tf.newaxis]
    draws = _policy(side).draw(ids, epoch=_PARAMETERS, seed=_SEED)
    return {place: {**each, "on": each["on"] & chosen[:, int(place.partition(".")[0]) - 1]}
            for place, each in draws.items()}


@functools.lru_cache(maxsize=8)
def _policy(side: int) -> augment.Policy:
    """Returns the families one after the other, one op of each, none of them left out."""
    lengths = {}
    for key, (op, name, length) in _LENGTHS.items():
        param = next(each for each in augment.REGISTRY[op].params if each.name == name)
        lengths[key] = min(max(length * side / _SIDE, param.low), param.high)
    families = (", ".join(ops).format(**lengths) for ops in HEAVY.values())
    return augment.parse(" | ".join(f"oneof({ops})" for ops in families), what="corruptions")


def _published(name: str, entry: medmnist_c.Published) -> Corruption:
    severities = [", ".join(f"{value:g}" for value in values) for values in entry.severities]
    return Corruption(entry.summary, ", ".join(entry.names), tuple(severities), medmnist_c.SOURCE,
                      functools.partial(medmnist_c.apply, name), alexnet=entry.alexnet)


CORRUPTIONS: dict[str, Corruption] = {
    **{name: _published(name, entry) for name, entry in medmnist_c.CORRUPTIONS.items()},
    "heavy": Corruption("2 to 5 of six families of strong transforms on every image, stacked: geometry, light, colour, "
                        "lens, occlusion, noise or compression.", "transforms", ("2 to 5",),
                        "bloodcell, in the manner of a course's hidden test set",
                        lambda images, ids, _: heavy(images, ids), compilable=True),
}
