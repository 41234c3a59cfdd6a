"""Which point is tried next: at random, along a grid, by TPE (Optuna's), or by a Gaussian process of our own.

A draw depends on the seed, the trial's number and the results so far, and on nothing else: a search that is stopped and
goes on, alone, tries what it would have tried. Optuna's own Gaussian process needs PyTorch; ours is scikit-learn's.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
import scipy.stats
import threadpoolctl
from optuna.trial import FrozenTrial, TrialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from bloodcell.search.methods import Method
from bloodcell.search.space import Choice, Dimension, Point, Range, Space, label

_DRAWS = 100  # until a point is found that has not been tried
_CANDIDATES, _NEAR, _SPREAD = 1500, 500, 0.08  # points whose expected improvement is looked at: anywhere, near the best
_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Returns a space as Optuna has it; a choice is of its labels there."""
    return {dimension.name: _distribution(dimension) for dimension in space.dimensions}


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.labels)
    if isinstance(dimension, Range):
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return optuna.distributions.IntDistribution(dimension.low, dimension.high, step=dimension.step)


def to_params(space: Space, point: Point) -> dict[str, Any]:
    """Returns a point as Optuna stores it."""
    return {dimension.name: label(point[dimension.name]) if isinstance(dimension, Choice) else point[dimension.name]
            for dimension in space.dimensions}


def to_point(space: Space, params: dict[str, Any]) -> Point:
    """Returns what `to_params` was given."""
    return {dimension.name: dimension.options[dimension.labels.index(params[dimension.name])]
            if isinstance(dimension, Choice) else params[dimension.name] for dimension in space.dimensions}


