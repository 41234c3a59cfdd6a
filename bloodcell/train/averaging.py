"""Averages of a model's weights over the steps of a run: `ema(0.999)` and `swa(start=0.75)`.

An `Average` keeps them beside the model and puts them into it for as long as asked. When to validate, which epoch was
the best, and what is saved belong to `loop`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from bloodcell import spec


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of averaging: what it does, for people, and what its spec takes."""

    summary: str
    params: tuple[spec.Param, ...]


AVERAGES: dict[str, Entry] = {
    "ema": Entry("Exponential mean over steps: decay of the old and the rest of the new, at first less than decay.",
                 (spec.Param("decay", float, 0.999, 0.0, 0.999999, "of the old mean, per step"),)),
    "swa": Entry("Equal mean of the weights at the end of each epoch from start on (Izmailov et al. 2018); wants a "
                 "learning rate that is not yet 0 there.",
                 (spec.Param("start", float, 0.75, 0.0, 1.0, "fraction of the run's steps"),)),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked spec of `--average`: its name and its parameters."""

    name: str
    values: dict[str, Any]


def parse(text: str) -> Settings | None:
    """Returns the settings, or None where the text is empty; raises InputError."""
    if not text.strip():
        return None
    term = spec.only_term(spec.parse(text, what="average"), what="average")
    return Settings(term.name, spec.bind(term, spec.lookup(term, AVERAGES, what="average").params, what="average"))


class Average:
    """The mean of all float variables of a model, batch statistics included, over the steps of a run.

    Make it in the strategy's scope, before any layer is frozen, and call it outside of replicas. After every training
    step call `after_step`, at the end of every epoch, when replicas agree on their batch statistics, `after_epoch`;
    `ema` acts on the one, `swa` on the other, and both calls are always fine.

    - `ema`: mean = d mean + (1 - d) value after each step, d = min(decay, (1 + t) / (10 + t)), t being the steps
      averaged before: the mean begins at the variables' values here and soon forgets them.
    - `swa`: after each epoch whose end is at `start` of the run or later, mean += (value - mean) / n, the n-th time.
      The batch statistics are averaged too, not measured anew with the averaged weights as in the paper.

    Under a strategy of several replicas each device averages its own copy, without traffic, but for batch statistics,
    of which the replicas' mean is averaged.

    Args:
      settings: from `parse`.
      model: whose variables to average.
      steps: of the whole run.
      jit: whether XLA compiles the update into one program; not under a mirrored strategy.

    Attributes:
      variables: int64 [] the times averaged, then the means in the order of the model's float variables. All state
        there is, so a checkpoint of it goes on exactly.
    """

    def __init__(self, settings: Settings, model: keras.Model, steps: int, *, jit: bool = False):
        self.settings = settings
        self._strategy = tf.distribute.get_strategy()
        self._model_variables = [v for v in model.variables if tf.as_dtype(v.dtype).is_floating]
        learned = {id(v) for v in model.trainable_variables}
        self._statistics = [id(v) not in learned for v in self._model_variables]
        self._start = math.ceil(settings.values.get("start", 0.0) * steps - 1e-6)
        with keras.name_scope("average"):
            self._count = keras.Variable(0, dtype="int64", trainable=False, name="count",
                                         aggregation="only_first_replica")
        self._means = [_mean_of(variable) for variable in self._model_variables]
        self._update = tf.function(self._average, jit_compile=jit or None, autograph=False)
        self._put = tf.function(self._fill, autograph=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """All state, for the checkpoint."""
        return [self._count, *self._means]

    @property
    def ready(self) -> bool:
        """Whether anything has been averaged yet."""
        return int(self._count.numpy()) > 0

    def after_step(self, step: int) -> None:
        """Takes the model's values into an exponential mean; `step` is the number of finished steps of the run."""
        if self.settings.name == "ema":
            with self._strategy.scope():
                self._update()

    def after_epoch(self, step: int) -> None:
        """Takes the model's values into SWA's mean, from its start on; `step` as in `after_step`."""
        if self.settings.name == "swa" and step >= self._start:
            with self._strategy.scope():
                self._update()

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Gives the model the means within the block, and afterwards, whatever happens, the very bits it had.

        Raises:
          RuntimeError: nothing has been averaged yet.
        """
        if not self.ready:
            raise RuntimeError("expected an average of at least one step, received none; ask `ready` first")
        kept = [[(copy, tf.identity(copy)) for copy in self._strategy.experimental_local_results(variable.value)]
                for variable in self._model_variables]
        try:
            with self._strategy.scope():
                self._put()
            yield
        finally:
            for copies in kept:
                for copy, value in copies:
                    copy.assign(value)

    def _average(self) -> None:
        count = tf.cast(self._count.value, tf.float32)
        if self.settings.name == "ema":
            part = 1.0 - tf.minimum(self.settings.values["decay"], (1.0 + count) / (10.0 + count))
        else:
            part = 1.0 / (count + 1.0)

        def move(mean: Any, value: Any, part: Any) -> None:
            mean.assign_add((value - mean) * part)

        for mean, variable, statistic in zip(self._means, self._model_variables, self._statistics, strict=True):
            value = variable.value
            if statistic:
                copies = self._strategy.experimental_local_results(value)
                value = tf.add_n([tf.convert_to_tensor(copy) for copy in copies]) / len(copies)
            self._strategy.extended.update(mean.value, move, args=(value, part), group=False)
        self._count.assign_add(1)

    def _fill(self) -> None:
        for mean, variable in zip(self._means, self._model_variables, strict=True):
            self._strategy.extended.update(variable.value, lambda variable, mean: variable.assign(mean),
                                           args=(mean.value,), group=False)


def _mean_of(variable: keras.Variable) -> keras.Variable:
    """Returns a float32 variable of a model variable's value now, under its path: `average/backbone/stem/kernel`."""
    *scopes, name = variable.path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in ("average", *scopes):
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(lambda shape, dtype: tf.cast(tf.convert_to_tensor(variable.value), dtype),
                              shape=variable.shape, dtype="float32", trainable=False, name=name)
