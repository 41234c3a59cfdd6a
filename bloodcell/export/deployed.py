"""What every format holds: a classifier as one function from uint8 images to probabilities, of Keras's own layers.

All views of an image go through a network as one batch, so that each network is there once.
"""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.evaluate import tta
from bloodcell.evaluate.classifier import Classifier
from bloodcell.export.stock import stock

IMAGES, PROBABILITIES = "images", "probabilities"  # the names of what goes in and what comes out
_POSES = tuple((transposed, across, down) for transposed in (False, True) for across in (False, True)
               for down in (False, True))


@dataclasses.dataclass(frozen=True, eq=False)
class Deployed:
    """A classifier on its way into files.

    Attributes:
      classifier: networks that need nothing done to their images before, and see them as they are (no transform).
      image_size: side S of the images, in pixels.
      class_names: in the order of the probabilities.
      calibration: uint8 [N,S,S,3], real images that say which values the layers take; None where no format asks.
    """

    classifier: Classifier
    image_size: int
    class_names: tuple[str, ...]
    calibration: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        """Whether all views only move pixels, as any format can."""
        return all(view.exact for view in self.classifier.views)

    def check_exact(self) -> None:
        """Raises InputError where views draw, which no layer of Keras's does."""
        if not self.exact:
            raise InputError("expected --tta of flips, rotations or dihedral for this format, received views by a "
                             "policy (weak); try --format=savedmodel, or --tta=dihedral")

    def probabilities(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Returns what the classifier itself says, float32 [N,C].

        Views that draw (`weak`) draw for each image what they draw for the one with the id 0: in a file there are no
        ids, and what comes out for an image must not depend on its place among others.
        """
        logits = [self.classifier.batch(part, np.zeros(len(part), np.int64)).logits
                  for part in (images[start:start + batch_size] for start in range(0, len(images), batch_size))]
        return self.classifier.probabilities(np.concatenate(logits, axis=2))

    @functools.cached_property
    def networks(self) -> tuple[keras.Model, ...]:
        """Each member's network, of Keras's own layers, from grey levels to logits."""
        return tuple(stock(member.model, f"network_{number}")
                     for number, member in enumerate(self.classifier.members, start=1))

    def model(self, dtype: str = "uint8") -> keras.Model:
        """Returns all of it as one functional model, of Keras's public layers and operations alone.

        Args:
          dtype: of the images; "float32" for converters that quantize the input themselves.

        Raises:
          InputError: views that draw, which no layer of Keras's does.
        """
        self.check_exact()
        images = keras.Input((self.image_size, self.image_size, 3), dtype=dtype, name=IMAGES)
        pixels = images
        if dtype != "float32":
            pixels = keras.layers.Rescaling(1.0, dtype="float32", name="grey_levels")(images)  # a cast, as a layer
        looks = [_posed(pixels, pose_of(view)) for view in self.classifier.views]
        stacked = looks[0] if len(looks) == 1 else keras.layers.Concatenate(axis=0, name="views")(looks)
        found = [self._member(index, network(stacked)) for index, network in enumerate(self.networks)]
        mean = found[0] if len(found) == 1 else keras.layers.Add(name="mean_of_networks")(found)
        return keras.Model(images, mean, name="bloodcell")

    def _member(self, index: int, logits: keras.KerasTensor) -> keras.KerasTensor:
        member, weight = self.classifier.members[index], float(self.classifier.weights[index])
        number, views = index + 1, len(self.classifier.views)
        if member.temperature != 1.0:
            logits = keras.layers.Rescaling(1 / member.temperature, dtype="float32",
                                            name=f"temperature_{number}")(logits)
        each = keras.layers.Softmax(dtype="float32", name=f"probabilities_{number}")(logits)
        if views > 1:
            each = keras.ops.mean(keras.ops.reshape(each, (views, -1, self.classifier.class_count)), axis=0)
        if len(self.networks) > 1:
            each = keras.layers.Rescaling(weight, dtype="float32", name=f"weight_{number}")(each)
        return each

    def function(self, dtype: str = "uint8") -> tuple[tf.Module, Any]:
        """Returns all of it as a function of TensorFlow, whatever the views.

        Args:
          dtype: of the images.

        Returns:
          A module that owns the variables, and the `tf.function` from images [B,S,S,3], any B, to a dictionary of one
          entry, `PROBABILITIES`, float32 [B,C].
        """
        module, spec = tf.Module(), tf.TensorSpec((None, self.image_size, self.image_size, 3), dtype, IMAGES)
        call = functools.partial(self.model(dtype), training=False) if self.exact else self._with_drawn_views
        module.kept = [variable.value for network in self.networks for variable in network.weights]
        module.serve = tf.function(lambda images: {PROBABILITIES: tf.identity(call(images), PROBABILITIES)},
                                   input_signature=[spec], autograph=False)
        return module, module.serve

    def _with_drawn_views(self, images: tf.Tensor) -> tf.Tensor:
        pixels, ids = tf.cast(images, tf.float32), tf.zeros((tf.shape(images)[0],), tf.int64)
        views = len(self.classifier.views)
        stacked = tf.concat([view.apply(pixels, ids) for view in self.classifier.views], axis=0)
        stacked = tf.ensure_shape(stacked, (None, self.image_size, self.image_size, 3))
        mean = tf.zeros(())
        for member, weight, network in zip(self.classifier.members, self.classifier.weights, self.networks,
                                           strict=True):
            each = tf.nn.softmax(network(stacked, training=False) / member.temperature)
            each = tf.reshape(each, (views, -1, self.classifier.class_count))
            mean += float(weight) * tf.reduce_mean(each, axis=0)
        return mean


def pose_of(view: tta.View) -> tuple[bool, bool, bool]:
    """Returns what an exact view does: whether it transposes, mirrors left to right, and top to bottom, in this order.

    It is read off four pixels, so that nothing here depends on how `tta` writes its views.
    """
    probe = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    seen = view.apply(tf.constant(probe), tf.zeros((1,), tf.int64)).numpy()
    for pose in _POSES:
        transposed, across, down = pose
        expected = probe.transpose(0, 2, 1, 3) if transposed else probe
        expected = expected[:, ::-1] if down else expected
        if np.array_equal(seen, expected[:, :, ::-1] if across else expected):
            return pose
    raise ValueError(f"expected a view that moves pixels, received {view.name!r}")


def _posed(pixels: keras.KerasTensor, pose: tuple[bool, bool, bool]) -> keras.KerasTensor:
    transposed, across, down = pose
    if transposed:
        pixels = keras.layers.Permute((2, 1, 3), dtype="float32")(pixels)
    axes = [axis for axis, mirrored in ((2, across), (1, down)) if mirrored]
    return keras.ops.flip(pixels, axis=axes) if axes else pixels
