"""The images that a run learned from and was validated on, found again by its `config.cfg` and `split.json`.

Nothing is audited or divided again: the folder says which images it was.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bloodcell import config
from bloodcell.data import division, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError


def of_run(run: pathlib.Path, about: Mapping[str, Any]) -> dict[str, ImageSet]:
    """Returns the run's "train" and "val", labelled and of its size.

    Args:
      run: the run's folder.
      about: the content of its `model.json`.

    Raises:
      InputError: no flags or division there, or images that are gone or others than those of the run.
    """
    if not (run / "config.cfg").is_file():
        raise InputError(f"{run}: expected config.cfg, the flags of the run, received nothing there")
    flags = config.parse(["main.py", f"--flagfile={run / 'config.cfg'}"])
    if flags is None:  # the file asks for --help
        raise InputError(f"{run / 'config.cfg'}: expected the flags of a run, received --help")
    parts = division.read(run).parts
    whole = _load(flags, flags.data, "train", about)
    loaded = {"train": _chosen(whole, parts["train"], run)} if "train" in parts else {}
    if "val" in parts:
        loaded["val"] = _chosen(whole, parts["val"], run) if parts["val"].by_split else \
            _load(flags, flags.val_data or flags.data, "val", about)
    return loaded


def balanced(images: ImageSet, count: int, *, seed: int = 0) -> np.ndarray:
    """Returns the index, [at most `count`], of images drawn evenly from all classes; without labels, from all images.

    A class that has fewer than its share gives all it has, and the others give more.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    if images.labels is None:
        return np.sort(order[:count])
    labels = images.labels[order]
    turn = np.zeros(len(order), np.int64)  # how many of its class are before it
    for label in np.unique(labels):
        own = labels == label
        turn[own] = np.arange(own.sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def _load(flags: config.Config, source: str, part: str, about: Mapping[str, Any]) -> ImageSet:
    return sources.load(source, part=part, image_size=about["image_size"], seed=flags.seed,
                        class_names=about["class_names"], max_bad_images=flags.max_bad_images, cache=flags.cache)


def _chosen(images: ImageSet, part: division.Part, run: pathlib.Path) -> ImageSet:
    found = division.images_of(part, images)
    if found is None:
        raise InputError(f"{images.origin}: expected the images that {run} was trained on, received others")
    return found
