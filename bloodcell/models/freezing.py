"""Which part of a model trains: the head, some of the backbone's layers too, or everything; and how fast which layers.

What belongs here: the `trainable` flags, a table of them, and the share of the learning rate that a layer gets. When
they change is the stages' business; a step compiled before the change keeps the old flags and must be built anew.

Layers are counted as `backbone.layers` has them, from 0 at the image, preprocessing included and the input left out: so
number n is `base.layers[n + 1]` of a Keras application that holds its preprocessing (EfficientNet, MobileNetV3,
ConvNeXt), whose own count begins with the input. A block that is a model of its own (ConvNeXt's stem) is one layer. In
a concat every part is counted by itself.
"""

import math
from collections.abc import Iterator

import keras

from bloodcell.errors import InputError, did_you_mean
from bloodcell.models import concat

SCOPES = ("head", "top", "from_layer", "all")
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D,
                 keras.layers.Conv2DTranspose)


def apply(model: keras.Model, *, scope: str, percent: float = 100.0, layers: int | None = None,
          first: int | None = None, convs_only: bool = False, freeze_bn: bool = False) -> None:
    """Sets the `trainable` flag of every layer; the head always trains.

    A frozen batch normalisation runs in inference mode and leaves its moving statistics alone (Keras's rule), so what
    lies below the trained part computes the same features in every step. (EfficientNetV2 drops whole blocks at random
    while it trains, in its frozen part too.)

    Args:
      model: from `models.build`.
      scope: "head" freezes the backbone, "all" trains it, "top" trains its last layers, "from_layer" those from a
        number on.
      percent: for "top", how many of the backbone's layers, counted from the output, 0..100.
      layers: for "top", the number of these layers in place of the percentage, at least 1.
      first: for "from_layer", the number of the first layer that trains.
      convs_only: of the chosen layers only convolutions train (with bias, depthwise, separable and transposed ones
        too); batch normalisation then runs in inference mode everywhere in the backbone.
      freeze_bn: the backbone's batch normalisation stays in inference mode, its scale and offset as they are.

    Raises:
      InputError: unknown scope, or a number that does not fit the scope or the backbone; no flag has changed then.
    """
    if scope not in SCOPES:
        raise InputError(f"--stages: unknown name '{scope}'; {did_you_mean(scope, SCOPES)}")
    backbone, head = model.get_layer("backbone"), model.get_layer("head")
    members = {part.name: _layers(part) for part in concat.parts(backbone)}
    frozen = {name: _frozen(name, len(part), scope, percent=percent, layers=layers, first=first)
              for name, part in members.items()}
    model.trainable = backbone.trainable = head.trainable = True  # passed on to all that they hold
    for name, part in members.items():
        for index, layer in enumerate(part):
            _set(layer, index >= frozen[name], convs_only, freeze_bn)


def table(model: keras.Model) -> list[tuple[str, int, int, int]]:
    """Returns rows (part, layers, trainable parameters, frozen parameters) for people, empty parts left out.

    Moving statistics, which no gradient reaches, count as frozen. A concat has rows for each of its backbones.
    """
    backbone, head = model.get_layer("backbone"), model.get_layer("head")
    rows = []
    for part in concat.parts(backbone):
        for word, learns in (("frozen", False), ("trained", True)):
            rows.append((f"{part.name}, {word}", [layer for layer in _layers(part) if layer.trainable == learns]))
    rows.append(("head", _layers(head)))
    return [(part, len(members), sum(_size(layer.trainable_weights) for layer in members),
             sum(_size(layer.non_trainable_weights) for layer in members)) for part, members in rows if members]


def learning_rate_factors(model: keras.Model, decay: float) -> dict[str, float]:
    """Returns what to multiply the learning rate by, for every variable that is trainable now, by `variable.path`.

    The head has 1. A backbone's layers form groups of one resolution: a group ends where the number of halvings,
    log2(S / side of the layer's output) to the nearest integer, changes along the layers' order. The k-th group from
    the top, k from 1, has decay^k. Only layers with weights are looked at, so padding starts no group; nor does a side
    of 1 with a larger one after it, for that is where squeeze-and-excitation works.

    Args:
      model: from `models.build`, after `apply`.
      decay: above 0, up to 1.
    """
    factors = {variable.path: 1.0 for variable in model.get_layer("head").trainable_variables}
    for part in concat.parts(model.get_layer("backbone")):
        for layer, group in _groups(part):
            factors |= {variable.path: decay**group for variable in layer.trainable_variables}
    if len(factors) != len(model.trainable_variables):
        raise ValueError("expected variables of different paths in the head and in layers of the backbone alone")
    return factors


def _frozen(name: str, count: int, scope: str, *, percent: float, layers: int | None, first: int | None) -> int:
    """Returns how many of a part's layers are frozen, from the image on."""
    if scope == "top" and layers is not None:
        if not 1 <= layers <= count:
            raise InputError(f"--stages: top(layers) expected 1..{count} for {_named(name)}, received {layers}")
        return count - layers
    if scope == "top":
        if not 0 <= percent <= 100:
            raise InputError(f"--stages: top(percent) expected 0..100, received {percent:g}")
        return count - math.floor(count * percent / 100 + 0.5)
    if scope == "from_layer":
        if first is None or not 0 <= first < count:
            raise InputError(f"--stages: from_layer(first) expected 0..{count - 1} for {_named(name)}, "
                             f"received {first}")
        return first
    return count if scope == "head" else 0


def _named(part: str) -> str:
    return "the backbone" if part == "backbone" else part


def _set(layer: keras.Layer, learns: bool, convs_only: bool, freeze_bn: bool) -> None:
    if isinstance(layer, keras.Model):
        layer.trainable = learns  # first: it is passed on to the layers inside
        for inner in _layers(layer):
            _set(inner, learns, convs_only, freeze_bn)
        return
    kept = ((convs_only and not isinstance(layer, _CONVOLUTIONS))
            or (freeze_bn and isinstance(layer, keras.layers.BatchNormalization)))
    layer.trainable = learns and not kept


def _groups(part: keras.Model) -> Iterator[tuple[keras.Layer, int]]:
    """Yields a backbone's layers with weights, each with the number of its group, from 1 at the top."""
    members = [layer for layer in _layers(part) if layer.weights]
    sides = [layer.output.shape[1] if len(layer.output.shape) == 4 else 1 for layer in members]
    last = max((index for index, side in enumerate(sides) if side > 1), default=-1)
    halvings: int | None = None
    numbers, number = [], 0
    for index, side in enumerate(sides):
        if side > 1 or index > last:
            here = round(math.log2(part.input.shape[1] / side))
            number += halvings is not None and here != halvings
            halvings = here
        numbers.append(number)
    return ((layer, numbers[-1] - own + 1) for layer, own in zip(members, numbers, strict=True))


def _layers(part: keras.Model) -> list[keras.Layer]:
    return [layer for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)]


def _size(weights: list[keras.Variable]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
