"""Checkpoints: one `.npz` holding every variable and one JSON text, written aside and renamed, read without pickle.

Also the run's `model.json`, from which a network is built again, and the digest of its weights. What the JSON text
means belongs to `loop`.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import keras
import numpy as np

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.files import make_folder, write_atomically

MODEL_FILE = "model.json"
FOLDER = "checkpoints"
WHICH = ("best", "last", "average")
_STEP = "step-{:08d}.npz"
_META = "meta"
_MODEL, _OPTIMIZER, _AVERAGED = "model", "optimizer", "average"


class Checkpoints:
    """The checkpoints of a run: `best` is its result, `average` the best averaged weights, `last` resumes it.

    `last` is the newest of the files `step-00001234.npz`, of which a few are kept for the day the newest is damaged.
    """

    def __init__(self, run_dir: pathlib.Path, *, keep: int = 2):
        """Takes a run's folder, and how many of the newest checkpoints to keep, at least 1."""
        self._folder = run_dir / FOLDER
        self._keep = keep

    def make_folder(self) -> None:
        """Makes the folder where it is missing; raises InputError where it cannot be made or written."""
        make_folder(self._folder)

    def check_folder(self) -> None:
        """Raises InputError where somebody has deleted the run's folder while it was at work."""
        if not self._folder.is_dir():
            raise InputError(f"expected the folder {self._folder} to stay while the run goes on, received a deleted "
                             "one; start again, and leave it alone")

    def path(self, which: str) -> pathlib.Path:
        """Returns where one of `WHICH` lies, or would lie; of several `last` ones the newest."""
        if which != "last":
            return self._folder / f"{which}.npz"
        return next(iter(self.newest()), self._folder / _STEP.format(0))

    def newest(self) -> list[pathlib.Path]:
        """Returns the files from which the run can be resumed, the newest first."""
        found = [path for path in self._folder.glob("step-*.npz") if re.fullmatch(r"step-\d{8,}", path.stem)]
        return sorted(found, key=lambda path: int(path.stem.partition("-")[2]), reverse=True)

    def has(self, which: str) -> bool:
        """Returns whether that checkpoint was ever written."""
        return self.path(which).is_file()

    def size(self) -> int:
        """Returns the bytes of all checkpoints together."""
        return sum(path.stat().st_size for path in self._folder.glob("*.npz"))

    def set_damaged_aside(self, warn: Callable[[str], None]) -> None:
        """Makes the newest intact checkpoint the `last` one: renames damaged newer ones to `*.damaged`.

        What a killed process left half written, under its temporary name, is deleted.

        Args:
          warn: gets a line for each of them.

        Raises:
          InputError: there are checkpoints, and none is intact.
        """
        for litter in self._folder.glob(".*.tmp"):
            litter.unlink(missing_ok=True)
        found = self.newest()
        damaged = list(itertools.takewhile(lambda path: not _intact(path), found))
        if found and damaged == found:
            raise InputError(f"checkpoint: expected an intact one of {', '.join(path.name for path in found)} in "
                             f"{self._folder}, received damaged files, try a new --workdir")
        for path in damaged:
            with contextlib.suppress(FileNotFoundError):  # another worker has renamed it
                path.rename(path.with_name(f"{path.name}.damaged"))
            warn(f"the checkpoint {path} is damaged, and is now called {path.name}.damaged; going on from "
                 f"{found[len(damaged)].name}, the one before")

    def save(self, which: str, meta: dict[str, Any], model: keras.Model,
             optimizer: keras.optimizers.Optimizer | None = None, averaged: Sequence[keras.Variable] = ()) -> None:
        """Writes all variables and `meta` (JSON values); the files before stay whole until the new one is on disk.

        For `last`, `meta["state"]["step"]` names the file, and those beyond the number to keep are deleted.

        Raises:
          InputError: the disk refuses (full, read-only); the checkpoints before are untouched.
        """
        self.write(which, arrays_of(meta, model, optimizer, averaged))

    def write(self, which: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes what `arrays_of` returned; as `save`."""
        path = self.path(which)
        if which == "last":
            path = self._folder / _STEP.format(json.loads(str(arrays[_META]))["state"]["step"])
        write_atomically(path, lambda file: _put_arrays(file, arrays))
        if which == "last":
            for old in self.newest()[self._keep:]:
                old.unlink(missing_ok=True)

    def meta(self, which: str) -> dict[str, Any]:
        """Returns the JSON values saved with a checkpoint; raises InputError where it is missing or damaged."""
        return _read_meta(_read(self.path(which), (_META,)), self.path(which))

    def restore(self, which: str, model: keras.Model,
                optimizer: keras.optimizers.Optimizer | None = None, averaged: Sequence[keras.Variable] = ()
                ) -> dict[str, Any]:
        """Puts a checkpoint's values into the model and, where given, into the built optimizer and the averages.

        All names, shapes and dtypes are checked before the first variable changes.

        Returns:
          The JSON values saved with it.

        Raises:
          InputError: the file is missing, damaged, or of another network or optimizer.
        """
        path = self.path(which)
        arrays = _read(path)
        found = _matched(arrays, _MODEL, model.variables, path)
        if optimizer is not None:
            found += _matched(arrays, _OPTIMIZER, optimizer.variables, path)
        if averaged:
            found += _matched(arrays, _AVERAGED, averaged, path)
        for variable, value in found:
            variable.assign(value)
        return _read_meta(arrays, path)


def arrays_of(meta: dict[str, Any], model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None,
              averaged: Sequence[keras.Variable] = ()) -> dict[str, np.ndarray]:
    """Returns copies of all variables, by group, position and name, and `meta` as JSON text."""
    arrays = _arrays(_MODEL, model.variables)
    if optimizer is not None:
        arrays |= _arrays(_OPTIMIZER, optimizer.variables)
    arrays |= _arrays(_AVERAGED, averaged)
    arrays[_META] = np.array(json.dumps(meta))
    return arrays


def save_model_file(run_dir: pathlib.Path, *, name: str, head: str, image_size: int,
                    class_names: Sequence[str], segment: str = "",
                    weights: Sequence[dict[str, str | None]] = ()) -> None:
    """Writes `model.json`: what `load_model` needs to build the network again, and what people want to know of it.

    Args:
      run_dir: the run's folder; it exists.
      name: the network, as for `models.build`.
      head: its head's spec.
      image_size: side of its images, in pixels.
      class_names: the classes, in the order of the logits.
      segment: how the images were segmented, the flag of that name.
      weights: where the first weights came from: `source` and `sha256` of each backbone's file.
    """
    text = json.dumps({"name": name, "head": head, "image_size": image_size, "num_classes": len(class_names),
                       "class_names": list(class_names), "segment": segment, "weights": list(weights)}, indent=2) + "\n"
    write_atomically(run_dir / MODEL_FILE, text.encode())


def about(checkpoint: str | pathlib.Path) -> dict[str, Any]:
    """Returns what `save_model_file` wrote into a run's folder, `class_names` as a tuple, and `num_classes`.

    Raises:
      InputError: the folder or the file is missing or damaged.
    """
    path = pathlib.Path(checkpoint) / MODEL_FILE
    if not path.is_file():
        raise InputError(f"checkpoint: expected the folder of a run with {MODEL_FILE}, received '{checkpoint}', "
                         "try the --workdir of a training")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(name) for name in known["class_names"])
        checked = {"name": str(known["name"]), "head": str(known["head"]), "image_size": int(known["image_size"])}
    except (ValueError, KeyError, TypeError, OSError):
        raise InputError(f"{path}: expected name, head, image_size and class_names as JSON, received a damaged file, "
                         "try another run's folder") from None
    return {"segment": "", "weights": [], **known, **checked, "class_names": names, "num_classes": len(names)}


def load_model(checkpoint: str, *, which: str = "best") -> tuple[keras.Model, dict[str, Any]]:
    """Builds the network of a run's folder and loads its weights.

    Args:
      checkpoint: the run's folder.
      which: one of `WHICH`.

    Returns:
      The model, and what `about` returns.

    Raises:
      InputError: the folder or one of its files is missing or damaged.
    """
    known = about(checkpoint)
    model = models.build(known["name"], weights="none", head=known["head"], image_size=known["image_size"],
                         num_classes=known["num_classes"], seed=0)
    Checkpoints(pathlib.Path(checkpoint)).restore(which, model)
    return model, known


def weights_sha256(model: keras.Model) -> str:
    """Returns the SHA-256, in hex, of all weights in order: names, shapes and little-endian bytes.

    Seeds of dropout are no weights. Names go in without the numbers Keras appends to make them unique in a process.
    """
    digest = hashlib.sha256()
    for variable in model.weights:
        value = variable.numpy()
        digest.update(f"{_plain(variable.path)} {value.shape} {value.dtype.name}\n".encode())
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _put_arrays(file: BinaryIO, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)


def _plain(path: str) -> str:
    """Drops the counters of automatic names (`dense_3/kernel`): they depend on what else the process has built."""
    return re.sub(r"_\d+(?=/|$)", "", path)


def _key(group: str, index: int, variable: keras.Variable) -> str:
    # The index keeps names unique, because two unnamed layers can share one.
    return f"{group}/{index:04d}/{_plain(variable.path)}"


def _arrays(group: str, variables: Sequence[keras.Variable]) -> dict[str, np.ndarray]:
    # copies: what numpy() gives is the variable's own memory, where that is the host's, and the next step changes it
    return {_key(group, index, variable): np.array(variable.numpy()) for index, variable in enumerate(variables)}


def _intact(path: pathlib.Path) -> bool:
    """Returns whether every byte of an archive is as it was written, by its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_META}.npy" in archive.namelist() and archive.testzip() is None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return False


