"""A network rebuilt from Keras's own layers: the same numbers, loaded by anybody who has Keras, without this project.

What belongs here: which of Keras's public layers stands for which of ours, or of its own that have no public name.
`models.rebuild` goes the other way.
"""

from typing import Any

import keras
import numpy as np

from bloodcell.models import depthwise, efficientnet_b0, fused_norm

_SCALE, _DEPTH = "LayerScale", "StochasticDepth"  # of ConvNeXt in Keras, which does not export them


def stock(model: keras.Model, name: str) -> keras.Model:
    """Rebuilds a network for inference.

    Args:
      model: of `models.build`, or another functional one of one input and one output; it stays as it is.
      name: of the new model.

    Returns:
      A functional model of the same inputs, outputs and layer names, whose layers are Keras's public ones in float32.
    """
    pairs: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        pairs.append((layer, _stand_in(layer)))
        return pairs[-1][1]

    rebuilt = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer, made in pairs:
        if getattr(made, "weights", None):  # an operation such as a flip has none, and no such list
            made.set_weights(_weights(layer))
    return keras.Model(rebuilt.inputs[0], rebuilt.outputs[0], name=name)


def _stand_in(layer: Any) -> Any:
    config, kind = layer.get_config(), type(layer)
    if not isinstance(layer, keras.layers.Layer):
        return kind.from_config(config)
    config["dtype"] = "float32"
    if kind is fused_norm.BatchNormalization:
        return keras.layers.BatchNormalization.from_config(config)
    if kind is depthwise.Conv2D:
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size, padding="same", activation=config["activation"], use_bias=layer.use_bias,
            name=layer.name, dtype="float32")
    if kind is efficientnet_b0.Normalization:
        return _normalization(layer.adapt_mean.numpy(), layer.adapt_variance.numpy(), layer.name)
    if kind is keras.layers.Normalization and layer.input_mean is not None:
        return _normalization(layer.input_mean, layer.input_variance, layer.name)
    if kind.__name__ == _SCALE:
        return _rescaling(layer.gamma.numpy().astype(np.float64), 0.0, layer.name)
    if kind.__name__ == _DEPTH:
        return keras.layers.Identity(name=layer.name, dtype="float32")
    return kind.from_config(config)


def _normalization(mean: Any, variance: Any, name: str) -> keras.layers.Layer:
    scale = 1 / np.sqrt(np.asarray(variance, np.float64))
    return _rescaling(scale, -np.asarray(mean, np.float64) * scale, name)


def _rescaling(scale: np.ndarray, offset: np.ndarray | float, name: str) -> keras.layers.Layer:
    """A product and a sum for each channel, as numbers of the config: as Keras itself writes "torch" input."""
    return keras.layers.Rescaling(scale.tolist(), offset=offset if isinstance(offset, float) else offset.tolist(),
                                  name=name, dtype="float32")


def _weights(layer: Any) -> list[np.ndarray]:
    values = layer.get_weights()
    if type(layer) is depthwise.Conv2D:  # kernel [k,k,1,C] of groups, [k,k,C,1] of channels
        values[0] = values[0].transpose(0, 1, 3, 2)
    return values
