"""TensorFlow's SavedModel: a folder with the signature `serving_default`, from `images` to `probabilities`."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.export.checking import Runner
from bloodcell.export.deployed import IMAGES, PROBABILITIES, Deployed

SIGNATURE = "serving_default"


def write(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the folder `path`; the batch size stays open."""
    module, function = deployed.function()
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: function})


def load(path: pathlib.Path) -> Runner:
    """Returns what the folder computes."""
    loaded: Any = tf.saved_model.load(str(path))  # its variables live as long as it does

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = loaded.signatures[SIGNATURE](**{IMAGES: tf.constant(images)})[PROBABILITIES].numpy()
        return found

    return run
