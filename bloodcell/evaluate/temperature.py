"""Temperature scaling: one number by which logits are divided, so that confidence says how often the model is right.

Source: Guo et al. 2017, "On calibration of modern neural networks". The most probable class stays the same where there
is one view; with several, nearly always.

What belongs here: the fit, and the file that keeps it beside the weights that it was fitted for.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from bloodcell import spec
from bloodcell.errors import InputError, did_you_mean
from bloodcell.files import write_atomically

FILE = "temperature.json"  # in a run's folder
LOW, HIGH = 0.05, 20.0
_WHAT = "--temperature"
_GRID = 41  # values looked at before the search; with several views there may be more than one valley
_FIT = (spec.Param("augment", str, ""),)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `--temperature` asks for.

    Attributes:
      fit: whether to fit one.
      augment: the policy of the images on which to fit; empty: that of `--val_augment`.
      value: the temperature itself; None: what the run's folder holds, or 1.
    """

    fit: bool = False
    augment: str = ""
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A temperature, and what it was fitted on.

    Attributes:
      temperature: above 1: the model was too sure.
      nll_before, nll_after: mean negative log-likelihood in nats, at temperature 1 and at this one.
      images: how many.
      origin: whose images.
      augment: their policy.
      tta: the views that were averaged.
      weights_sha256: of the weights.
    """

    temperature: float
    nll_before: float
    nll_after: float
    images: int
    origin: str
    augment: str
    tta: str
    weights_sha256: str


def parse(text: str) -> Choice:
    """Reads `--temperature`: "auto", "none", "fit", "fit(augment='POLICY')" or a number.

    Raises:
      InputError: anything else.
    """
    words = ("auto", "none", "fit")
    try:
        value = float(text)
    except ValueError:
        value = None
    if value is not None:
        if not LOW <= value <= HIGH:
            raise InputError(f"{_WHAT} expected {LOW:g}..{HIGH:g}, received {text}; try fit")
        return Choice(value=value)
    term = spec.only_term(spec.parse(text, what=_WHAT), what=_WHAT)
    if term.name not in words:
        raise InputError(f"{_WHAT}: unknown name '{term.name}'; {did_you_mean(term.name, words)}")
    bound = spec.bind(term, _FIT if term.name == "fit" else (), what=_WHAT)
    return {"auto": Choice(), "none": Choice(value=1.0)}.get(term.name) or Choice(fit=True, augment=bound["augment"])


def fit(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Returns the temperature of the least negative log-likelihood, and that at temperature 1 and at this one.

    Args:
      logits: float [V,N,C], of V views, whose probabilities are averaged.
      labels: int [N].
    """
    logits = np.asarray(logits, np.float64)

    def loss(log_temperature: float) -> float:
        logs = scipy.special.log_softmax(logits / math.exp(log_temperature), axis=2)
        own = logs[:, np.arange(len(labels)), labels]
        return float(-(scipy.special.logsumexp(own, axis=0) - math.log(len(logits))).mean())

    grid = np.linspace(math.log(LOW), math.log(HIGH), _GRID)
    best = int(np.argmin([loss(value) for value in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = scipy.optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x), loss(0.0), float(found.fun)


def save(run_dir: pathlib.Path, which: str, fitted: Fitted) -> None:
    """Writes the temperature of `which` weights into a run's folder, beside those of its other weights.

    Raises:
      InputError: the disk refuses.
    """
    every = {**_read(run_dir), which: dataclasses.asdict(fitted)}
    write_atomically(run_dir / FILE, (json.dumps(every, indent=2, allow_nan=False) + "\n").encode())


def load(run_dir: pathlib.Path, which: str, weights_sha256: str) -> Fitted | None:
    """Returns what `save` wrote for these weights; None where there is nothing, or for other weights.

    Raises:
      InputError: a damaged file.
    """
    stored = _read(run_dir).get(which)
    if stored is None:
        return None
    try:
        fitted = Fitted(**stored)
        whole = LOW <= float(fitted.temperature) <= HIGH
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise _damaged(run_dir)
    return fitted if fitted.weights_sha256 == weights_sha256 else None


def _read(run_dir: pathlib.Path) -> dict[str, Any]:
    path = run_dir / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise _damaged(run_dir) from None
    if not isinstance(stored, dict):
        raise _damaged(run_dir)
    return stored


def _damaged(run_dir: pathlib.Path) -> InputError:
    return InputError(f"{run_dir / FILE}: expected the temperatures of a run, received a damaged file; try deleting "
                      f"it, and {_WHAT}=fit")
