"""How the learning rate moves within a stage: `constant`, `cosine(warmup=0.05)`, `plateau(factor=0.5, patience=3)`.

The peak comes from the stage. The first two are functions of the step; plateau reacts to the validation loss at the end
of an epoch, so its counters belong to the checkpoint.
"""

import dataclasses
import math
from typing import Any

import keras

from bloodcell import spec

PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "constant": (),
    "cosine": (spec.Param("warmup", float, 0.05, 0.0, 0.9, "fraction of the stage's steps"),),
    "plateau": (
        spec.Param("factor", float, 0.5, 0.01, 0.99),
        spec.Param("patience", int, 3, 1, 1000, "epochs"),
        spec.Param("min_lr", float, 1e-6, 0.0, 1.0, "learning rate"),
    ),
}


class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then half a cosine down to 0 (SGDR without restarts, Loshchilov and Hutter 2017).

    With `w = round(warmup * steps)`, step `i` (from 0) gets `peak * (i + 1) / (w + 1)` while `i < w` and
    `peak * (1 + cos(pi * (i - w) / (steps - w))) / 2` after that; beyond the last step it stays at 0.
    """

    def __init__(self, peak: float, steps: int, warmup: float):
        self.peak = peak
        self.steps = steps
        self.warmup_steps = min(round(warmup * steps), steps - 1)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate, a float32 scalar, at a step (int64 scalar, from 0 within the stage)."""
        step = keras.ops.cast(step, "float32")
        rising = (step + 1.0) / (self.warmup_steps + 1)
        done = keras.ops.clip((step - self.warmup_steps) / (self.steps - self.warmup_steps), 0.0, 1.0)
        falling = 0.5 * (1.0 + keras.ops.cos(math.pi * done))
        return self.peak * keras.ops.where(step < self.warmup_steps, rising, falling)


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


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Returns the schedule's name and its checked values; raises InputError."""
    term = spec.only_term(spec.parse(text, what="schedule"), what="schedule")
    return term.name, spec.bind(term, spec.lookup(term, PARAMS, what="schedule"), what="schedule")


def build(text: str, *, peak: float, steps: int) -> tuple[float | Cosine, Plateau | None]:
    """Returns what the optimizer takes as its learning rate, and the plateau rule where there is one.

    Args:
      text: the spec.
      peak: the stage's learning rate.
      steps: steps of the whole stage.
    """
    name, values = parse(text)
    if name == "cosine":
        return Cosine(peak, steps, values["warmup"]), None
    return peak, Plateau(**values) if name == "plateau" else None
