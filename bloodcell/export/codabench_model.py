"""A classifier of blood-cell images. Needs TensorFlow and NumPy; the weights are in the folder beside this file."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

FOLDER = "saved_model"
BATCH = 64


class Model:
    """Made once, without arguments, then asked."""

    def __init__(self) -> None:
        self._loaded: Any = tf.saved_model.load(str(pathlib.Path(__file__).resolve().parent / FOLDER))
        self._serve = self._loaded.signatures["serving_default"]
        self._size = int(self._serve.structured_input_signature[1]["images"].shape[1])

    def predict(self, X: Any) -> np.ndarray:
        """Returns int64 [N], the most probable class of each image; arguments as for `probabilities`."""
        return np.argmax(self.probabilities(X), axis=1)

    def probabilities(self, X: Any) -> np.ndarray:
        """Returns float32 [N,C].

        Args:
          X: [N,H,W,3], grey levels 0..255 as uint8 or float, an array or a tensor. Images of another size than the
            network's are cut to their centred square and resized as in training.
        """
        images = np.asarray(X)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"X: expected images [N,H,W,3], received {images.shape}")
        parts = [self._of_batch(images[start:start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(parts) if parts else self._of_batch(np.zeros((1, self._size, self._size, 3)))[:0]

    def _of_batch(self, images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, top:top + side, left:left + side]
        if side != self._size:
            images = tf.image.resize(images, (self._size, self._size), "bicubic", antialias=True).numpy()
        if images.dtype != np.uint8:
            images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
        found: np.ndarray = self._serve(images=tf.constant(images))["probabilities"].numpy()
        return found
