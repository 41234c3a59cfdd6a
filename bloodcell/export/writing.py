"""Writing an export so that what lies in the folder is whole and has been checked.

A file is written in a folder aside, run there, compared and timed, and only then takes the place of an older one.
"""

import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from bloodcell.errors import InputError
from bloodcell.export import checking
from bloodcell.export.deployed import Deployed
from bloodcell.export.formats import Artefact

_ASIDE = ".new-"


def put(artefact: Artefact, deployed: Deployed, folder: pathlib.Path, images: np.ndarray, expected: np.ndarray
        ) -> dict[str, Any]:
    """Writes one artefact into a folder, where no other process writes.

    Args:
      artefact: which.
      deployed: what it is to hold.
      folder: it exists.
      images: uint8 [N,S,S,3], on which it is compared.
      expected: float32 [N,C], the probabilities of the original for these.

    Returns:
      What there is to say of it, for JSON: `bytes`, `files` (the SHA-256 of each), `max_difference`,
      `mean_difference`, `agreement`, `bound`, and `milliseconds` of a batch of one image and of 64.

    Raises:
      InputError: it cannot be made of this classifier, or is out of its bound, or the disk refuses; what lay in the
        folder is as it was.
    """
    try:
        aside = pathlib.Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))
        try:
            return _checked(artefact, deployed, folder, aside, images=images, expected=expected)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder / artefact.name}: {error.strerror or error}; expected a writable "
                         "folder with free space, try making room or another --workdir") from None


def clear(folder: pathlib.Path) -> None:
    """Deletes what a killed process has left half written."""
    for left in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(left, ignore_errors=True)


def _checked(artefact: Artefact, deployed: Deployed, folder: pathlib.Path, aside: pathlib.Path, *,
             images: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    made = aside / artefact.name
    artefact.write(deployed, made)
    runner = artefact.load(made)
    found = checking.compare(expected, checking.outputs(runner, images))
    if broken := artefact.bound.broken(found):
        raise InputError(f"{artefact.name}: expected a file that says what the checkpoint says, received one whose "
                         f"{broken} on {found.images} images, so it is not kept; try another --format")
    names = [artefact.name]
    if artefact.beside:
        name, make = artefact.beside
        make(made, aside / name)
        names.append(name)
    hashes = {}
    for name in names:
        for file in _files(aside / name):
            hashes[file.relative_to(aside).as_posix()] = _sha256(file)
    about = {"bytes": sum(file.stat().st_size for file in _files(made)), "files": hashes,
             "max_difference": found.difference, "mean_difference": found.mean_difference,
             "agreement": found.agreement,
             "bound": {"max_difference": artefact.bound.difference, "agreement": artefact.bound.agreement},
             "milliseconds": milliseconds(runner, images)}
    for name in names:
        _replace(aside / name, folder / name)
    return about


def milliseconds(runner: checking.Runner, images: np.ndarray) -> dict[str, float]:
    """Returns the median milliseconds of a batch of one image and of 64, which are `images` again and again."""
    many = np.resize(images, (checking.BATCH, *images.shape[1:]))
    return {str(len(batch)): round(checking.milliseconds(runner, batch), 2) for batch in (many[:1], many)}


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _sha256(path: pathlib.Path) -> str:
    """The digest of a file that is on disk when this returns."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _replace(new: pathlib.Path, place: pathlib.Path) -> None:
    """Renames a file or folder; a folder in its place is moved out of the way first, for no rename replaces one."""
    if place.is_dir() and not place.is_symlink():
        os.rename(place, new.with_name(f"{new.name}.old"))
    os.replace(new, place)
