"""How a search goes about it: `--search="tpe(trials=20)"`, and `--search_pruning="median(startup=5)"`.

What the methods do is in `sampling`; a pruning's rule is Optuna's.
"""

import dataclasses
from typing import Any

from bloodcell import spec
from bloodcell.errors import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method or pruning: what it does, for people, and what its spec takes."""

    summary: str
    params: tuple[spec.Param, ...]


_TRIALS = spec.Param("trials", int, 20, 1, 100_000, "trials in all")
_STARTUP = spec.Param("startup", int, 5, 1, 1000, "random trials before it")
_FOLDS = spec.Param("folds", int, None, 2, 100, "folds of --data that each trial is trained on", optional=True)

METHODS: dict[str, Entry] = {
    "random": Entry("Points drawn evenly from the space.", (_TRIALS, _FOLDS)),
    "grid": Entry("All combinations: of every choice, every whole number (or points of them) and points of each range.",
                  (spec.Param("points", int, 5, 2, 1000, "values of a range"), _FOLDS)),
    "tpe": Entry("Tree-structured Parzen estimators (Bergstra et al. 2011): points like the better ones so far, unlike "
                 "the others.", (_TRIALS, _STARTUP, _FOLDS)),
    "gp": Entry("A Gaussian process of the results so far; the point of the largest expected improvement (Jones et al. "
                "1998). For few, costly trials.", (_TRIALS, _STARTUP, _FOLDS)),
}
PRUNINGS: dict[str, Entry] = {
    "median": Entry("Stops a trial whose best validation accuracy so far is below the median of the others' at that "
                    "epoch.",
                    (spec.Param("startup", int, 5, 1, 1000, "trials that run to their ends before"),
                     spec.Param("warmup", int, 1, 0, 10_000, "epochs that every trial gets"))),
    "none": Entry("Every trial runs to its end.", ()),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A checked `--search`.

    Attributes:
      name: of `METHODS`.
      folds: on which every trial is trained; None: on the run's training part.
      trials: in all; None: as many as the grid has points.
      startup: random trials before the method begins.
      points: values of a range, on a grid.
    """

    name: str
    folds: int | None
    trials: int | None = None
    startup: int = 0
    points: int = 2


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A checked `--search_pruning`; `startup` trials and `warmup` epochs are never stopped. None of `none`."""

    startup: int
    warmup: int


def parse(text: str) -> Method:
    """Reads `--search`; raises InputError."""
    name, values = _bound(text, METHODS, "--search")
    return Method(name, **values)


def parse_pruning(text: str) -> Pruning | None:
    """Reads `--search_pruning`; None where nothing is pruned; raises InputError."""
    name, values = _bound(text, PRUNINGS, "--search_pruning")
    return None if name == "none" else Pruning(**values)


def _bound(text: str, entries: dict[str, Entry], what: str) -> tuple[str, dict[str, Any]]:
    if not text.strip():
        raise InputError(f"{what} expected one of {', '.join(entries)}, received nothing; "
                         f"try {what}={next(iter(entries))}")
    term = spec.only_term(spec.parse(text, what=what), what=what)
    return term.name, spec.bind(term, spec.lookup(term, entries, what=what).params, what=what)
