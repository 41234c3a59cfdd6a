"""What a training learns from, and what a run is measured on: `--data`, `--val_data`, `--test_data` and `--split`.

How a source is read and how a set is divided belong to `data`; here is their order.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bloodcell.commands import audit
from bloodcell.config import SPLIT_OF_RUN, Config
from bloodcell.data import division, sources, split
from bloodcell.data.dataset import ImageSet
from bloodcell.data.division import Division
from bloodcell.errors import InputError

DEFAULT_SPLIT = "fractions(0.83, 0.13, 0.04)"


def load(config: Config) -> dict[str, ImageSet]:
    """Returns "train" and "val", and "test" where there is one, all of the model's size and with train's classes.

    `--clean` leaves images of `--data` out before anything else. `--split` divides `--data`; else `--val_data` and
    `--test_data` are read; else the parts that the source itself has; what is then missing is split off.

    Raises:
      InputError: a source that cannot be used.
    """
    return _load(config)[0]


def load_divided(config: Config) -> tuple[dict[str, ImageSet], Division]:
    """Returns what `load` does, and how the parts came about."""
    parts, spec_text, made = _load(config)
    return parts, Division.of(parts, spec_text, config.seed, made)


def of_split(config: Config, spec_text: str, *, image_size: int, names: tuple[str, ...] | None = None
             ) -> dict[str, ImageSet]:
    """Returns the parts into which a split divides `--data`, cleaned; arguments as for `sources.load`."""
    images, pictures = audit.clean(_read(config, config.data, "train", image_size, names), config)
    return _divided(images, pictures, spec_text, config.seed)


def to_measure(config: Config, run_dir: pathlib.Path, about: Mapping[str, Any]) -> tuple[str, ImageSet]:
    """Returns the labelled images on which a run is measured, and the name of the part that they are.

    All of `--data` is used; of a source with parts of its own the test part, and with `--split` the last part of that
    split; `--split=run` is the division that the run's folder holds.

    Args:
      config: the flags.
      run_dir: the run's folder.
      about: the content of its `model.json`.

    Raises:
      InputError: data that cannot be used, that has other classes, or no labels.
    """
    size, names = about["image_size"], about["class_names"]
    if config.split and config.split != SPLIT_OF_RUN:  # cleaned and divided as a training with these flags does
        divided = of_split(config, config.split, image_size=size, names=names)
        part = "test" if "test" in divided else "val"
        return part, divided[part]
    part = "train" if config.split else "test"
    images = _read(config, config.data, part, size, names)
    if config.split:
        part, images = division.held_out(run_dir, images, config.data)
    if images.labels is None:
        raise InputError(f"--data expected labelled images, received {config.data} without labels; try --mode=predict")
    return part, images


def to_fit_on(config: Config, about: Mapping[str, Any]) -> ImageSet | None:
    """Returns `--val_data` as a run of `about` takes it, or None where there is none."""
    return _read(config, config.val_data, "val", about["image_size"], about["class_names"]) if config.val_data else None


def _load(config: Config) -> tuple[dict[str, ImageSet], str, tuple[str, ...]]:
    """Returns the parts, the split's spec ("" without one) and which parts the split made."""
    size = config.image_size
    if config.split:
        parts = of_split(config, config.split, image_size=size)
        return parts, config.split, tuple(parts)
    if config.val_data:
        parts = {"train": audit.clean(_read(config, config.data, "train", size), config)[0]}
        names = parts["train"].class_names
        parts["val"] = _read(config, config.val_data, "val", size, names)
        if config.test_data:
            parts["test"] = _read(config, config.test_data, "test", size, names)
        return parts, "", ()
    parts = sources.load_parts(config.data, image_size=size, seed=config.seed, max_bad_images=config.max_bad_images,
                               cache=config.cache)
    parts["train"], pictures = audit.clean(parts["train"], config)
    if "val" in parts:
        return parts, "", ()
    spec_text = "fractions(0.87, 0.13)" if "test" in parts else DEFAULT_SPLIT
    made = _divided(parts["train"], pictures, spec_text, config.seed)
    return {**parts, **made}, spec_text, tuple(made)


def _read(config: Config, source: str, part: str, image_size: int, names: tuple[str, ...] | None = None) -> ImageSet:
    return sources.load(source, part=part, image_size=image_size, seed=config.seed, class_names=names,
                        max_bad_images=config.max_bad_images, cache=config.cache)


def _divided(images: ImageSet, pictures: np.ndarray | None, spec_text: str, seed: int) -> dict[str, ImageSet]:
    divided = split.split(images, spec_text, seed, pictures=pictures)
    parts = {"train": divided.train, "val": divided.val}
    return parts if divided.test is None else {**parts, "test": divided.test}
