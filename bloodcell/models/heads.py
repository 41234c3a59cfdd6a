"""The head: what turns a feature map into logits, written as a spec such as `pool('max') | dense(128) | dropout(0.3)`.

Every head starts with one pooling of the feature map (or its flattening), the global average where the spec names none,
and ends with a float32 layer of one logit a class; the spec is what lies between. Features that come pooled, as those
of several backbones side by side do, go into the spec as they are. What belongs here: the operations of that spec, one
entry each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from bloodcell import spec
from bloodcell.errors import InputError

_ACTIVATIONS = ("relu", "gelu", "swish", "hard_swish", "tanh", "linear")
_MAX_KERNEL = 2**28  # values of a layer's kernel, 1 GiB; beyond it the flattening was a mistake
_POOLS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
POOL_KINDS = (*_POOLS, "avg_max")

Layer = Callable[[keras.KerasTensor], keras.KerasTensor]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One name of a head spec.

    Attributes:
      params: what it takes.
      summary: one sentence for people.
      layer: makes the layer from their values and a layer name.
      first: whether it turns a feature map into a vector, and so can only come first.
    """

    params: tuple[spec.Param, ...]
    summary: str
    layer: Callable[..., Layer]
    first: bool = False


def pool(kind: str, *, name: str) -> Layer:
    """Makes a global pooling [B,h,w,C] -> float32 [B,C], or [B,2C] for "avg_max": all averages, then all maxima.

    In float32, whatever the map's dtype: it is next to nothing in size, and a 16-bit mean would round away what dropout
    and logits see.
    """
    if kind in _POOLS:
        layer: Layer = _POOLS[kind](dtype="float32", name=name)
        return layer

    def both(features: keras.KerasTensor) -> keras.KerasTensor:
        parts = [pool(each, name=f"{name}_{each}")(features) for each in _POOLS]
        return keras.layers.Concatenate(dtype="float32", name=name)(parts)

    return both


def _flatten(*, name: str) -> Layer:
    layer: Layer = keras.layers.Flatten(dtype="float32", name=name)
    return layer


OPERATIONS = {
    "pool": Operation((spec.Param("kind", str, choices=POOL_KINDS),),
                      "Averages or maxima of the feature map over its pixels, or both. Comes first.",
                      pool, first=True),
    "flatten": Operation((), "The feature map as one vector, in place of a pool. Comes first.", _flatten, first=True),
    "dense": Operation((spec.Param("units", int, low=1, high=16384, unit="units"),
                        spec.Param("activation", str, "relu", choices=_ACTIVATIONS)),
                       "A dense layer with bias.", keras.layers.Dense),
    "batch_norm": Operation((), "Batch normalisation.", keras.layers.BatchNormalization),
    "dropout": Operation((spec.Param("rate", float, low=0.0, high=0.95),),
                         "Sets each value to 0 with that probability, in training.", keras.layers.Dropout),
    "activation": Operation((spec.Param("activation", str, choices=_ACTIVATIONS),),
                            "An activation by itself, for example after batch_norm.", keras.layers.Activation),
}


def parse(text: str, *, pooled: bool = False) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Reads a head spec into (operation, parameters) pairs; the empty text is a head of pooling and logits alone.

    Args:
      text: the spec.
      pooled: whether the features are vectors already, so that nothing can pool or flatten them.

    Raises:
      InputError: an unknown operation, a parameter out of range, a gate `@p`, or a pooling out of place.
    """
    parsed = []
    for index, term in enumerate(spec.parse(text, what="--head").terms):
        if term.probability != 1.0:
            raise InputError(f"--head: expected no '@p' (a head is built once), received '{term}'")
        operation = spec.lookup(term, OPERATIONS, what="--head")
        values = spec.bind(term, operation.params, what="--head")
        if operation.first and pooled:
            raise InputError("--head: expected no pool or flatten for a concat, whose parts are pooled each by itself, "
                             f"received '{term}'; try the head without it")
        if operation.first and index > 0:
            raise InputError(f"--head: expected {term.name} as the first operation, since only a feature map can be "
                             f"pooled or flattened, received '{term}' as number {index + 1}; try it first, alone")
        parsed.append((term.name, values))
    return tuple(parsed)


def build(text: str, features: keras.KerasTensor, num_classes: int) -> keras.Model:
    """Builds the head for a backbone's features.

    Args:
      text: the spec.
      features: the backbone's symbolic output, of any float dtype: a feature map [B,h,w,C], or pooled features [B,D].
      num_classes: logits to end with.

    Returns:
      A functional model named "head", from `features` to float32 logits [B,num_classes].

    Raises:
      InputError: see `parse`; also a layer of more than 2^28 weights.
    """
    pooled = len(features.shape) == 2
    entry = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    operations = list(parse(text, pooled=pooled))
    x = entry
    if not pooled:
        if not operations or not OPERATIONS[operations[0][0]].first:
            operations.insert(0, ("pool", {"kind": "avg"}))
        name, values = operations.pop(0)
        x = OPERATIONS[name].layer(**values, name=name)(x)
    for index, (name, values) in enumerate(operations):
        _check_size(x, values.get("units", 1))
        x = OPERATIONS[name].layer(**values, name=f"{name}_{index}")(x)
    _check_size(x, num_classes)
    x = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(entry, x, name="head")


def _check_size(x: keras.KerasTensor, units: int) -> None:
    if x.shape[-1] * units > _MAX_KERNEL:
        raise InputError(f"--head: expected layers of at most {_MAX_KERNEL:,} weights, received {units:,} units on "
                         f"{x.shape[-1]:,} values; try pool('avg') in place of flatten, or fewer units")
