"""What the reports of `train` and `evaluate` say beside the figures, gathered; and when they are written.

Layout and words belong to `evaluate.report`; figures to `measuring`; explanations to `explaining`.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import resource
import shlex
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell import __version__
from bloodcell.commands import common, corrupting, explaining
from bloodcell.commands.classifying import Loaded, folders
from bloodcell.commands.measuring import Measured
from bloodcell.config import Config, in_report, to_flagfile
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import novelty, report
from bloodcell.evaluate.classifier import Classifier
from bloodcell.evaluate.explanations import Explanations
from bloodcell.evaluate.gallery import Classified
from bloodcell.train import checkpoints
from bloodcell.train.strategy import Runtime


def evaluation_folder(config: Config) -> pathlib.Path:
    """Returns where an evaluation's report goes: `--workdir`, or the folder of the first `--checkpoint`."""
    return pathlib.Path(config.workdir).expanduser() if config.workdir else folders(config.checkpoint)[0]


def check(config: Config) -> None:
    """Raises InputError where an evaluation's report cannot be written, before the work is done."""
    folder = evaluation_folder(config)
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):  # one that is not there yet is made at the end
        flag = "--workdir" if config.workdir else "--checkpoint"
        raise InputError(f"{flag} expected a folder that gets {report.EVALUATION}.html, received {folder}, which "
                         "cannot be written; try --workdir=FOLDER")


def evaluation(config: Config, runtime: Runtime, loaded: Loaded, measured: Measured, *, images: ImageSet, part: str,
               explanations: Explanations | None = None) -> pathlib.Path:
    """Writes evaluation.html and evaluation.json; the run's own report is left as it is.

    Args:
      config: the flags.
      runtime: the devices.
      loaded: what was measured.
      measured: the result; its figures may have `corruptions`.
      images: on which.
      part: the name of the part that they are.
      explanations: of the model, where there are any.

    Returns:
      The page's path.

    Raises:
      InputError: the disk refuses.
    """
    given = changed_flags(config)
    names = [checkpoints.about(str(run))["name"] for run in loaded.runs]
    content = {
        **measured.figures, "options": measured.options, "part": part,
        "novelty": flagged(loaded, measured, np.asarray(images.labels)),
        "recipe": " + ".join(run.resolve().name for run in loaded.runs), "model": described(names),
        "config": dataclasses.asdict(config), "flags": given, "temperature": temperatures(loaded),
        "trained_by": {str(run): trained_by(run) for run in loaded.runs},
        "data": {"origin": config.data, "parts": {part: summary(images)},
                 "left_out": common.left_out_entries({part: images}),
                 "cleaned": [{"file": name, "reason": reason} for name, reason in images.cleaned]},
        "devices": runtime.devices, "precision": runtime.precision, "jit": runtime.jit,
        "images_per_second": len(images) / max(float(measured.outputs.seconds.sum()), 1e-9),
        "peak_memory_mib": peak_memory_mib(), "weights_sha256": ", ".join(loaded.weights_sha256),
        "versions": versions()}
    folder = evaluation_folder(config)
    again = shlex.join(["python", "main.py", *(f"--{name}={value}" for name, value in given.items())])
    report.write_evaluation(folder, content, again=again, classified=classified(images, measured),
                            corrupted=corrupted(loaded, measured), explanations=explanations)
    return folder / f"{report.EVALUATION}.html"


def explained(classifier: Classifier, images: ImageSet, measured: Measured, config: Config, *,
              train: ImageSet | None = None) -> Explanations | None:
    """Returns what the reports explain, by `--explain`: heat maps, a map of features, mistakes, training images near.

    Args:
      classifier: what was measured.
      images: on which.
      measured: the result.
      config: the flags.
      train: what the network learned from, where that is at hand; else `--mode=explain` finds nearest training images.
    """
    kinds = tuple(kind for kind in in_report(config.explain) if kind != "neighbours" or train is not None)
    if not kinds:
        return None
    searched = min(len(train), explaining.MOST_SEARCHED) if train is not None else 0
    return explaining.explanations(classifier, images, measured.outputs, kinds=kinds,
                                   train=explaining.Training(train) if train is not None else None,
                                   batch_size=config.batch_size, seed=config.seed,
                                   on_batch=common.counter("searched among", searched, config.progress))


def flagged(loaded: Loaded, measured: Measured, labels: np.ndarray) -> dict[str, Any] | None:
    """Returns how many of the measured images are flagged as novel, and what a single run's score was fitted on.

    None where no run can tell. The score of several runs is the mean of those that can, as in predict.
    """
    judges = loaded.judges()
    score = novelty.mean_score(judges, measured.outputs.features)
    if score is None:
        return None
    novel = score >= novelty.FLAGGED
    wrong = measured.probabilities.argmax(axis=1) != labels
    of_wrong = {"flagged_mistakes": float(novel[wrong].mean())} if wrong.any() else {}
    return {"flagged_here": float(novel.mean()), **of_wrong,
            **(judges[0].facts() if len(judges) == 1 and judges[0] else {})}


def classified(images: ImageSet, measured: Measured) -> Classified:
    """Returns the images behind the figures, for the page's galleries."""
    return Classified(images.images, images.files, np.asarray(images.labels), measured.probabilities)


def corrupted(loaded: Loaded, measured: Measured) -> bytes | None:
    """Returns the picture of cells under corruption that `corrupting.measure` has just drawn, where it did."""
    if "corruptions" not in measured.figures:
        return None
    return (loaded.runs[0] / corrupting.CELLS).read_bytes()


def temperatures(loaded: Loaded) -> str:
    """Returns what each network's logits are divided by, for people; "" where none are."""
    values = [member.temperature for member in loaded.classifier.members]
    return "" if set(values) == {1.0} else ", ".join(f"{value:.3f}" for value in values)


def described(names: list[str]) -> str:
    """Returns the networks' names, each once, and how many they are."""
    said = ", ".join(dict.fromkeys(names))
    return said if len(names) == 1 else f"the mean of {len(names)} networks ({said})"


def changed_flags(config: Config) -> dict[str, str]:
    """Returns the flags that say what is computed and are not at their default, by name."""
    defaults = set(to_flagfile(Config()).splitlines())
    lines = [line for line in to_flagfile(config).splitlines() if line not in defaults]
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def trained_by(run: pathlib.Path) -> str:
    """Returns the flags that trained a run; "" where its folder does not say."""
    try:
        return (run / "config.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def summary(images: ImageSet) -> dict[str, Any]:
    """Returns what a report says of a part: JSON values."""
    counts = np.bincount(np.asarray(images.labels), minlength=images.num_classes)
    return {"images": len(images), "origin": images.origin, "fingerprint": images.fingerprint(),
            "per_class": dict(zip(images.class_names, counts.tolist(), strict=True))}


def peak_memory_mib() -> int:
    """Returns the most memory that this process has taken so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10  # bytes on macOS, KiB on Linux


def versions() -> dict[str, str]:
    """Returns the versions of what computes."""
    return {"bloodcell": __version__, "python": platform.python_version(), "tensorflow": tf.__version__,
            "keras": keras.__version__, "numpy": np.__version__,
            "scikit-learn": importlib.metadata.version("scikit-learn")}
