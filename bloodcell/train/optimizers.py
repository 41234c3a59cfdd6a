"""Optimizers: SGD, Adam, AdamW, Lion and Ranger; weight decay on kernels alone, a rate for each variable if asked.

Under `mixed_float16` they are wrapped in Keras's dynamic loss scaling. Clipping is done in `step`, because it must see
the gradients summed over replicas, and Keras would clip each replica's share.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from bloodcell import spec
from bloodcell.train import ranger

UNDECAYED = ("bias", "beta", "gamma")  # names of variables: decaying a shift or a norm's scale regularises nothing


_Base: Any = object  # for mypy: what `super` finds is the Keras class that comes after


class _PerVariable(_Base):
    """Gives a Keras optimizer a learning rate and a weight decay for each variable; put it before the Keras class.

    A factor multiplies the learning rate that the rule itself sees, hence the whole update: for Adam, Lion and Ranger
    scaling the gradient would do nothing of the kind. Decay is decoupled (Loshchilov and Hutter 2019, arXiv
    1711.05101): before the update a variable shrinks by its own learning rate times `weight_decay`. Variables of rank 0
    or 1 and those named in `UNDECAYED` do not: biases, norms' scales and shifts, ConvNeXt's layer scales.

    Args:
      *args: the Keras class's own.
      weight_decay: per step, times the variable's learning rate.
      factors: by `variable.path`, of every variable; None for 1 everywhere.
      **kwargs: the Keras class's own.
    """

    def __init__(self, *args: Any, weight_decay: float | None = None, factors: Mapping[str, float] | None = None,
                 **kwargs: Any):
        super().__init__(*args, weight_decay=None, **kwargs)  # else Keras would decay too, at the rate without factor
        self._decay = weight_decay or 0.0
        self._factors = None if factors is None else tuple(factors.items())

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the slots, and looks up the factors; ValueError where a variable has none."""
        factors = dict(self._factors or ())
        if self._factors is not None and (lacking := [v.path for v in variables if v.path not in factors]):
            raise ValueError(f"factors: expected one for every variable, received none for {lacking[0]!r} "
                             f"({len(lacking)} variables)")
        self._by_index = tuple((factors.get(v.path, 1.0), self._decay if decays(v) else 0.0) for v in variables)
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decays one variable, then updates it as the Keras class does, both at its own rate."""
        factor, decay = self._by_index[self._get_variable_index(variable)]
        if factor != 1.0:
            learning_rate = learning_rate * factor
        if decay:
            rate = keras.ops.cast(learning_rate, variable.dtype)
            self.assign_sub(variable, variable * decay * rate)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same optimizer again, its state aside."""
        return {**super().get_config(), "weight_decay": self._decay,
                "factors": None if self._factors is None else dict(self._factors)}


@keras.saving.register_keras_serializable("bloodcell")
class PerVariableSGD(_PerVariable, keras.optimizers.SGD):
    """SGD with momentum; see `_PerVariable`."""


@keras.saving.register_keras_serializable("bloodcell")
class PerVariableAdam(_PerVariable, keras.optimizers.Adam):
    """Adam, and with `weight_decay` AdamW; see `_PerVariable`."""


@keras.saving.register_keras_serializable("bloodcell")
class PerVariableLion(_PerVariable, keras.optimizers.Lion):
    """Lion; see `_PerVariable`."""


@keras.saving.register_keras_serializable("bloodcell")
class PerVariableRanger(_PerVariable, ranger.Ranger):
    """Ranger; see `_PerVariable`."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
      summary: what it does, for people.
      params: what its spec takes; every optimizer takes `clipnorm` too.
      make: the class; called with `learning_rate`, `name`, `factors` and the bound parameters.
    """

    summary: str
    params: tuple[spec.Param, ...]
    make: Callable[..., keras.optimizers.Optimizer]


_CLIPNORM = spec.Param("clipnorm", float, None, 1e-6, 1e6, "norm of all gradients together", optional=True)


