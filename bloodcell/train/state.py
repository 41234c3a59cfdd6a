"""Where a training stands, and which run it is: what a checkpoint says beside its variables.

Here is also who may go on from it: the same flags, data, code and libraries, field by field. Reading and writing the
file belong to `checkpoints`, what is done with the state to `loop`.
"""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

# Flags that may change between a run and its continuation: where things are written and shown, which devices compute
# (they change rounding alone), and the sources, whose content the fingerprints check. Precision is compared resolved.
FREE_FLAGS = frozenset({"mode", "workdir", "report", "predictions", "checkpoint", "recipe", "progress", "profile_steps",
                        "dry_run", "strategy", "replicas", "jit", "backend", "precision", "weights", "data", "val_data",
                        "test_data", "explain", "list", "which", "max_bad_images", "cache", "clean", "audit_rules",
                        "audit_keep", "audit_write", "audit_features", "contaminants", "corruptions",
                        "checkpoint_seconds", "keep", "allow_changed", "deterministic", "tta", "temperature",
                        "ensemble_weights", "batch_norm", "format", "topk", "train_data",
                        "search", "search_space", "search_pruning", "search_workers"})
# What else is compared, and what people call it.
_FIELDS = {"precision": "the precision", "classes": "the classes", "train": "the training images",
           "val": "the validation images", "code": "bloodcell's code", "tensorflow": "TensorFlow", "keras": "Keras",
           "numpy": "NumPy"}
ALLOWABLE = (*(field.name for field in dataclasses.fields(Config) if field.name not in FREE_FLAGS),
             *(name for name in _FIELDS if name != "classes"), "all")
_CODE = ("augment", "data", "models", "train", "spec.py")  # what decides which weights come out
_SUFFIXES = (".py", ".h", ".cc", ".cu")


@dataclasses.dataclass
class State:
    """Where the training stands, beside the variables: saved with every checkpoint.

    Attributes:
      stage: index of the stage, from 0.
      stage_epoch: finished epochs of that stage.
      stage_over: the stage has finished, by its epochs or by early stopping.
      epoch: finished epochs of the run; the epoch being trained has the number `epoch + 1`.
      step: finished steps of the run.
      epoch_step: finished steps of the epoch being trained.
      sums: of those steps, what `step.train_step` counts, added up in their order.
      seconds: wall time spent on that epoch by all processes so far.
      best: epoch, val_accuracy and val_loss of the best epoch of the run.
      best_average: the same of the averaged weights, where there are some.
      stage_best: the same of this stage; early stopping counts from it.
      waited: epochs since `stage_best`.
      plateau: the plateau rule's counters.
    """

    stage: int = 0
    stage_epoch: int = 0
    stage_over: bool = False
    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 5)
    seconds: float = 0.0
    best: dict[str, float] | None = None
    best_average: dict[str, float] | None = None
    stage_best: dict[str, float] | None = None
    waited: int = 0
    plateau: dict[str, float] | None = None

    def next_stage(self, index: int) -> None:
        """Moves to the beginning of a stage."""
        self.stage, self.stage_epoch, self.stage_over = index, 0, False
        self.stage_best, self.waited, self.plateau = None, 0, None
        self._next_epoch()

    def finish_epoch(self) -> None:
        """Counts the epoch being trained as finished."""
        self.epoch, self.stage_epoch = self.epoch + 1, self.stage_epoch + 1
        self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch_step, self.sums, self.seconds = 0, [0.0] * 5, 0.0

    def remember(self, record: dict[str, Any], averaged: dict[str, float] | None) -> tuple[bool, bool]:
        """Compares a finished epoch with the best ones.

        Args:
          record: `epoch`, `val_accuracy` and `val_loss`, of the epoch that has just been finished.
          averaged: `val_accuracy` and `val_loss` of the averaged weights, where there are some.

        Returns:
          Whether the weights are the best of the run, and whether the averaged ones are.
        """
        here = {name: record[name] for name in ("epoch", "val_accuracy", "val_loss")}
        improved = _better(here, self.best)
        self.best = here if improved else self.best
        average_improved = averaged is not None and _better(averaged, self.best_average)
        if averaged is not None and average_improved:
            self.best_average = {"epoch": record["epoch"], **averaged}
        if _better(here, self.stage_best):
            self.stage_best, self.waited = here, 0
        else:
            self.waited += 1
        return improved, average_improved


def _better(here: dict[str, float], best: dict[str, float] | None) -> bool:
    # A NaN validation loss never wins a tie, and the first epoch always wins.
    return best is None or (here["val_accuracy"], -here["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def identity(config: Config, precision: str, train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """Returns what makes a run that run, as JSON values: flags, data, code and libraries."""
    flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_FLAGS}
    return {"config": flags, "precision": precision, "classes": list(train.class_names), "train": train.fingerprint(),
            "val": val.fingerprint(), "code": code_sha256(), "tensorflow": tf.__version__,
            "keras": keras.__version__, "numpy": np.__version__}


def facts(own: dict[str, Any]) -> dict[str, Any]:
    """Returns what an `identity` says, by names for people."""
    return {_FIELDS.get(name, name): value for name, value in _compared(own).items()}


def same_run(meta: dict[str, Any], own: dict[str, Any], run_dir: pathlib.Path, allowed: str) -> tuple[State, list[str]]:
    """Returns the state that a checkpoint holds, where it belongs to this very run.

    Args:
      meta: the checkpoint's notes: an `identity` and its `state`.
      own: the identity of the run that would go on.
      run_dir: where the checkpoint lies, for the message.
      allowed: the flag `--allow_changed`.

    Returns:
      The state; and, of the fields that differ, all of which are allowed to, what they were and are.

    Raises:
      InputError: something differs that may not; it names every such field, what it was, and what it is.
    """
    before, now = _compared(meta), _compared(own)
    differing = [name for name in now if before.get(name) != now[name]]
    permitted = {name.strip() for name in allowed.split(",")}
    refused = [name for name in differing
               if name == "classes" or not permitted & {name.removeprefix("--"), "all"}]
    if refused:
        way = "the first flags, data and code again, or a new --workdir"
        if "classes" not in refused:
            way += ", or --allow_changed=" + ",".join(name.removeprefix("--") for name in refused)
        raise InputError(f"workdir: expected the run that {run_dir} holds, received another: "
                         f"{', '.join(_said(name, before.get(name), now[name]) for name in refused)}; try {way}")
    state = State(**meta["state"])
    return state, [_said(name, before.get(name), now[name]) for name in differing]


def _compared(notes: dict[str, Any]) -> dict[str, Any]:
    """Returns what an identity says, flags under `--name`; None for what an older one does not say."""
    return {**{f"--{name}": value for name, value in notes.get("config", {}).items()},
            **{name: notes.get(name) for name in _FIELDS}}


def _said(name: str, before: Any, now: Any) -> str:
    if name.startswith("--"):
        return f"{name} (was {before!r}, is {now!r})"
    if name in ("train", "val", "code", "classes"):  # digests and lists say nothing to people
        return f"{_FIELDS[name]} {'differs' if name == 'code' else 'differ'}"
    return f"{_FIELDS[name]} (was {before}, is {now})"


@functools.cache
def code_sha256() -> str:
    """Returns the SHA-256, in hex, of the sources that decide which weights a training ends with."""
    package = pathlib.Path(__file__).resolve().parents[1]
    files = [file for part in _CODE for file in ([package / part] if part.endswith(".py")
                                                 else sorted((package / part).rglob("*"))) if file.suffix in _SUFFIXES]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()
