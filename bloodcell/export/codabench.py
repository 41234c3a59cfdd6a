"""A Codabench submission: a folder, and a zip of it, with `model.py`, `metadata`, and a SavedModel beside them.

A platform that scores code imports `model.py`, makes a `Model` and calls `predict(X)`, which gives a label for each
image. `metadata` names no command, since the platform's own program does the calling.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from bloodcell import __version__
from bloodcell.export import codabench_model, savedmodel
from bloodcell.export.checking import Runner
from bloodcell.export.deployed import Deployed

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of all entries of the zip: equal content, equal file


def write(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the folder `path`."""
    path.mkdir()
    source = pathlib.Path(codabench_model.__file__).read_text(encoding="utf-8")
    (path / "model.py").write_text(source, encoding="utf-8")
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in deployed.class_names)
    (path / "metadata").write_text(
        f"description: classifier of blood-cell images of {deployed.image_size}x{deployed.image_size} pixels, written "
        f"by bloodcell {__version__}\nclasses: [{names}]\n", encoding="utf-8")
    savedmodel.write(deployed, path / codabench_model.FOLDER)


def load(path: pathlib.Path) -> Runner:
    """Returns what the folder's own `model.py` computes, imported as the platform does."""
    spec: Any = importlib.util.spec_from_file_location(f"bloodcell_exported_{path.name}", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    with _no_bytecode():
        spec.loader.exec_module(module)
    runner: Runner = module.Model().probabilities
    return runner


def zipped(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the files of a folder as a zip, without the folder's own name, as the platform wants it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(str(file.relative_to(folder)), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Keeps `__pycache__` out of the folder."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