def _decay(default: float) -> spec.Param:
    return spec.Param("weight_decay", float, default, 0.0, 10.0, "per step, times the learning rate")


def _betas(second: float) -> tuple[spec.Param, ...]:
    return (spec.Param("beta_1", float, 0.9, 0.0, 0.9999), spec.Param("beta_2", float, second, 0.0, 0.999999))


_ADAM = (*_betas(0.999), spec.Param("epsilon", float, 1e-7, 1e-12, 1.0))

OPTIMIZERS: dict[str, Entry] = {
    "sgd": Entry(
        "Stochastic gradient descent with momentum (nesterov=True: looking ahead), decay apart from the gradient.",
        (spec.Param("momentum", float, 0.9, 0.0, 0.9999), spec.Param("nesterov", bool, False), _decay(0.0), _CLIPNORM),
        PerVariableSGD),
    "adam": Entry("Adam: steps scaled by the gradients' running mean and mean square (Kingma and Ba 2015).",
                  (*_ADAM, _CLIPNORM), PerVariableAdam),
    "adamw": Entry("Adam with decay apart from the gradient (Loshchilov and Hutter 2019).",
                   (_decay(1e-4), *_ADAM, _CLIPNORM), PerVariableAdam),
    "lion": Entry("Moves by the sign of a running mean (Chen et al. 2023); try a tenth of AdamW's lr, ten times its "
                  "decay.",
                  (_decay(1e-3), spec.Param("beta_1", float, 0.9, 0.0001, 0.9999), _betas(0.99)[1], _CLIPNORM),
                  PerVariableLion),
    "ranger": Entry("Rectified Adam (Liu et al. 2020), pulled back slow_step of the way every sync_period steps "
                    "(Lookahead, Zhang et al. 2019).",
                    (_decay(0.0), spec.Param("sync_period", int, 6, 1, 10_000, "steps"),
                     spec.Param("slow_step", float, 0.5, 0.0, 1.0, "of the way"), *_ADAM, _CLIPNORM),
                    PerVariableRanger),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked optimizer spec: Keras's keyword arguments, and the largest global gradient norm (None: no clipping)."""

    name: str
    arguments: dict[str, Any]
    clipnorm: float | None


def parse(text: str) -> Settings:
    """Returns the settings; raises InputError on an unknown name or a value out of range."""
    term = spec.only_term(spec.parse(text, what="optimizer"), what="optimizer")
    values = spec.bind(term, spec.lookup(term, OPTIMIZERS, what="optimizer").params, what="optimizer")
    clipnorm = values.pop("clipnorm")
    return Settings(term.name, values, clipnorm)


def decays(variable: keras.Variable) -> bool:
    """Returns whether weight decay applies to a variable: to kernels, that is, to what has rank 2 or more."""
    return len(variable.shape) > 1 and variable.name not in UNDECAYED


def build(settings: Settings, *, learning_rate: Any, variables: Sequence[keras.Variable], precision: str,
          factors: Mapping[str, float] | None = None) -> keras.optimizers.Optimizer:
    """Returns an optimizer whose variables exist, so that a checkpoint can be read into it.

    Call it in the strategy's scope, when the model has its weights (Ranger's slow weights begin there).

    Args:
      settings: from `parse`.
      learning_rate: a float or a Keras schedule.
      variables: the trainable variables.
      precision: the dtype policy's name; `mixed_float16` adds loss scaling.
      factors: by `variable.path`, what multiplies a variable's learning rate, its weight decay included; of every
        variable. None for 1 everywhere.

    Raises:
      ValueError: a variable without a factor.
    """
    optimizer: keras.optimizers.Optimizer = OPTIMIZERS[settings.name].make(
        learning_rate=learning_rate, name=settings.name, factors=factors, **settings.arguments)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def take_summed_gradients(optimizer: keras.optimizers.Optimizer) -> None:
    """Tells an optimizer that its gradients are summed over the replicas already.

    The step needs that sum itself, for the norm and for clipping; Keras would send all gradients around once more.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    inner._all_reduce_sum_gradients = list
