"""`--mode=export`: a run, or several together, as files that other programs load, each compared with the original."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell import __version__, files
from bloodcell.commands import classifying, parts, run_images
from bloodcell.commands.classifying import Loaded
from bloodcell.config import Config, formats_of
from bloodcell.data import sources
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.export import checking, writing
from bloodcell.export.deployed import Deployed
from bloodcell.export.formats import FORMATS, Artefact
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies

FOLDER, ABOUT = "export", "export.json"
CHECKED, CALIBRATED = 256, 200  # images that a file is compared on, and that 8-bit ranges are taken from


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
    """uint8 [N,S,S,3] to compare on and to calibrate with, what each set is, and labelled ones for `--temperature`."""

    checked: np.ndarray
    checked_on: str
    calibrating: np.ndarray | None
    calibrated_on: str
    val: ImageSet | None


def run(config: Config) -> None:
    """Writes the files of `--format` into `--workdir`, or into the folder `export` of the first run.

    What a file does with an image is what evaluate and predict do under the same flags: preprocessing, the views of
    `--tta`, the temperature and the mean over runs are inside. Nothing is kept that differs more than its format may.

    Raises:
      InputError: a checkpoint, data or a folder that cannot be used, or a file that could not be made; others may have
        been written.
    """
    names = formats_of(config.format)
    artefacts = [artefact for name in names for artefact in FORMATS[name]]
    for name in names:
        _check_packages(FORMATS[name], name)
    for run_dir in classifying.folders(config.checkpoint):
        _check_segment(run_dir)
    runtime = strategies.resolve(strategy="none", replicas=0, precision="float32", jit="off", seed=config.seed)
    loaded = classifying.load(config, runtime)
    loaded.print_notes()
    images = _images(config, loaded, calibrate=any(artefact.calibrated for artefact in artefacts))
    val = parts.to_fit_on(config, loaded.about) or images.val
    loaded = classifying.calibrated(loaded, val, config, runtime)

    deployed = Deployed(loaded.classifier, loaded.about["image_size"], tuple(loaded.about["class_names"]),
                        images.calibrating)
    folder = pathlib.Path(config.workdir).expanduser() if config.workdir else loaded.runs[0] / FOLDER
    files.make_folder(folder)
    with files.locked(folder):
        writing.clear(folder)
        expected = deployed.probabilities(images.checked)
        print(f"compared with the checkpoint on {len(images.checked):,} images: {images.checked_on}"
              + (f"; calibrated on {images.calibrated_on}" if images.calibrated_on else ""), flush=True)
        common = _common(config, loaded, images)
        entries, failed = {}, []
        for name in names:
            for artefact in FORMATS[name]:
                try:
                    found = writing.put(artefact, deployed, folder, images.checked, expected)
                except InputError as error:
                    failed.append(str(error))
                    continue
                entries[artefact.name] = {"format": name, **found, **common}
                print(f"wrote {folder / artefact.name}", flush=True)
        if entries:
            _write_about(folder, entries)
            original = writing.milliseconds(deployed.probabilities, images.checked)
            print(table(entries, original), flush=True)
    if failed:
        raise InputError("; ".join(failed))


def table(entries: Mapping[str, Mapping[str, Any]], original: Mapping[str, float]) -> str:
    """Returns the files' figures for people.

    Args:
      entries: what `export.json` says of each file.
      original: milliseconds of the checkpoint itself.
    """
    rows: list[tuple[str, ...]] = [("", "MiB", "1 image", f"{checking.BATCH} images", "difference", "labels")]
    rows.append(("the checkpoint", "", *(f"{original[batch]:,.1f} ms" for batch in ("1", str(checking.BATCH))), "", ""))
    for name, entry in entries.items():
        rows.append((name, f"{entry['bytes'] / 2**20:,.1f}",
                     *(f"{entry['milliseconds'][batch]:,.1f} ms" for batch in ("1", str(checking.BATCH))),
                     f"{entry['max_difference']:.1e}", f"{entry['agreement']:.1%}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return "\n".join([*lines, f"times: median of a batch, {checking.threads()} threads; difference: the largest of a "
                              "probability; labels: share of images with the same most probable class"])


def _check_packages(artefacts: Sequence[Artefact], name: str) -> None:
    missing = [package for artefact in artefacts for package in artefact.packages
               if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"--format={name} expected the packages {', '.join(artefacts[0].packages)}, received none "
                         f"named {missing[0]}; try pip install 'bloodcell[{name}]'")


def _check_segment(run_dir: pathlib.Path) -> None:
    if checkpoints.about(run_dir)["segment"]:
        raise InputError(f"--mode=export expected runs without --segment, which no file of these formats can do to an "
                         f"image, received {run_dir}; try --mode=predict, or a training without it")


def _images(config: Config, loaded: Loaded, *, calibrate: bool) -> _Images:
    """Finds real images: those of `--data`, else the run's own, else, to compare on alone, rendered ones."""
    about, run = loaded.about, loaded.runs[0]
    if config.data != "demo":
        whole = _given(config, about)
        first = run_images.balanced(whole, min(CHECKED, max(1, len(whole) // 2)))
        rest = whole.subset(np.setdiff1d(np.arange(len(whole)), first)) if len(whole) > 1 else whole
        calibrating = _pixels(rest, CALIBRATED) if calibrate else None
        return _Images(whole.images[first], config.data, calibrating, config.data if calibrate else "", None)
    try:
        own = run_images.of_run(run, about)
    except InputError as error:
        if calibrate:
            raise InputError("--format=tflite expected the run's training images to calibrate 8-bit arithmetic with, "
                             f"received: {error}; try --data=FILE") from None
        print(f"the run's own images cannot be read ({error}); rendered ones take their place", flush=True)
        own = {}
    val = own.get("val")
    if val is None:
        demo = sources.load("demo", part="val", labelled=False, image_size=about["image_size"], seed=config.seed)
        checked, checked_on = _pixels(demo, CHECKED), "demo (rendered)"
    else:
        checked, checked_on = _pixels(val, CHECKED), f"{val.origin} (validation part of {run})"
    if not calibrate:
        return _Images(checked, checked_on, None, "", val)
    calibrating = _pixels(own["train"], CALIBRATED)
    return _Images(checked, checked_on, calibrating,
                   f"{len(calibrating)} of {own['train'].origin} (training part of {run})", val)


def _given(config: Config, about: Mapping[str, Any]) -> ImageSet:
    """Reads `--data`, whose labels help where there are such, and are not needed."""
    def load(labelled: bool) -> ImageSet:
        return sources.load(config.data, part="train", labelled=labelled, image_size=about["image_size"],
                            seed=config.seed, class_names=about["class_names"] if labelled else None,
                            max_bad_images=config.max_bad_images, cache=config.cache)
    try:
        return load(labelled=True)
    except InputError:
        return load(labelled=False)


def _pixels(images: ImageSet, count: int) -> np.ndarray:
    return np.asarray(images.images[run_images.balanced(images, count)])


def _common(config: Config, loaded: Loaded, images: _Images) -> dict[str, Any]:
    """What `export.json` says of every file of this export alike."""
    classifier, size, classes = loaded.classifier, loaded.about["image_size"], loaded.classifier.class_count
    return {
        "input": f"uint8 [B,{size},{size},3], red, green and blue grey levels 0..255",
        "output": f"float32 [B,{classes}], probabilities in the order of class_names",
        "class_names": list(loaded.about["class_names"]),
        "runs": [{"folder": str(run), "which": config.which, "weights_sha256": digest,
                  "temperature": member.temperature, "weight": float(weight)}
                 for run, digest, member, weight in zip(loaded.runs, loaded.weights_sha256, classifier.members,
                                                        classifier.weights, strict=True)],
        "tta": config.tta, "views": [view.name for view in classifier.views],
        "compared_on": {"images": len(images.checked), "origin": images.checked_on},
        "calibrated_on": images.calibrated_on, "threads": checking.threads(),
        "versions": {"bloodcell": __version__, "tensorflow": tf.__version__, "keras": keras.__version__,
                     "numpy": np.__version__},
    }


def _write_about(folder: pathlib.Path, entries: Mapping[str, Any]) -> None:
    """Writes `export.json`; what it said of other files that are still there stays."""
    path = folder / ABOUT
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: entry for name, entry in before.items() if name not in entries and (folder / name).exists()}
    except (OSError, ValueError, AttributeError):  # none yet, or somebody else's: what was just written counts
        kept = {}
    text = json.dumps({**kept, **entries}, indent=2, allow_nan=False) + "\n"
    files.write_atomically(path, text.encode())
