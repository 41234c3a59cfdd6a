"""Grad-CAM: where in an image a network finds what speaks for a class (Selvaraju et al. 2017, arXiv:1610.02391).

For every model of `models.build`, and for several as a classifier weighs them. A map is as coarse as the backbone's
last feature map, of which it is the weighted sum; enlarging it adds nothing. What belongs here: the maps. Which images
and classes they are made for is the commands' business, drawing them `explanation_sheets`'.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from bloodcell.evaluate.classifier import Classifier
from bloodcell.models import concat

Graph = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class GradCam:
    """Makes the maps of a classifier's networks.

    The image is looked at as it is: views of `--tta` do not count.
    """

    def __init__(self, classifier: Classifier, *, batch_size: int = 32) -> None:
        """Takes a classifier, and the images a step: each network's graph is traced once, for that many."""
        self._classifier, self._batch_size = classifier, batch_size
        self._graphs = [graph_of(member.model) for member in classifier.members]

    def maps(self, images: np.ndarray, ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Returns float32 [N,S,S] in 0..1: the networks' maps, weighted as their probabilities are.

        A value of 1 is where every network has its own maximum; a map is all 0 where nothing speaks for the class.

        Args:
          images: uint8 [N,S,S,3].
          ids: int64 [N], for a classifier whose images go through a policy.
          classes: int64 [N], the class asked about, for each image.
        """
        found = np.zeros(images.shape[:3], np.float32)
        for rows, filled in self._batches(len(images)):
            own = tf.constant(ids[filled], tf.int64)
            asked = tf.constant(classes[filled], tf.int64)
            for member, graph, weight in zip(self._classifier.members, self._graphs, self._classifier.weights,
                                             strict=True):
                pixels = self._classifier.pixels(member, images[filled], own)
                found[rows] += np.float32(weight) * graph(pixels, asked).numpy()[:len(rows)]
        return np.clip(found, 0.0, 1.0)  # weights of rounded thirds may add up to a little more

    def _batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions by batch, and the same filled up from the start to one size."""
        starts = range(0, count, self._batch_size)
        parts = [np.arange(start, min(start + self._batch_size, count)) for start in starts]
        return [(part, np.resize(part, self._batch_size)) for part in parts]


def graph_of(model: keras.Model) -> Graph:
    """Returns the graph from grey levels float32 [B,S,S,3] and classes int64 [B] to maps float32 [B,S,S] in 0..1.

    A channel's weight is the mean over the pixels of the gradient of the class's logit; the map is the sum of the
    weighted channels where that is above 0, enlarged bilinearly, and divided by its maximum. Backbones side by side
    (`concat`) have a map each, of which the mean is taken before that division: by the area of a pixel, so that each
    counts by what it contributes to the logit, however many pixels it has.

    Args:
      model: of `models.build`.
    """
    backbone, head = model.get_layer("backbone"), model.get_layer("head")
    parts, side = concat.parts(backbone), model.input.shape[1:3]

    def logits_of(maps: Sequence[tf.Tensor]) -> tf.Tensor:
        if len(parts) == 1:
            return head(maps[0], training=False)
        pooled = [backbone.get_layer(f"pool_{part.name}")(each) for part, each in zip(parts, maps, strict=True)]
        return head(backbone.get_layer("features")(pooled), training=False)

    @tf.function(autograph=False)
    def explain(pixels: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        maps = [part(pixels, training=False) for part in parts]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(maps)
            chosen = tf.reduce_sum(tf.gather(logits_of(maps), classes, batch_dims=1))
        gradients = tape.gradient(chosen, maps)
        found = tf.reduce_mean([_map(one, gradient, side) for one, gradient in zip(maps, gradients, strict=True)], 0)
        return tf.math.divide_no_nan(found, tf.reduce_max(found, axis=(1, 2), keepdims=True))

    return explain


def _map(features: tf.Tensor, gradient: tf.Tensor, side: tuple[int, int]) -> tf.Tensor:
    """Grad-CAM of one feature map [B,h,w,C], in logits: float32 [B,S,S]."""
    features, gradient = tf.cast(features, tf.float32), tf.cast(gradient, tf.float32)
    weights = tf.reduce_sum(gradient, axis=(1, 2))  # the mean, times the number of pixels: see `graph_of`
    found = tf.nn.relu(tf.einsum("bhwc,bc->bhw", features, weights))
    return tf.image.resize(found[..., None], side)[..., 0]


def coarseness(classifier: Classifier) -> str:
    """Returns a sentence that says how many values the maps have, and how much of an image each stands for."""
    parts = [part for member in classifier.members for part in concat.parts(member.model.get_layer("backbone"))]
    grids = sorted({tuple(part.output.shape[1:3]) for part in parts})
    height, width = classifier.members[0].model.input.shape[1:3]
    said = " or ".join(f"{down}x{across}" for down, across in grids)
    down, across = grids[0]
    several = f", the mean of {len(classifier.members)} networks' maps," if len(classifier.members) > 1 else ""
    if down * across == 1:
        return f"Grad-CAM has one value for the whole of {height}x{width} pixels here: it can say nothing about where."
    return (f"Grad-CAM{several} has {said} values for {height}x{width} pixels, each for a field of about "
            f"{round(height / down)}x{round(width / across)}: it says in which part of an image, not in which grain.")
