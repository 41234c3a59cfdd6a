"""Optimizers: `adamw(weight_decay=1e-4)` and `adam`, with weight decay on kernels alone.

Under `mixed_float16` they are wrapped in Keras's dynamic loss scaling. Clipping is done in `step`, because it must see
the gradients summed over replicas, and Keras would clip each replica's share.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from bloodcell import spec

_ADAM = (
    spec.Param("beta_1", float, 0.9, 0.0, 0.9999),
    spec.Param("beta_2", float, 0.999, 0.0, 0.999999),
    spec.Param("epsilon", float, 1e-7, 1e-12, 1.0),
    spec.Param("clipnorm", float, None, 1e-6, 1e6, "norm of all gradients together", optional=True),
)
PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "adam": _ADAM,
    "adamw": (spec.Param("weight_decay", float, 1e-4, 0.0, 10.0, "per step, times the learning rate"), *_ADAM),
}
UNDECAYED = ("bias", "beta", "gamma")  # names of variables: decaying a shift or a norm's scale regularises nothing


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked optimizer spec: Keras's keyword arguments, and the largest global gradient norm (None: no clipping)."""

    name: str
    arguments: dict[str, Any]
    clipnorm: float | None


def parse(text: str) -> Settings:
    """Returns the settings; raises InputError on an unknown name or a value out of range."""
    term = spec.only_term(spec.parse(text, what="optimizer"), what="optimizer")
    values = spec.bind(term, spec.lookup(term, PARAMS, what="optimizer"), what="optimizer")
    clipnorm = values.pop("clipnorm")
    return Settings(term.name, values, clipnorm)


def build(settings: Settings, *, learning_rate: Any, variables: Sequence[keras.Variable],
          precision: str) -> keras.optimizers.Optimizer:
    """Returns an optimizer whose variables exist, so that a checkpoint can be read into it.

    Call it in the strategy's scope.

    Args:
      settings: from `parse`.
      learning_rate: a float or a Keras schedule.
      variables: the trainable variables.
      precision: the dtype policy's name; `mixed_float16` adds loss scaling.
    """
    make = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[settings.name]
    optimizer: keras.optimizers.Optimizer = make(learning_rate=learning_rate, **settings.arguments)
    if settings.name == "adamw":
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if v.name in UNDECAYED])
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer
