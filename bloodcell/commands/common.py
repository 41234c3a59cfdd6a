"""What several commands share: the first line, the last line, and the measuring between them."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.augment.native import backend
from bloodcell.config import Config
from bloodcell.data.audit import cleaning
from bloodcell.data.dataset import ImageSet, first_left_out
from bloodcell.errors import InputError
from bloodcell.evaluate import bootstrap, metrics
from bloodcell.files import write_atomically
from bloodcell.train import strategy as strategies
from bloodcell.train.strategy import Runtime

LINE_SECONDS = 10.0  # between two lines of progress


def resolve(config: Config, *, training: bool = False) -> Runtime:
    """Returns the devices, precision and compilation that the flags ask for; see `strategy.resolve`."""
    return strategies.resolve(strategy=config.strategy, replicas=config.replicas, precision=config.precision,
                              jit=config.jit, seed=config.seed, training=training)


def with_backend(runtime: Runtime, config: Config) -> tuple[Runtime, str]:
    """Returns the runtime with who augments a training (`--backend`), and why it is not the native op, where so."""
    chosen = backend.choose(config.backend)
    return dataclasses.replace(runtime, backend=chosen.name), chosen.why


def print_header(runtime: Runtime, origin: str, parts: Mapping[str, ImageSet], *, cache: str = "memory",
                 learned: Sequence[str] = (), augmented: bool = False) -> None:
    """Prints the first line: devices, precision, jit mode, data, and where it is.

    Args:
      runtime: the devices.
      origin: `--data`.
      parts: the sets by name.
      cache: `--cache`.
      learned: names of the parts that the training loop feeds, which may lie on the devices.
      augmented: whether to say who augments.
    """
    counts = ", ".join(f"{len(images):,} {part}" for part, images in parts.items())
    where = {part: "streamed" if not isinstance(images.images, np.ndarray) else
             "on each device" if part in learned and runtime.keeps(images, cache) else "in memory"
             for part, images in parts.items()}
    places = {place: [part for part in parts if where[part] == place] for place in dict.fromkeys(where.values())}
    said = next(iter(places)) if len(places) == 1 else ", ".join(
        f"{' and '.join(names)} {place}" for place, names in places.items())
    first = next(iter(parts.values()))
    by = f"augmentation: {runtime.backend} | " if augmented else ""
    print(f"devices: {runtime.devices} | precision: {runtime.precision} | jit: {runtime.jit} | {by}"
          f"data: {origin}: {counts} images, {first.images.shape[1]}x{first.images.shape[2]}, "
          f"{first.num_classes} classes, {said}", flush=True)
    print_left_out(parts)
    print_cleaned(parts)


def print_cleaned(parts: Mapping[str, ImageSet]) -> None:
    """Prints a line where an audit has removed images: how many, and by which rules."""
    cleaned = max((images.cleaned for images in parts.values()), key=len)
    if cleaned:
        print(f"clean: left out {len(cleaned):,} images: {cleaning.summary(cleaned)}; --mode=audit shows them, "
              "--clean=none keeps them", flush=True)


def print_left_out(parts: Mapping[str, ImageSet]) -> None:
    """Prints a line for each source of which images were left out: how many of how many, and the first of them."""
    for (origin, left_out), count in _left_out(parts).items():
        print(f"left out: {len(left_out):,} of {count + len(left_out):,} images of {origin}, which cannot be used: "
              f"{first_left_out(left_out)}", flush=True)


def left_out_entries(parts: Mapping[str, ImageSet]) -> list[dict[str, str]]:
    """Returns `origin`, `file` and `reason` of every image that was left out, for report.json."""
    return [{"origin": origin, "file": name, "reason": reason}
            for origin, left_out in _left_out(parts) for name, reason in left_out]


def _left_out(parts: Mapping[str, ImageSet]) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
    """Each source with what it left out, and its number of images; parts that were split from one source are one."""
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
    for images in parts.values():
        if images.left_out:
            source = images.origin, images.left_out
            counts[source] = counts.get(source, 0) + len(images)
    return counts


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
    """Prints a table of the figures, then one line of JSON, which the file `report` gets too where that is given."""
    print(_figures_table(figures))
    names = [*metrics.PRINTED, *(["corruptions"] if "corruptions" in figures else [])]
    line = json.dumps({name: figures[name] for name in names}, allow_nan=False)
    if report:
        write_atomically(pathlib.Path(report), (line + "\n").encode())
    print(line, flush=True)


def _figures_table(figures: Mapping[str, Any]) -> str:
    """What the line of JSON says first, for people: each figure with its interval, and what has none."""
    per_class, lines = figures["per_class"], []
    for name, label in metrics.HEADLINE.items():
        value, ends = figures[name], figures["intervals"][name]
        said = "" if ends is None else f"   {ends[0]:.4f} to {ends[1]:.4f}"
        lines.append(f"  {label:<25}{'n/a' if value is None else f'{value:.4f}':>6}{said}")
    absent = [name for name, values in per_class.items() if not values["support"]]
    if absent:
        lines.append(f"  no image, so no figures, of {', '.join(absent)}")
    if figures["accuracy"] == 1.0:
        lines.append(f"  {bootstrap.NO_ERROR}")
    count = sum(values["support"] for values in per_class.values())
    return "\n".join([f"figures of {count:,} images, and {bootstrap.LEVEL:.0%} intervals "
                      f"({bootstrap.RESAMPLES:,} bootstrap resamples):", *lines])
