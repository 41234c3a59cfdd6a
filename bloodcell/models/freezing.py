"""Which part of a model trains: the head, the last part of the backbone too, or everything.

What belongs here: the `trainable` flags and a table of them. When they change is the stages' business; a step compiled
before the change keeps the old flags and must be built anew.
"""

import math

import keras

from bloodcell.errors import InputError, did_you_mean

SCOPES = ("head", "top", "all")


def apply(model: keras.Model, *, scope: str, percent: float = 100.0) -> None:
    """Sets the `trainable` flag of every layer; the head always trains.

    A frozen batch normalisation runs in inference mode and leaves its moving statistics alone (Keras's rule), so what
    lies below the trained part computes the same features in every step.

    Args:
      model: from `models.build`.
      scope: "head" freezes the backbone, "all" trains it, "top" trains its last layers.
      percent: for "top", how many of the backbone's layers, counted from the output, 0..100.

    Raises:
      InputError: unknown scope or percent out of range.
    """
    if scope not in SCOPES:
        raise InputError(f"--stages: unknown name '{scope}'; {did_you_mean(scope, SCOPES)}")
    if not 0 <= percent <= 100:
        raise InputError(f"--stages: top(percent) expected 0..100, received {percent:g}")
    backbone, head = model.get_layer("backbone"), model.get_layer("head")
    model.trainable = backbone.trainable = head.trainable = True
    layers = _layers(backbone)
    share = {"head": 0.0, "top": percent, "all": 100.0}[scope]
    frozen = len(layers) - math.floor(len(layers) * share / 100 + 0.5)
    for index, layer in enumerate(layers):  # each one by itself: a model passes its flag on only when it changes
        layer.trainable = index >= frozen
    for layer in _layers(head):
        layer.trainable = True


def table(model: keras.Model) -> list[tuple[str, int, int, int]]:
    """Returns rows (part, layers, trainable parameters, frozen parameters) for people, empty parts left out.

    Moving statistics, which no gradient reaches, count as frozen.
    """
    layers = _layers(model.get_layer("backbone"))
    parts = (("backbone, frozen", [layer for layer in layers if not layer.trainable]),
             ("backbone, trained", [layer for layer in layers if layer.trainable]),
             ("head", _layers(model.get_layer("head"))))
    return [(part, len(members), sum(_size(layer.trainable_weights) for layer in members),
             sum(_size(layer.non_trainable_weights) for layer in members)) for part, members in parts if members]


def _layers(part: keras.Model) -> list[keras.Layer]:
    return [layer for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)]


def _size(weights: list[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