def _read(path: pathlib.Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"checkpoint: expected the file {path}, received nothing there, try another folder")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            AttributeError, TypeError):  # the last two: a lone .npy is an array, no archive
        raise InputError(f"checkpoint: expected an intact .npz of bloodcell, received a damaged file {path}, "
                         "try the other one in its folder, or a new --workdir") from None


def _read_meta(arrays: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, Any]:
    try:
        meta = json.loads(str(arrays[_META]))
        if isinstance(meta, dict):
            return meta
    except (KeyError, ValueError):
        pass
    raise InputError(f"checkpoint: expected bloodcell's notes in {path}, received a damaged file, try a new --workdir")


def _matched(arrays: dict[str, np.ndarray], group: str, variables: Sequence[keras.Variable],
             path: pathlib.Path) -> list[tuple[keras.Variable, np.ndarray]]:
    expected = {_key(group, index, variable): variable for index, variable in enumerate(variables)}
    stored = {key for key in arrays if key.startswith(f"{group}/")}
    if different := sorted(stored ^ expected.keys()):
        there = "has an unknown" if different[0] in stored else "lacks"
        raise InputError(f"checkpoint: expected the variables of this {group}, received {path}, which {there} "
                         f"'{different[0]}' ({len(different)} names differ), try the flags of its config.cfg")
    for key, variable in expected.items():
        value = arrays[key]
        if value.shape != tuple(variable.shape) or value.dtype.name != variable.dtype:
            raise InputError(f"checkpoint: expected {variable.dtype} {tuple(variable.shape)} for '{key}', received "
                             f"{value.dtype.name} {value.shape} in {path}, try the flags of its config.cfg")
    return [(variable, arrays[key]) for key, variable in expected.items()]
