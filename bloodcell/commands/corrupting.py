"""`--corruptions`: a model measured under each corruption and severity; a table, and two pictures.

One corrupted batch is in memory at a time. What a corruption is, and what is said of it, belongs to
`evaluate.corruptions`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.commands import classifying, common
from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import corruptions, medmnist_c, metrics, plots
from bloodcell.evaluate.classifier import OnHost
from bloodcell.evaluate.corruption_sheet import MOST_CLASSES, corruption_sheet_png
from bloodcell.files import write_atomically
from bloodcell.train.strategy import Runtime

HEAT_MAP, CELLS = "corruptions.png", "corruption_cells.png"  # in the run's folder
MEAN = "mean"  # beside the corruptions' names


def check(config: Config) -> None:
    """Raises InputError where the pictures cannot be written, before the work is done."""
    folder = classifying.folders(config.checkpoint)[0]
    if config.corruptions and folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--corruptions expected a folder --checkpoint that gets pictures, received {folder}, which "
                         "cannot be written; try a copy of it")


def measure(loaded: classifying.Loaded, images: ImageSet, config: Config, runtime: Runtime, *,
            clean: Mapping[str, Any]) -> dict[str, Any]:
    """Measures a classifier under `--corruptions`, prints a table, and writes the pictures.

    Args:
      loaded: of `--checkpoint`; the pictures go into its first run's folder.
      images: labelled, of the model's size, and not segmented: it is the photograph that is corrupted.
      config: the flags.
      runtime: the devices.
      clean: figures of the images as they are.

    Returns:
      `corruptions.figures` by name, and where there are corruptions with severities `corruptions.mean` as "mean".

    Raises:
      InputError: the folder cannot be written.
    """
    if images.labels is None:
        raise ValueError("expected labelled images")
    names, jit = corruptions.parse(config.corruptions), runtime.jit != "off"
    known = {name: corruptions.CORRUPTIONS[name] for name in names}
    total = len(images) * sum(len(each.severities) for each in known.values())
    progress, before = common.counter("corrupted and evaluated", total, config.progress), 0
    chosen = _examples(images.labels)
    cells: dict[str, list[np.ndarray]] = {name: [] for name in known}
    result: dict[str, Any] = {}
    for name, entry in known.items():
        measured = []
        for severity in range(1, len(entry.severities) + 1):
            kept = _Keeping(corruptions.on_host(name, severity, jit=jit), images.ids[chosen])
            if config.batch_norm == "data":
                classifying.reestimate(loaded.classifier, images, config, kept)
            outputs = loaded.classifier.outputs(images, batch_size=config.batch_size, on_host=kept,
                                                on_batch=_from(before, progress), timed=False)
            probabilities = loaded.classifier.probabilities(outputs.logits)
            before += len(images)
            measured.append(metrics.compute(images.labels, probabilities, images.class_names))
            cells[name].append(kept.images())
        result[name] = corruptions.figures(measured, clean)
    mean = corruptions.mean(result)
    print("\n".join(_table(result, clean, mean)), flush=True)
    pictures = {CELLS: corruption_sheet_png(
        np.asarray(images.images[chosen]), {name: np.stack(each) for name, each in cells.items()},
        class_names=[images.class_names[label] for label in images.labels[chosen]],
        parameters={name: each.parameters for name, each in known.items()},
        severities={name: each.severities for name, each in known.items()},
        line=f"{images.origin}: the first image of each class. Lengths are for a side of {medmnist_c.SIDE} pixels, and "
             "shrink or grow with it.")}
    if mean is not None:
        errors = {name: _by_severity(each) or [each["balanced_error"]] for name, each in result.items()}
        pictures[HEAT_MAP] = plots.robustness_png(errors, 1 - clean["balanced_accuracy"], mean["balanced_error"])
    for name, png in pictures.items():
        write_atomically(loaded.runs[0] / name, png)
        print(f"wrote {loaded.runs[0] / name}", flush=True)
    return {**result, **({MEAN: mean} if mean is not None else {})}


class _Keeping:
    """A corruption that keeps what became of some images, by their ids, for the picture of them."""

    def __init__(self, corrupt: OnHost, ids: np.ndarray) -> None:
        self._corrupt, self._kept = corrupt, dict.fromkeys(ids.tolist(), np.empty(0, np.uint8))

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        result = self._corrupt(images, ids)
        for row, which in enumerate(ids.tolist()):
            if which in self._kept:
                self._kept[which] = result[row].copy()
        return result

    def images(self) -> np.ndarray:
        """Returns uint8 [ids, H, W, 3], once all images have been through."""
        return np.stack(list(self._kept.values()))


def _examples(labels: np.ndarray) -> np.ndarray:
    """Returns the position of the first image of each class."""
    return np.array([np.flatnonzero(labels == label)[0] for label in np.unique(labels)[:MOST_CLASSES]])


def _from(before: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _by_severity(figures: Mapping[str, Any]) -> list[float]:
    return [each["balanced_error"] for each in figures.get("severities", [])]


def _table(result: Mapping[str, Any], clean: Mapping[str, Any], mean: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields the lines of the table: balanced errors, their difference to clean, and what AlexNet has."""
    alexnet = {name: corruptions.CORRUPTIONS[name].alexnet for name in result}
    most = max(len(_by_severity(each)) for each in result.values())
    yield "balanced error under corruption, by severity:" if most else "balanced error under corruption:"
    severities = "".join(f"{number:>8}" for number in range(1, most + 1))
    yield (f"  {'':<16}{severities}{'mean' if most else 'error':>9}{'to clean':>10}"
           f"{'' if mean is None else 'AlexNet':>9}").rstrip()
    yield _row("clean", most, mean=1 - clean["balanced_accuracy"])
    for name, each in result.items():
        yield _row(name, most, _by_severity(each), mean=each["balanced_error"],
                   relative=each["relative_balanced_error"], alexnet=alexnet[name])
    if mean is not None:
        published = float(np.mean([alexnet[name] for name in mean["of"]]))
        yield _row(f"mean of {len(mean['of'])}", most, mean=mean["balanced_error"],
                   relative=mean["relative_balanced_error"], alexnet=published)
        yield (f"  AlexNet: as published, {medmnist_c.SIDE}x{medmnist_c.SIDE}, test part of BloodMNIST; clean "
               f"{medmnist_c.ALEXNET_CLEAN:.4f}")


def _row(name: str, most: int, by_severity: Sequence[float] = (), *, mean: float, relative: float | None = None,
         alexnet: float | None = None) -> str:
    severities = "".join(f"{value:>8.4f}" for value in by_severity).ljust(8 * most)
    return (f"  {name:<16}{severities}{mean:>9.4f}{'' if relative is None else f'{relative:+.4f}':>10}"
            f"{'' if alexnet is None else f'{alexnet:.4f}':>9}").rstrip()
