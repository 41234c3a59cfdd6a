"""Weights files of Keras: compared with a network, variable by variable, before any of them is copied into it.

Two formats bear the suffix `.h5`, and the content says which it is: the older one lists layers in order and their
arrays by name (`save_weights` of Keras 2, whole models in HDF5, all files of `keras.applications`); the one of Keras 3
(`.weights.h5`) numbers layers by class and arrays by position. Sources: Keras's `legacy_h5_format.py`, `saving_lib.py`.
Nothing in such a file is ever run. What belongs here: these formats.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from bloodcell.errors import InputError

# What both a file and a variable may call the same thing; other names differ between versions of Keras.
_KINDS = {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}


class _Different(Exception):
    """The file belongs to another network; the text says what differs first."""


def load(model: keras.Model, path: Path) -> None:
    """Fills a functional model from a Keras weights file of either format; seeds of dropout stay as they are.

    Raises:
      InputError: the file is damaged or belongs to another network; the line names the first layer that differs, and
        the model is untouched.
    """
    try:
        with h5py.File(path) as file:
            pairs = list(_by_class(model, file) if "layers" in file else _by_order(model, file))
            values = [np.asarray(stored[()]) for _, stored in pairs]
    except _Different as error:
        problem = str(error)
    except Exception as error:  # h5py raises half a dozen kinds for a file that is not what it should be
        problem = " ".join(str(error).split())[:120]
    else:
        for (variable, _), value in zip(pairs, values, strict=True):
            variable.assign(value)
        return
    raise InputError(f"{path}: expected Keras weights of this backbone (without its classes), received another file "
                     f"({problem})")


_Pairs = Iterator[tuple[keras.Variable, Any]]


def _by_order(model: keras.Model, file: Any) -> _Pairs:
    """Pairs of variable and array in the older format: the layers that have weights, one after another."""
    file = file.get("model_weights", file)
    stored = {name: names for name in _names(file, "layer_names") if (names := _names(file[name], "weight_names"))}
    layers = [layer for layer in model.layers if layer.weights]
    for position, (layer, name) in enumerate(zip(layers, stored, strict=False), 1):
        weights = layer.trainable_weights + layer.non_trainable_weights
        where = f"layer {position} of {len(layers)}, {layer.name}"
        if len(weights) != len(stored[name]):
            raise _Different(f"{where}: expected {len(weights)} arrays, received {len(stored[name])} of '{name}'")
        for weight, array_name in zip(weights, stored[name], strict=True):
            yield _matched(weight, file[name][array_name], where, f" of '{array_name}'")
            received = array_name.rpartition("/")[2].partition(":")[0].replace("depthwise_kernel", "kernel")
            if received != weight.name and {received, weight.name} <= _KINDS:
                raise _Different(f"{where}: expected its {weight.name}, received '{array_name}'")
    if len(stored) != len(layers):
        further = f", the first '{list(stored)[len(layers)]}'" if len(stored) > len(layers) else ""
        raise _Different(f"expected {len(layers)} layers with weights, received {len(stored)}{further}")


def _names(group: Any, key: str) -> list[str]:
    """An attribute that is a list of names; Keras splits one too long for HDF5 into `key0`, `key1` and so on."""
    parts = [group.attrs[key]] if key in group.attrs else []
    while f"{key}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{key}{len(parts)}"])
    if not parts:
        raise _Different(f"expected the attribute '{key}', received none")
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _by_class(model: keras.Model, file: Any) -> _Pairs:
    """Pairs of variable and array in the format of Keras 3."""
    expected = {f"{place}/vars/{index}": (layer, weight) for place, layer in _places(model, "layers")
                for index, weight in enumerate(layer.weights)}
    arrays: dict[str, Any] = {}
    file.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    for key, (layer, weight) in expected.items():
        if key not in arrays:
            raise _Different(f"{layer.name}: expected {tuple(weight.shape)} at '{key}', received none")
        yield _matched(weight, arrays[key], layer.name, f" at '{key}'")
    # Dropout's seeds are in such files too, and the state of an optimizer may be.
    more = [key for key in arrays if key.startswith("layers/") and "/seed_generator/" not in key
            and key not in expected]
    if more:
        raise _Different(f"expected {len(expected)} arrays, received {len(more)} more, the first '{more[0]}'")


def _places(model: keras.Model, place: str) -> Iterator[tuple[str, keras.Layer]]:
    """Every layer with its place in the file: the class's name, numbered from the second of its kind."""
    counts: dict[str, int] = {}
    for layer in model.layers:
        name = _snake_case(type(layer).__name__)
        counts[name] = counts.get(name, 0) + 1
        here = f"{place}/{name}" if counts[name] == 1 else f"{place}/{name}_{counts[name] - 1}"
        if isinstance(layer, keras.Model):
            yield from _places(layer, f"{here}/layers")
        else:
            yield here, layer


def _snake_case(name: str) -> str:
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _matched(weight: keras.Variable, stored: Any, where: str, what: str) -> tuple[keras.Variable, Any]:
    if tuple(stored.shape) != tuple(weight.shape):
        raise _Different(f"{where}: expected {tuple(weight.shape)}, received {tuple(stored.shape)}{what}")
    return weight, stored
