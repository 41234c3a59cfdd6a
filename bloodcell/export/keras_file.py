"""Keras's own format, `.keras`: loaded by `keras.models.load_model` wherever Keras is, without this project."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from bloodcell.export.checking import Runner
from bloodcell.export.deployed import Deployed


def write(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the file.

    Raises:
      InputError: views that draw.
    """
    deployed.model().save(path)


def load(path: pathlib.Path) -> Runner:
    """Returns what the file computes."""
    model = keras.models.load_model(path, compile=False)
    predict = tf.function(lambda images: model(images, training=False), autograph=False)

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = predict(tf.constant(images)).numpy()
        return found

    return run
