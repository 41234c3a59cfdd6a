"""What several commands share: the first line, the last line, and the measuring between them."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import inference, metrics
from bloodcell.files import write_atomically
from bloodcell.train.strategy import Runtime

LINE_SECONDS = 10.0  # between two lines of progress


def print_header(runtime: Runtime, origin: str, parts: Mapping[str, ImageSet]) -> None:
    """Prints the first line: devices, precision, jit mode and data."""
    counts = ", ".join(f"{len(images):,} {part}" for part, images in parts.items())
    first = next(iter(parts.values()))
    print(f"devices: {runtime.devices} | precision: {runtime.precision} | jit: {runtime.jit} | "
          f"data: {origin}: {counts} images, {first.images.shape[1]}x{first.images.shape[2]}, "
          f"{first.num_classes} classes", flush=True)


def measure(model: keras.Model, images: ImageSet, config: Config, runtime: Runtime) -> dict[str, Any]:
    """Returns the figures (`metrics.compute`) of a model on labelled images, under `--val_augment` where given."""
    transform = inference.policy_transform(config.val_augment, seed=config.seed, jit=runtime.jit != "off")
    probabilities = inference.probabilities(model, images, batch_size=config.batch_size, transform=transform,
                                            on_batch=counter("evaluated", len(images), config.progress))
    if images.labels is None:
        raise ValueError("expected labelled images")
    return metrics.compute(images.labels, probabilities, images.class_names)


def counter(verb: str, total: int, progress: str) -> Callable[[int], None]:
    """Returns a callback that prints "verb done/total images, speed" every ten seconds, or never with "none"."""
    began = last = time.monotonic()

    def count(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if progress != "none" and now - last >= LINE_SECONDS:
            last = now
            print(f"{verb} {done:,}/{total:,} images, {done / (now - began):,.0f} images/s", flush=True)

    return count


def check_output(path: str, flag: str) -> None:
    """Raises InputError where a file cannot be written, before hours of work are spent on what goes into it."""
    if path and (pathlib.Path(path).is_dir() or not pathlib.Path(path).absolute().parent.is_dir()):
        raise InputError(f"{flag} expected a file in a folder that exists, received {path}; "
                         "try making the folder first")


def print_result(figures: Mapping[str, Any], report: str) -> None:
    """Prints the figures as one line of JSON, and writes the same to the file `report` where that is given."""
    line = json.dumps({name: figures[name] for name in metrics.PRINTED}, allow_nan=False)
    if report:
        write_atomically(pathlib.Path(report), (line + "\n").encode())
    print(line, flush=True)
