"""What a backbone costs, and what it makes of grey levels, is what the registry says; no weights are needed here."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.models import backbones

_COUNTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose, keras.layers.Dense)
_UNCOUNTED = {"InputLayer", "Rescaling", "Normalization", "BatchNormalization", "LayerNormalization", "LayerScale",
              "Activation", "ReLU", "Dropout", "Add", "Multiply", "Concatenate", "Reshape", "ZeroPadding2D",
              "Cropping2D", "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D"}


@functools.cache
def pattern(name: str, side: int) -> keras.Model:
    """The network without values in its variables: seconds less, and gigabytes."""
    with keras.StatelessScope(initialize_variables=False):
        return backbones.BACKBONES[name].build(side)


def leaves(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def flops(model: keras.Model) -> int:
    """Twice the multiply-adds of one image: each value of a kernel is used once at each place it is laid on."""
    total = 0
    for layer in leaves(model):
        if isinstance(layer, _COUNTED):
            # A transposed convolution lays its kernel on every place of its input, the others on every one of theirs.
            laid_on = layer.input if isinstance(layer, keras.layers.Conv2DTranspose) else layer.output
            total += 2 * math.prod(laid_on.shape[1:-1]) * math.prod(layer.kernel.shape)
        else:
            assert type(layer).__name__ in _UNCOUNTED, layer
    return total


@pytest.mark.parametrize("name", list(backbones.BACKBONES))
def test_parameters_and_flops_are_those_of_the_network(name: str) -> None:
    entry, model = backbones.BACKBONES[name], pattern(name, 96)
    assert entry.parameters == model.count_params()
    assert entry.flops == flops(model)


def test_flops_are_those_that_tensorflow_counts() -> None:
    image = keras.Input((12, 10, 8))
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same")(image)
    x = keras.layers.Conv2D(6, 5, groups=2)(keras.layers.ZeroPadding2D(2)(x))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = keras.layers.Conv2DTranspose(5, 2, strides=2)(x)
    model = keras.Model(image, keras.Sequential([keras.layers.Dense(7), keras.layers.LayerNormalization()])(x))
    call = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((1, 12, 10, 8)))
    grouped = 2 * 6 * 5 * 6 * (5 * 5 * 6)  # sent through XLA, where TensorFlow cannot count it
    options = dict(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation(), output="none")
    with call.graph.as_default():
        profile = tf.compat.v1.profiler.profile(call.graph, cmd="op", options=options)
    found = {node.name: node.total_float_ops - sum(each.total_float_ops for each in node.children)
             for node in _nodes(profile)}
    kinds = ("Conv2D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MatMul")
    assert all(found[kind] for kind in kinds)
    assert sum(found[kind] for kind in kinds) + grouped == flops(model)


def _nodes(node: Any) -> Iterator[Any]:
    for child in node.children:
        yield child
        yield from _nodes(child)


# What the authors of each network make of red, green and blue grey levels.
_MODES = {"tf": lambda x: x / 127.5 - 1, "128": lambda x: x / 128 - 1, "lite": lambda x: (x - 127) / 128,
          "torch": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
          "caffe": lambda x: (x - [123.68, 116.779, 103.939])[::-1]}
_FIRST = {"cnn": "tf", "unet": "tf", "mobilenet": "tf", "mobilenet_v2": "tf", "mobilenet_v3_small": "tf",
          "mobilenet_v3_large": "tf", "inception_v3": "tf", "efficientnet_lite0": "lite",
          "efficientnet_v2_b0": "torch", "efficientnet_v2_s": "128", "efficientnet_v2_m": "128",
          "efficientnet_v2_l": "128", "densenet121": "torch", "resnet50": "caffe", "vgg16": "caffe", "vgg19": "caffe",
          "convnext_tiny": "torch", "convnext_small": "torch", "convnext_base": "torch", "convnext_large": "torch",
          "convnext_xlarge": "torch"}


# EfficientNet-B0 has weights in its preprocessing: test_backbones.
@pytest.mark.parametrize("name", [name for name in backbones.BACKBONES if name != "efficientnet_b0"])
def test_the_first_convolution_sees_what_the_authors_trained_on(name: str) -> None:
    model, colour = pattern(name, 96), np.array([200.5, 100.0, 30.0])
    first = next(layer for layer in leaves(model) if isinstance(layer, keras.layers.Conv2D))
    seen = first.input if not name.startswith("convnext") else model.get_layer(f"{name}_stem").input
    image = np.broadcast_to(colour, (1, 96, 96, 3)).astype("float32")
    received = keras.Model(model.inputs[0], seen)(image)[0, 48, 48]
    np.testing.assert_allclose(received, _MODES[_FIRST[name]](colour), rtol=1e-5, atol=1e-5)
