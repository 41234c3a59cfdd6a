"""How the learning rate moves within a stage: constant, cosine, restarts, exponential, step, plateau.

The peak comes from the stage; lengths are fractions of the stage's steps, so that a recipe keeps its shape when epochs
or the batch size change. All but plateau are functions of the step; plateau reacts to the validation loss at the end of
an epoch, so its counters belong to the checkpoint.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from bloodcell import spec
from bloodcell.errors import InputError


@dataclasses.dataclass(eq=False)
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is a function of the step.

    Attributes:
      peak: the highest learning rate.
      steps: steps of the stage, at least 1.
    """

    peak: float
    steps: int

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate, a float32 scalar, at a step (int64 scalar, from 0 within the stage)."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same schedule again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@keras.saving.register_keras_serializable("bloodcell")
@dataclasses.dataclass(eq=False)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to 0 (SGDR without restarts, Loshchilov and Hutter 2017).

    With `w = round(warmup * steps)`, step `i` (from 0) gets `peak * (i + 1) / (w + 1)` while `i < w` and
    `peak * (1 + cos(pi * (i - w) / (steps - w))) / 2` after that; beyond the last step it stays at 0.
    """

    warmup: float = 0.0

    @property
    def warmup_steps(self) -> int:
        """Steps that rise, at most all but the last."""
        return min(round(self.warmup * self.steps), self.steps - 1)

    def __call__(self, step: Any) -> Any:
        """See `Schedule`."""
        step = ops.cast(step, "float32")
        done = ops.clip((step - self.warmup_steps) / (self.steps - self.warmup_steps), 0.0, 1.0)
        return _warmed(self.peak * _half_cosine(done), self.peak, step, self.warmup_steps)


@keras.saving.register_keras_serializable("bloodcell")
@dataclasses.dataclass(eq=False)
class Restarts(Schedule):
    """Linear warm-up as `Cosine`'s, then cosines down to 0, each followed by a restart (SGDR, arXiv 1608.03983).

    Cycle `k` (from 0) begins at `peak * decay**k` and is `factor**k` times as long as the first, whose length is
    `round(first * steps)`, at least a step; where that is no whole number, each restart is at the nearest step. The
    last cycle ends with the stage, wherever it has got to; one that fits exactly ends near 0.
    """

    first: float = 0.1
    factor: float = 2.0
    decay: float = 1.0
    warmup: float = 0.0

    @property
    def warmup_steps(self) -> int:
        """Steps that rise, at most all but the last."""
        return min(round(self.warmup * self.steps), self.steps - 1)

    @property
    def starts(self) -> tuple[int, ...]:
        """First steps of the cycles, and the end of the last one."""
        length, passed = float(max(1, round(self.first * self.steps))), 0.0
        starts = [self.warmup_steps]
        while starts[-1] < self.steps:
            passed += length
            length *= self.factor
            starts.append(self.warmup_steps + round(passed))
        return tuple(starts)

    def __call__(self, step: Any) -> Any:
        """See `Schedule`."""
        starts = self.starts
        cycle = _passed(step, starts[1:-1])
        begin, end = (ops.take(ops.convert_to_tensor(each, "float32"), cycle) for each in (starts[:-1], starts[1:]))
        step = ops.cast(step, "float32")
        done = ops.clip((step - begin) / (end - begin), 0.0, 1.0)
        height = self.peak * ops.power(self.decay, ops.cast(cycle, "float32"))
        return _warmed(height * _half_cosine(done), self.peak, step, self.warmup_steps)


@keras.saving.register_keras_serializable("bloodcell")
@dataclasses.dataclass(eq=False)
class Exponential(Schedule):
    """Step `i` gets `peak * rate**(i / (every * steps))`; the exponent is rounded down where it is a staircase."""

    rate: float = 0.96
    every: float = 0.01
    staircase: bool = False

    def __call__(self, step: Any) -> Any:
        """See `Schedule`."""
        if self.staircase:
            count = math.ceil(1.0 / self.every)
            stairs = _boundaries([self.every * number for number in range(1, count + 1)], self.steps)
            exponent = ops.cast(_passed(step, stairs), "float32")
        else:
            exponent = ops.cast(step, "float32") / (self.every * self.steps)
        return self.peak * ops.power(self.rate, exponent)


@keras.saving.register_keras_serializable("bloodcell")
@dataclasses.dataclass(eq=False)
class Step(Schedule):
    """Multiplies the learning rate by `factor` at each of the fractions `at`: from step `ceil(fraction * steps)` on."""

    factor: float = 0.1
    at: tuple[float, ...] = (0.5, 0.75)

    def __call__(self, step: Any) -> Any:
        """See `Schedule`."""
        count = ops.cast(_passed(step, _boundaries(self.at, self.steps)), "float32")
        return self.peak * ops.power(self.factor, count)


@dataclasses.dataclass
class Plateau:
    """Multiplies the learning rate by `factor` after `patience` epochs in a row without a lower validation loss."""

    factor: float
    patience: int
    min_lr: float
    best: float = math.inf
    waited: int = 0

    def update(self, val_loss: float, lr: float) -> float:
        """Returns the learning rate of the next epoch, given this one's validation loss and learning rate."""
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
            return lr
        self.waited += 1
        if self.waited < self.patience:
            return lr
        self.waited = 0
        return min(lr, max(lr * self.factor, self.min_lr))

    def state(self) -> dict[str, float]:
        """Returns what a checkpoint must keep."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""
        self.best, self.waited = float(state["best"]), int(state["waited"])


Made = tuple[float | Schedule, Plateau | None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One schedule.

    Attributes:
      summary: what it does, for people.
      params: what its spec takes.
      make: called with (peak, steps) and the bound parameters; see `build`.
      check: raises InputError where values do not fit together; called with the bound parameters.
    """

    summary: str
    params: tuple[spec.Param, ...]
    make: Callable[..., Made]
    check: Callable[[dict[str, Any]], None] = lambda _: None