class Sampler(optuna.samplers.BaseSampler):
    """Draws whole points; see `bloodcell.search.methods` for the methods.

    Args:
      method: what draws.
      space: from which.
      seed: of the draws.
    """

    def __init__(self, method: Method, space: Space, seed: int):
        self._method, self._space, self._seed = method, space, seed
        self._distributions = distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial
                                    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """Returns the whole space: names are drawn together."""
        return self._distributions

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial,
                        search_space: dict[str, optuna.distributions.BaseDistribution]) -> dict[str, Any]:
        """Returns a point, as Optuna stores it, that no trial has, as long as there is one."""
        others = [each for each in study.get_trials(deepcopy=False, states=_STATES) if each.number != trial.number]
        taken = {_key(params) for params in map(params_of, others) if params}
        if self._method.name == "grid":
            points = (to_params(self._space, point) for point in self._space.grid(self._method.points))
            return next((params for params in points if _key(params) not in taken), None) or to_params(
                self._space, next(self._space.grid(self._method.points)))
        draw = self._random
        for attempt in range(_DRAWS):
            rng = np.random.default_rng((self._seed, trial.number, attempt))
            if attempt <= _DRAWS // 10 and self._method.name in ("tpe", "gp"):
                params = self._tpe(study, trial, rng) if self._method.name == "tpe" else self._gp(others, rng)
            else:
                params = draw(rng)
            if _key(params) not in taken:
                break
        return params

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: optuna.distributions.BaseDistribution) -> Any:
        """Never asked: all names are drawn together."""
        raise ValueError(f"{param_name} is not in the space")

    def _random(self, rng: np.random.Generator) -> dict[str, Any]:
        return to_params(self._space, self._space.at(dict(zip(self._space.names, rng.random(len(self._space.names)),
                                                              strict=True))))

    def _tpe(self, study: optuna.Study, trial: FrozenTrial, rng: np.random.Generator) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            tpe = optuna.samplers.TPESampler(n_startup_trials=self._method.startup, multivariate=True,
                                             constant_liar=True, seed=int(rng.integers(2**31)))
        found = tpe.sample_relative(study, trial, self._distributions)
        if not found:  # it waits for its first trials
            return self._random(rng)
        return {dimension.name: dimension.rounded(found[dimension.name]) if isinstance(dimension, Range)
                else found[dimension.name] for dimension in self._space.dimensions}

    def _gp(self, others: Sequence[FrozenTrial], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the point of the largest expected improvement among many random ones.

        Pruned trials count as their best value so far, failed ones as the least of all, and those that are running as
        what is expected of them (the "kriging believer" of Ginsbourger et al. 2010), so that two workers part.
        """
        known = [(to_point(self._space, trial.params), value) for trial, value in _results(others)]
        if len(known) < self._method.startup:
            return self._random(rng)
        places = self._encoded(point for point, _ in known)
        values = np.array([value for _, value in known])
        scale = values.std() or 1.0
        targets = (values - values.mean()) / scale
        kernel = (ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.full(places.shape[1], 0.5), (0.05, 20.0), nu=2.5)
                  + WhiteKernel(1e-2, (1e-5, 1.0)))
        process = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=int(rng.integers(2**31)))
        # Matrices this small are slower on several threads, by far where other trainings keep the cores busy.
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: the name does not matter
            process.fit(places, targets)
        running = [to_point(self._space, params_of(trial)) for trial in others
                   if trial.state in (TrialState.RUNNING, TrialState.WAITING) and params_of(trial)]
        if running:
            believed = self._encoded(running)
            places, targets = np.vstack([places, believed]), np.append(targets, process.predict(believed))
            process = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(places, targets)
        units = self._units([known[int(values.argmax())][0]])[0]
        cube = rng.random((_CANDIDATES, len(units)))
        near = np.clip(units + _SPREAD * rng.standard_normal((_NEAR, len(units))), 0.0, np.nextafter(1.0, 0.0))
        points = [self._space.at(dict(zip(self._space.names, row, strict=True))) for row in np.vstack([cube, near])]
        mean, deviation = process.predict(self._encoded(points), return_std=True)
        best = points[int(expected_improvement(mean, deviation, targets.max()).argmax())]
        return to_params(self._space, best)

    def _units(self, points: Iterable[Point]) -> np.ndarray:
        return np.array([[dimension.unit(point[dimension.name]) for dimension in self._space.dimensions]
                         for point in points])

    def _encoded(self, points: Iterable[Point]) -> np.ndarray:
        """Returns float64 [N, D]: a number 0..1 for each range, and a one among zeros for each choice."""
        rows = []
        for point in points:
            parts = []
            for dimension in self._space.dimensions:
                value = point[dimension.name]
                if isinstance(dimension, Choice):
                    parts += [float(label(value) == each) for each in dimension.labels]
                else:
                    parts.append(dimension.unit(value))
            rows.append(parts)
        return np.array(rows)


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """Returns by how much a normal variable exceeds `best` on average, not exceeding counted as 0 (Jones et al. 1998).

    Args:
      mean: float [N].
      deviation: float [N], not negative.
      best: what is to be exceeded.
    """
    deviation = np.maximum(deviation, 1e-12)
    gain = mean - best
    return gain * scipy.stats.norm.cdf(gain / deviation) + deviation * scipy.stats.norm.pdf(gain / deviation)


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns the parameters that a trial has, or is to have when its turn comes."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _results(trials: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, float]]:
    """Returns each finished trial's value, and what stands for it where it has none."""
    done = {trial.number: max(itertools.chain([trial.value] if trial.value is not None else [],
                                              trial.intermediate_values.values()))
            if trial.state is TrialState.PRUNED and trial.intermediate_values else trial.value
            for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}
    values = [value for value in done.values() if value is not None and math.isfinite(value)]
    least = min(values, default=0.0)
    found = []
    for trial in trials:
        if trial.state is TrialState.FAIL and "line" not in trial.user_attrs:
            continue  # killed: says nothing of its point
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL) and trial.params:
            value = done.get(trial.number)
            found.append((trial, least if value is None or not math.isfinite(value) else value))
    return found


def _key(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))
