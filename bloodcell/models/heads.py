"""The head: what turns a feature map into logits, written as a spec such as `dense(128) | dropout(0.3)`.

Every head starts with global average pooling and ends with a float32 layer of one logit a class; the spec is what lies
between. What belongs here: the operations of that spec, one entry each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from bloodcell import spec
from bloodcell.errors import InputError


@dataclasses.dataclass(frozen=True)
class Operation:
    """One name of a head spec: its parameters, and the layer it makes from their values and a layer name."""

    params: tuple[spec.Param, ...]
    layer: Callable[..., keras.Layer]


OPERATIONS = {
    "dense": Operation((spec.Param("units", int, low=1, high=16384, unit="units"),
                        spec.Param("activation", str, "relu",
                                   choices=("relu", "gelu", "swish", "hard_swish", "tanh", "linear"))),
                       keras.layers.Dense),
    "dropout": Operation((spec.Param("rate", float, low=0.0, high=0.95),), keras.layers.Dropout),
    "batch_norm": Operation((), keras.layers.BatchNormalization),
}


def parse(text: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Reads a head spec into (operation, parameters) pairs; the empty text is a head of pooling and logits alone.

    Raises:
      InputError: an unknown operation, a parameter out of range, or a gate `@p`.
    """
    parsed = []
    for term in spec.parse(text, what="--head").terms:
        if term.probability != 1.0:
            raise InputError(f"--head: expected no '@p' (a head is built once), received '{term}'")
        operation = spec.lookup(term, OPERATIONS, what="--head")
        parsed.append((term.name, spec.bind(term, operation.params, what="--head")))
    return tuple(parsed)


def build(text: str, features: keras.KerasTensor, num_classes: int) -> keras.Model:
    """Builds the head for a feature map.

    Args:
      text: the spec.
      features: the backbone's symbolic output, [B,h,w,C] of any float dtype.
      num_classes: logits to end with.

    Returns:
      A functional model named "head", from [B,h,w,C] to float32 logits [B,num_classes].
    """
    entry = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    # Pooled in float32: it is next to nothing in size, and a 16-bit mean would round away what dropout and logits see.
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(entry)
    for index, (name, values) in enumerate(parse(text)):
        x = OPERATIONS[name].layer(**values, name=f"{name}_{index}")(x)
    x = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(entry, x, name="head")