def _function(kind: type[Schedule]) -> Callable[..., Made]:
    return lambda peak, steps, **values: (kind(peak, steps, **values), None)


def _check_step(values: dict[str, Any]) -> None:
    at = values["at"]
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) and 0.0 < each < 1.0 for each in at)
    if not at or not numbers or list(at) != sorted(set(at)):
        raise InputError("schedule: step(at) expected rising fractions between 0 and 1, received "
                         f"{spec.shorten(repr(at))}, try at=(0.5, 0.75)")


_WARMUP = "fraction of the stage's steps"

SCHEDULES: dict[str, Entry] = {
    "constant": Entry("The stage's learning rate throughout.", (), lambda peak, steps: (peak, None)),
    "cosine": Entry("Rises linearly for a while, then falls to 0 along half a cosine.",
                    (spec.Param("warmup", float, 0.05, 0.0, 0.9, _WARMUP),), _function(Cosine)),
    "restarts": Entry(
        "Cosines to 0 one after the other (SGDR): the first of that length, each next factor times as long and its "
        "peak decay times as high.",
        (spec.Param("first", float, 0.1, 0.001, 1.0, _WARMUP), spec.Param("factor", float, 2.0, 1.0, 10.0),
         spec.Param("decay", float, 1.0, 0.01, 1.0), spec.Param("warmup", float, 0.0, 0.0, 0.9, _WARMUP)),
        _function(Restarts)),
    "exponential": Entry(
        "Falls by the factor rate over each such part of the stage, evenly or (staircase=True) at its end.",
        (spec.Param("rate", float, 0.96, 0.01, 1.0), spec.Param("every", float, 0.01, 0.001, 1.0, _WARMUP),
         spec.Param("staircase", bool, False)), _function(Exponential)),
    "step": Entry("Falls by factor at each of those fractions of the stage's steps.",
                  (spec.Param("factor", float, 0.1, 0.001, 1.0), spec.Param("at", tuple, (0.5, 0.75))),
                  _function(Step), _check_step),
    "plateau": Entry("Falls by factor after so many epochs in a row without a lower validation loss.",
                     (spec.Param("factor", float, 0.5, 0.01, 0.99), spec.Param("patience", int, 3, 1, 1000, "epochs"),
                      spec.Param("min_lr", float, 1e-6, 0.0, 1.0, "learning rate")),
                     lambda peak, steps, **values: (peak, Plateau(**values))),
}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Returns the schedule's name and its checked values; raises InputError."""
    term = spec.only_term(spec.parse(text, what="schedule"), what="schedule")
    entry: Entry = spec.lookup(term, SCHEDULES, what="schedule")
    values = spec.bind(term, entry.params, what="schedule")
    entry.check(values)
    return term.name, values


def build(text: str, *, peak: float, steps: int) -> Made:
    """Returns what the optimizer takes as its learning rate, and the plateau rule where there is one.

    Args:
      text: the spec.
      peak: the stage's learning rate.
      steps: steps of the whole stage.
    """
    name, values = parse(text)
    return SCHEDULES[name].make(peak, steps, **values)


def _half_cosine(done: Any) -> Any:
    """Returns 1 at 0 and 0 at 1."""
    return 0.5 * (1.0 + ops.cos(math.pi * done))


def _warmed(rate: Any, peak: float, step: Any, count: int) -> Any:
    """Returns `rate`, but while `step` is below `count` what rises linearly to `peak`."""
    return ops.where(step < count, peak * ((step + 1.0) / (count + 1)), rate)


def _boundaries(fractions: Sequence[float], steps: int) -> list[int]:
    """Returns the first step at or beyond each fraction of the steps, whatever the product's last digit says."""
    return [math.ceil(fraction * steps - 1e-6) for fraction in fractions]


def _passed(step: Any, boundaries: Sequence[int]) -> Any:
    """Returns how many boundaries a step has reached: an int32 scalar, exact, unlike a rounded-down quotient."""
    reached = ops.cast(step, "int64") >= ops.convert_to_tensor(list(boundaries), "int64")
    return ops.sum(ops.cast(reached, "int32"))
