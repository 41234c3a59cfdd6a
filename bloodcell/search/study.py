"""The study of a search: trials in an SQLite file that several processes share, on one machine or on several.

A trial belongs to the process that holds the lock on its folder; a killed process holds none, so its trial is marked as
failed and its point is tried again. What a trial computes is `objective`'s business; which point is next, `sampling`'s.
"""

import contextlib
import dataclasses
import fcntl
import math
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial, TrialState

from bloodcell.errors import InputError
from bloodcell.files import make_folder
from bloodcell.search import sampling
from bloodcell.search.methods import Method, Pruning
from bloodcell.search.space import Point, Space

FILE = "study.db"
TRIALS = "trials"
MOST_TRIES = 3  # of a point whose trials are killed
_NAME = "search"  # of the study in its file
_LOCK, _TRIAL_LOCK = ".study.lock", ".lock"
_BUSY_SECONDS = 120  # that SQLite waits for another process
_KEPT = ("config.cfg", "metrics.jsonl")  # of a trial that is not the best

# Of a trial in the storage.
_LINE, _SECONDS, _TRIES, _KILLED, _PARTS, _EPOCHS = "line", "seconds", "tries", "killed", "folds", "epochs"


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial, for people.

    Attributes:
      number: from 0.
      state: complete, pruned, failed (`line` says why), killed (its point was tried again), running or waiting.
      value: the objective, 0..1, of a complete one.
      last: the last epoch's validation accuracy of one that was pruned.
      point: what was tried.
      seconds: that it took.
      epochs: that it trained.
      folds: the objective of each fold, where there are several.
      line: why it failed.
    """

    number: int
    state: str
    value: float | None
    last: float | None
    point: Point
    seconds: float
    epochs: int
    folds: tuple[float, ...] = ()
    line: str = ""


class Trial:
    """A trial of this process. `finish`, `prune`, `fail` or `give_back` ends it.

    Attributes:
      number: from 0.
      point: its values.
      folder: its own.
      again: the number of the killed trial whose point it has, or None.
    """

    def __init__(self, study: "Study", trial: optuna.Trial, point: Point, lock: BinaryIO):
        self.number, self.point = trial.number, point
        self.folder = study.folder_of(trial.number)
        self.again: int | None = trial.user_attrs.get(_KILLED)
        self._study, self._trial, self._lock = study, trial, lock
        self._began, self._epochs = time.monotonic(), 0

    def report(self, accuracy: float, epoch: int, *, prunable: bool) -> bool:
        """Notes the validation accuracy after an epoch, from 1; returns whether the trial is to be stopped."""
        self._epochs = epoch
        with _one_line(self._study.folder):
            self._trial.report(accuracy, epoch)
            return prunable and self._trial.should_prune()

    def finish(self, value: float, folds: tuple[float, ...] = ()) -> None:
        """Ends it with its objective."""
        self._end(TrialState.COMPLETE, {_PARTS: list(folds)} if folds else {}, value)

    def prune(self) -> None:
        """Ends it before its end."""
        self._end(TrialState.PRUNED, {})

    def fail(self, line: str) -> None:
        """Ends it without a result: a line says why."""
        self._end(TrialState.FAIL, {_LINE: line})

    def give_back(self) -> None:
        """Ends it as one that was killed: its point will be tried again."""
        with self._study.alone():
            self._study.put_back(self.number)
            self._release()

    def _end(self, state: TrialState, attributes: dict[str, Any], value: float | None = None) -> None:
        with self._study.alone():
            for name, content in {_SECONDS: round(time.monotonic() - self._began, 1), _EPOCHS: self._epochs,
                                  **attributes}.items():
                self._trial.set_user_attr(name, content)
            self._study.tell(self.number, state, value)
            self._release()
            self._study.tidy()

    def _release(self) -> None:
        self._lock.close()
        (self.folder / _TRIAL_LOCK).unlink(missing_ok=True)


class Study:
    """All trials of a search.

    Args:
      folder: of the search; made where it is missing.
      space: what is searched.
      method: how.
      pruning: when a trial is stopped; None: never.
      seed: of the draws.
      identity: JSON values that must be the same for all trials to be comparable, by names for people.

    Raises:
      InputError: the folder cannot be written or holds another study, or a damaged one.
    """

    def __init__(self, folder: pathlib.Path, space: Space, method: Method, pruning: Pruning | None, *, seed: int,
                 identity: dict[str, Any]):
        self.folder, self.space, self.method, self.pruning = folder, space, method, pruning
        self.trials = int(min(space.grid_size(method.points) if method.trials is None else method.trials, space.size))
        make_folder(folder / TRIALS)
        if any(letter in str(folder) for letter in "?#%"):
            raise InputError(f"--workdir expected a folder without ?, # and % for a search, received {folder}; "
                             "try another")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.NopPruner() if pruning is None else optuna.pruners.MedianPruner(
            n_startup_trials=pruning.startup, n_warmup_steps=pruning.warmup)
        with self._locked(), _one_line(folder):
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / FILE).absolute()}", engine_kwargs={
                "connect_args": {"timeout": _BUSY_SECONDS}})
            self._study = optuna.create_study(storage=self._storage, sampler=sampling.Sampler(method, space, seed),
                                              pruner=pruner, study_name=_NAME, direction="maximize",
                                              load_if_exists=True)
        self.check({"--search_space": str(space), **identity})

    def check(self, identity: dict[str, Any]) -> None:
        """Notes what all trials have in common; raises InputError where the study was begun with something else."""
        with self.alone():
            for name, value in identity.items():
                known = self._study.user_attrs
                if name not in known:
                    self._study.set_user_attr(name, value)
                elif known[name] != value:
                    long = any(len(str(each)) > 200 for each in (known[name], value))
                    said = "other ones" if long or not name.startswith("--") else f"{value!r} (was {known[name]!r})"
                    raise InputError(f"--workdir expected the search that {self.folder} holds, received {name}: "
                                     f"{said}; try the flags and data of the first time, or a new --workdir")

    # ---- Trials ------------------------------------------------------------------------------------------------------

    def claim(self) -> Trial | None:
        """Starts the next trial; None where all have been started.

        Trials whose process is gone are put back first.
        """
        with self.alone():
            self._put_back_dead()
            states = [row.state for row in self.rows()]
            if sum(state not in ("killed", "waiting") for state in states) >= self.trials:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                trial = self._study.ask(sampling.distributions(self.space))
            folder = self.folder_of(trial.number)
            make_folder(folder)
            lock = open(folder / _TRIAL_LOCK, "ab")  # noqa: SIM115 (held until the trial ends)
            with contextlib.suppress(OSError):  # a file system without locks; then nothing looks dead either
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Trial(self, trial, sampling.to_point(self.space, trial.params), lock)

    def done(self) -> int:
        """Returns how many trials count: those that ended by themselves."""
        return sum(row.state in ("complete", "pruned", "failed") for row in self.rows())

    def rows(self) -> list[Row]:
        """Returns all trials, in order."""
        with _one_line(self.folder):
            return [self._row(trial) for trial in self._study.get_trials(deepcopy=False)]

    def best(self) -> Row | None:
        """Returns the complete trial of the highest value, the first of several; None where there is none."""
        complete = [row for row in self.rows() if row.state == "complete"]
        return max(complete, key=lambda row: (row.value or 0.0, -row.number), default=None)

    def importances(self) -> dict[str, float]:
        """Returns how much of the values' variance each name explains, by functional ANOVA; they sum to 1.

        Of Hutter et al. 2014, over the complete trials. Empty where these are too few, or all alike, to say.
        """
        values = {row.value for row in self.rows() if row.state == "complete"}
        if len(values) < 2 or sum(row.state == "complete" for row in self.rows()) < 4:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # all values of a name alike
            return {}
        return {name: share for name, share in found.items() if math.isfinite(share)}

    def folder_of(self, number: int) -> pathlib.Path:
        """Returns a trial's folder."""
        return self.folder / TRIALS / f"{number:04d}"

    def _row(self, trial: FrozenTrial) -> Row:
        attributes = trial.user_attrs
        states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.RUNNING: "running",
                  TrialState.WAITING: "waiting", TrialState.FAIL: "failed" if _LINE in attributes else "killed"}
        params = sampling.params_of(trial)
        last = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
        return Row(trial.number, states[trial.state], trial.value if trial.state is TrialState.COMPLETE else None, last,
                   sampling.to_point(self.space, params) if params else {}, attributes.get(_SECONDS, 0.0),
                   attributes.get(_EPOCHS, 0), tuple(attributes.get(_PARTS, ())), attributes.get(_LINE, ""))

    # ---- What a trial does at its end; in `alone` -----------------------------------------------------------------

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        """Ends a trial in the storage."""
        self._study.tell(number, value, state=state)

    def put_back(self, number: int) -> None:
        """Marks a trial as killed and has its point tried again, unless that has killed several processes already."""
        trial = self._study.get_trials(deepcopy=False)[number]
        tries = trial.user_attrs.get(_TRIES, 1)
        if tries >= MOST_TRIES:
            of_study = self._storage.get_study_id_from_name(_NAME)
            self._storage.set_trial_user_attr(
                self._storage.get_trial_id_from_study_id_trial_number(of_study, number), _LINE,
                f"the process was killed in each of {tries} tries")
        self.tell(number, TrialState.FAIL)
        if tries < MOST_TRIES and trial.params:
            self._study.enqueue_trial(trial.params, user_attrs={_TRIES: tries + 1, _KILLED: number})
        _clear(self.folder_of(number), ())

    def tidy(self) -> None:
        """Deletes checkpoints and what else is large of every trial that has ended, but the best one's."""
        best = self.best()
        for row in self.rows():
            if row.state in ("complete", "pruned", "failed") and (best is None or row.number != best.number):
                _clear(self.folder_of(row.number), _KEPT)

    def _put_back_dead(self) -> None:
        for row in self.rows():
            if row.state == "running" and not _held(self.folder_of(row.number) / _TRIAL_LOCK):
                self.put_back(row.number)

    # ---- Locks -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the other processes from starting and ending trials; waits for them."""
        with self._locked(), _one_line(self.folder):
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            file = open(self.folder / _LOCK, "ab")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror or error}; expected a writable folder with "
                             "free space, try another --workdir") from None
        with file:
            with contextlib.suppress(OSError):  # a file system without locks: SQLite's own must do
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _held(path: pathlib.Path) -> bool:
    """Returns whether a living process has a lock on a file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or a file system that cannot say
        return True
    return False


def _clear(folder: pathlib.Path, kept: tuple[str, ...]) -> None:
    """Deletes what a folder holds but the files named; an empty folder too."""
    for path in folder.glob("*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _one_line(folder: pathlib.Path) -> Iterator[None]:
    """Turns the storage's errors into one line."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "schema" not in str(error):
            raise  # no error of the storage
        cause = error.__cause__ or error
        raise InputError(f"{folder / FILE}: expected a study that this Optuna ({optuna.__version__}) can read and "
                         f"write, received: {str(getattr(cause, 'orig', cause)).splitlines()[0]}; try a new --workdir"
                         ) from None
