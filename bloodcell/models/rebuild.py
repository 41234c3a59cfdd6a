"""A network rebuilt from faster layers of the same numbers, names and weights files.

What belongs here: which layer stands for which. The layers have their own files.
"""

import keras

from bloodcell.models import depthwise, efficientnet_b0, fused_norm


def swap(model: keras.Model, name: str) -> keras.Model:
    """Rebuilds a functional model, fresh weights included, with our layers wherever they fit.

    Grey levels are rescaled in float32 even where the rest computes in 16 bits: near 255, bfloat16 has steps of one
    grey level, and the subtraction of the mean would keep that error.

    Args:
      model: a built functional model; it stays as it is, and its variables need no values.
      name: of the new model.

    Returns:
      A model of the same layer names, with weights drawn anew from the layers' own initializers.
    """
    rebuilt = keras.models.clone_model(model, clone_function=_clone)
    return keras.Model(rebuilt.inputs[0], rebuilt.outputs[0], name=name)


def _clone(layer: keras.Layer) -> keras.Layer:
    config, kind = layer.get_config(), type(layer)
    if kind is keras.layers.BatchNormalization and fused_norm.fits(layer):
        return fused_norm.BatchNormalization.from_config(config)
    if kind is keras.layers.Conv2D and depthwise.fits(layer):
        return depthwise.Conv2D.from_config(config)
    if kind in (keras.layers.Rescaling, keras.layers.Normalization):
        config["dtype"] = "float32"
    if kind is keras.layers.Normalization and layer.input_mean is None:
        return efficientnet_b0.Normalization.from_config(config)
    return kind.from_config(config)
