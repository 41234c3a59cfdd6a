"""Ranger: rectified Adam (Liu et al. 2020) whose weights Lookahead (Zhang et al. 2019) pulls back now and then.

A Keras 3 optimizer like Keras's own. Which variables decay, and factors on the learning rate, belong to `optimizers`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# Average length from which the step is adaptive: the authors' programs and TensorFlow Addons take 5, the paper above 4.
RECTIFIED_FROM = 5.0


@keras.saving.register_keras_serializable(package="bloodcell")
class Ranger(keras.optimizers.Optimizer):
    """Rectified Adam (arXiv 1908.03265) inside Lookahead (arXiv 1907.08610).

    With gradient g, step t from 1, learning rate a, betas b1 and b2, and n = 2 / (1 - b2) - 1:

    - m moves by (1 - b1)(g - m), v by (1 - b2)(g^2 - v); m' = m / (1 - b1^t), v' = v / (1 - b2^t);
    - n_t = n - 2 t b2^t / (1 - b2^t), the length of the average in v. Below 5 the variance of 1 / sqrt(v') is not to be
      trusted and the weights move by -a m'. From 5 on they move by -a r m' / (sqrt(v') + epsilon), with
      r^2 = (n_t - 4)(n_t - 2) n / ((n - 4)(n - 2) n_t);
    - every `sync_period` steps the slow weights move by `slow_step` of their distance to these fast weights, and the
      fast weights begin again from there.

    Weight decay is decoupled, as in TensorFlow Addons' `RectifiedAdam`: weights shrink by a * weight_decay of their
    value before the step. The slow weights begin as the variables are when the optimizer is built; build it when the
    model has its weights. The scalars of a step are computed in float64: in float32 n_t is the difference of two
    numbers near 2000, and r would be wrong by up to 0.3% in the first rectified steps.

    Args:
      learning_rate: a float, a Keras schedule, or a callable.
      beta_1: of the mean of gradients, 0..1.
      beta_2: of the mean of their squares, 0..1; at 2 / 3 or below no step is ever adaptive.
      epsilon: added to the root of the mean of squares.
      sync_period: steps from one synchronisation to the next, at least 1.
      slow_step: 0..1, how far the slow weights go; 1 is rectified Adam alone.
      weight_decay: per step, times the learning rate; None for none.
      name: of the optimizer, and of the scope of its variables.
      **kwargs: Keras's own, such as `global_clipnorm`.
    """

    def __init__(self, learning_rate: Any = 0.001, *, beta_1: float = 0.9, beta_2: float = 0.999,
                 epsilon: float = 1e-7, sync_period: int = 6, slow_step: float = 0.5,
                 weight_decay: float | None = None, name: str = "ranger", **kwargs: Any):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        if sync_period < 1 or not 0.0 <= slow_step <= 1.0:
            raise ValueError("Ranger: expected sync_period of 1 or more and slow_step in 0..1, received "
                             f"{sync_period} and {slow_step}")
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.sync_period = sync_period
        self.slow_step = slow_step

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes momentum, velocity and slow weights of each variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities, self._slow = [], [], []
        for variable in variables:
            def now(shape: Any, dtype: Any = None, variable: keras.Variable = variable) -> Any:
                return ops.cast(ops.convert_to_tensor(variable), dtype)

            self._momentums.append(self.add_variable_from_reference(variable, name="momentum"))
            self._velocities.append(self.add_variable_from_reference(variable, name="velocity"))
            self._slow.append(self.add_variable_from_reference(variable, name="slow", initializer=now))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable and its slots; called by Keras, under a strategy once on each device."""
        index = self._get_variable_index(variable)
        momentum, velocity, slow = self._momentums[index], self._velocities[index], self._slow[index]
        dtype = variable.dtype
        gradient, rate = ops.cast(gradient, dtype), ops.cast(learning_rate, dtype)
        first, second, rectifier = (None if each is None else ops.cast(each, dtype) for each in self._scalars())

        self.assign_add(momentum, (gradient - momentum) * (1.0 - self.beta_1))
        self.assign_add(velocity, (ops.square(gradient) - velocity) * (1.0 - self.beta_2))
        move = momentum / first
        if rectifier is not None:
            adaptive = rectifier * move / (ops.sqrt(velocity / second) + self.epsilon)
            move = ops.where(rectifier > 0.0, adaptive, move)
        fast = variable - rate * move
        back = slow + self.slow_step * (fast - slow)
        # Written at every step, because a branch around an assignment is fragile under a strategy.
        synchronise = ops.equal((self.iterations + 1) % self.sync_period, 0)
        self.assign(slow, ops.where(synchronise, back, slow))
        self.assign(variable, ops.where(synchronise, back, fast))

    def _scalars(self) -> tuple[Any, Any, Any]:
        """Returns 1 - b1^t, 1 - b2^t, and r (0 while the step is not adaptive; None where it never will be)."""
        step = ops.cast(self.iterations + 1, "float64")
        first = 1.0 - ops.power(ops.convert_to_tensor(self.beta_1, "float64"), step)
        power = ops.power(ops.convert_to_tensor(self.beta_2, "float64"), step)
        longest = 2.0 / (1.0 - self.beta_2) - 1.0
        if longest <= RECTIFIED_FROM:
            return first, 1.0 - power, None
        length = longest - 2.0 * step * power / (1.0 - power)
        square = (length - 4.0) * (length - 2.0) / length * (longest / ((longest - 4.0) * (longest - 2.0)))
        adaptive = length >= RECTIFIED_FROM
        return first, 1.0 - power, ops.where(adaptive, ops.sqrt(ops.where(adaptive, square, 1.0)), 0.0)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same optimizer again, its state aside."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon,
                "sync_period": self.sync_period, "slow_step": self.slow_step}
