"""Batch normalisation's statistics, made anew from the images that are measured (`--batch_norm=data`).

With such statistics an image's figures depend on the others that came with it: that is no property of the model alone,
so it is never done by itself and always said. Weights stay as they are. Source: Schneider et al. 2020, "Improving
robustness against common corruptions by covariate shift adaptation", with a weight of 0 for the training's statistics.
"""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf


def reestimate(model: keras.Model, batches: Iterable[tf.Tensor]) -> int:
    """Sets the moving mean and variance of each batch normalisation to their means over batches, weighted by size.

    Args:
      model: its layers' statistics change; nothing else does.
      batches: grey levels [B,S,S,3], of any B.

    Returns:
      How many layers have such statistics.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    seen = 0
    with _nothing_else_of_training(model, layers):
        for pixels in batches if layers else ():
            seen += len(pixels)
            for layer in layers:
                layer.momentum = 1.0 - len(pixels) / seen  # the first batch replaces what was there
            model(pixels, training=True)
    return len(layers)


@contextlib.contextmanager
def _nothing_else_of_training(model: keras.Model, layers: list[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Dropout lets everything pass, and the layers' momenta are put back."""
    dropouts = [layer for layer in model._flatten_layers() if isinstance(getattr(layer, "rate", None), float)]
    rates, momenta = [layer.rate for layer in dropouts], [layer.momentum for layer in layers]
    try:
        for layer in dropouts:
            layer.rate = 0.0
        yield
    finally:
        for layer, rate in zip(dropouts, rates, strict=True):
            layer.rate = rate
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
