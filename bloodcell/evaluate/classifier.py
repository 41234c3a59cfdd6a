"""From images to probabilities: one network or several, one view of an image or several, at their temperatures.

The mean is of probabilities: over the views of each network, then, weighted, over the networks. Everything but a run's
segmentation is graphs of one batch shape. Figures are in `metrics`; reading runs is the commands' business.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import scipy.special
import tensorflow as tf

from bloodcell import augment
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.evaluate import tta

Transform = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # from uint8 images [B,S,S,3] and ids int64 [B] to grey levels
OnHost = Callable[[np.ndarray, np.ndarray], np.ndarray]  # from uint8 images [B,S,S,3] and ids int64 [B] to such images

_EM_STEPS, _EM_STILL = 1000, 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One network of a classifier.

    Attributes:
      name: for people: the run's folder.
      model: of `models.build`: from grey levels 0..255 [B,S,S,3] to logits [B,C], with a layer "backbone".
      temperature: by which its logits are divided.
      segment: what is done to uint8 images [B,S,S,3] before, outside the graph; None: nothing.
    """

    name: str
    model: keras.Model
    temperature: float = 1.0
    segment: Callable[[np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What M networks make of V views of N images.

    Attributes:
      logits: float32 [M,V,N,C].
      features: of each network the pooled output of its backbone for the first view, float32 [N,D].
      seconds: float64 [M,V], what those forward passes took.
    """

    logits: np.ndarray
    features: tuple[np.ndarray, ...]
    seconds: np.ndarray


class Classifier:
    """What `--checkpoint`, `--tta` and `--temperature` make together.

    Attributes:
      members: M networks of the same classes and image size.
      views: V of them, the image as it is first.
      weights: float64 [M] that sum to 1.
      transform: what every image goes through first; None: nothing.
    """

    def __init__(self, members: Sequence[Member], *, views: Sequence[tta.View] = (),
                 weights: Sequence[float] | np.ndarray | None = None, transform: Transform | None = None) -> None:
        """Takes at least one member.

        Args:
          members: the networks.
          views: of `tta.parse`; empty: the image as it is.
          weights: of the members, any positive numbers; None: equal ones.
          transform: what every image goes through first (`--val_augment`).
        """
        self.members = tuple(members)
        self.views = tuple(views) or tta.parse("")
        self.weights = _shares(np.ones(len(self.members)) if weights is None else weights)
        self.transform = transform
        self._graphs = [graph_of(member.model) for member in self.members]

    @property
    def class_count(self) -> int:
        """C, the number of classes."""
        return int(self.members[0].model.output.shape[-1])

    def at(self, temperatures: Sequence[float], weights: Sequence[float] | np.ndarray | None = None) -> "Classifier":
        """Returns a classifier of the same networks at M other temperatures, and weights where given.

        Its graphs are this one's, and so not traced again.
        """
        other = copy.copy(self)
        other.members = tuple(dataclasses.replace(member, temperature=temperature)
                              for member, temperature in zip(self.members, temperatures, strict=True))
        if weights is not None:
            other.weights = _shares(weights)
        return other

    def of_member(self, which: int) -> "Classifier":
        """Returns a classifier of one of the networks; its graph is this one's."""
        other = copy.copy(self)
        other.members, other._graphs = self.members[which:which + 1], self._graphs[which:which + 1]
        other.weights = np.ones(1)
        return other

    def seeing(self, transform: Transform | None, *, views: Sequence[tta.View] | None = None) -> "Classifier":
        """Returns a classifier of the same graphs, to which every image comes through another transform.

        With `views` it also looks at others than this one does; none are the image as it is.
        """
        other = copy.copy(self)
        other.transform = transform
        if views is not None:
            other.views = tuple(views) or tta.parse("")
        return other

    def batch(self, images: np.ndarray | tf.Tensor, ids: np.ndarray | tf.Tensor) -> Outputs:
        """Runs one batch; a new size B traces all graphs again.

        Args:
          images: uint8 [B,S,S,3].
          ids: int64 [B].
        """
        ids = tf.convert_to_tensor(ids, tf.int64)
        logits = np.empty((len(self.members), len(self.views), len(images), self.class_count), np.float32)
        seconds = np.zeros(logits.shape[:2])
        features = []
        for m, (member, graph) in enumerate(zip(self.members, self._graphs, strict=True)):
            began = time.perf_counter()
            pixels = self.pixels(member, images, ids)
            for v, view in enumerate(self.views):
                found, pooled = graph(view.apply(pixels, ids))
                logits[m, v] = found.numpy()
                if v == 0:
                    features.append(pooled.numpy())
                now = time.perf_counter()
                seconds[m, v], began = now - began, now
        return Outputs(logits, tuple(features), seconds)

    def pixels(self, member: Member, images: np.ndarray | tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        """Returns what a member's network is shown of a batch as it is: grey levels float32 [B,S,S,3]."""
        own = tf.convert_to_tensor(member.segment(np.asarray(images)) if member.segment else images, tf.uint8)
        return self.transform(own, ids) if self.transform else tf.cast(own, tf.float32)

    def outputs(self, images: ImageSet, *, batch_size: int, on_host: OnHost | None = None,
                on_batch: Callable[[int], None] | None = None, timed: bool = True) -> Outputs:
        """Runs all images of a set, in its order.

        Args:
          images: N images of the networks' size.
          batch_size: images a step; less where there are fewer images.
          on_host: what is done to each batch before all else.
          on_batch: called after each batch with the number of images done.
          timed: whether somebody looks at `seconds`.

        Returns:
          Of all images; `seconds` are of N images without the first batch's tracing: where there is a second batch,
          those after the first, scaled to N, else of another run of the first.
        """
        batch_size = min(batch_size, len(images))
        parts: list[Outputs] = []
        done = 0
        for batch in Pipeline(images, batch_size=batch_size).in_order():
            pixels = batch["image"]
            if on_host:
                pixels = on_host(pixels.numpy(), batch["id"].numpy())
            parts.append(self.batch(pixels, batch["id"]))
            if timed and len(images) <= batch_size:
                parts[0] = self.batch(pixels, batch["id"])
            done = min(done + batch_size, len(images))
            if on_batch:
                on_batch(done)
        counted = parts[1:] or parts
        seconds = np.sum([part.seconds for part in counted], axis=0) * len(images) / (len(counted) * batch_size)
        return Outputs(np.concatenate([part.logits for part in parts], axis=2)[:, :, :len(images)],
                       tuple(np.concatenate(each)[:len(images)]
                             for each in zip(*(part.features for part in parts), strict=True)), seconds)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns float32 [N,C], rows that sum to 1, of logits [M,V,N,C]."""
        return combined(logits, [member.temperature for member in self.members], self.weights)


def _shares(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    own = np.asarray(weights, np.float64)
    return own / own.sum()


def combined(logits: np.ndarray, temperatures: Sequence[float], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the weighted mean over networks of the mean over views of softmax(logits / temperature).

    Args:
      logits: float [M,V,N,C].
      temperatures: M of them.
      weights: M of them, which sum to 1.
    """
    scaled = np.asarray(logits, np.float64) / np.asarray(temperatures)[:, None, None, None]
    each = scipy.special.softmax(scaled, axis=-1).mean(axis=1)
    return np.tensordot(np.asarray(weights, np.float64), each, axes=1).astype(np.float32)


def graph_of(model: keras.Model) -> Any:
    """Returns the `tf.function` from grey levels [B,S,S,3] to float32 logits [B,C] and pooled features [B,D].

    It is traced once for each B. Features are the mean over the pixels of the layer "backbone"'s map, or its output
    where that has no pixels; of a model that is no backbone and head they are the logits.
    """
    parted = {"backbone", "head"} <= {layer.name for layer in model.layers}

    @tf.function(autograph=False)
    def predict(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not parted:
            logits = tf.cast(model(pixels, training=False), tf.float32)
            return logits, logits
        found = model.get_layer("backbone")(pixels, training=False)
        logits = tf.cast(model.get_layer("head")(found, training=False), tf.float32)
        features = tf.cast(found, tf.float32)
        return logits, tf.reduce_mean(features, axis=(1, 2)) if features.shape.rank == 4 else features

    return predict


def parse_weights(text: str) -> str | tuple[float, ...]:
    """Reads `--ensemble_weights`: "equal", "val", or positive numbers with commas between them.

    Raises:
      InputError: anything else.
    """
    if text in ("equal", "val"):
        return text
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise InputError("--ensemble_weights expected equal, val, or positive numbers with commas between them, "
                         f"received {text!r}; try val")
    return numbers


def fitted_weights(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the weights of networks whose mixture makes labels likeliest, by EM (Dempster et al. 1977).

    Args:
      probabilities: float [M,N,C].
      labels: int [N].

    Returns:
      float64 [M], not negative, of sum 1. The likelihood is concave in them, so there is one best value.
    """
    own = np.maximum(np.asarray(probabilities, np.float64)[:, np.arange(len(labels)), labels], 1e-12)
    weights = np.full(len(own), 1 / len(own))
    for _ in range(_EM_STEPS):
        shares = weights[:, None] * own
        before, weights = weights, (shares / shares.sum(axis=0)).mean(axis=1)
        if np.abs(weights - before).max() < _EM_STILL:
            break
    return weights


def policy_transform(text: str, *, seed: int, jit: bool) -> Transform | None:
    """Returns `--val_augment` as a transform, the same at every call (epoch 0); None where the text is empty.

    Args:
      text: the policy's spec.
      seed: of the run.
      jit: whether XLA compiles it.
    """
    if not text:
        return None
    policy = augment.parse(text, what="val_augment")

    def transform(images: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=0, seed=seed)

    return tf.function(transform, jit_compile=jit, autograph=False)
