"""The classifier that `--checkpoint`, `--which`, `--tta`, `--temperature` and `--ensemble_weights` make."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell.commands import common, segmenting
from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.evaluate import batch_norm, classifier, novelty, temperature, tta
from bloodcell.evaluate.classifier import Classifier, Member, OnHost
from bloodcell.evaluate.novelty import Novelty
from bloodcell.train import checkpoints
from bloodcell.train.strategy import Runtime


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """One run, or several side by side.

    Attributes:
      classifier: of all runs.
      runs: their folders.
      about: the content of the first one's `model.json`.
      weights_sha256: of each network's weights.
      notes: lines on what is done beside, for after the first line.
    """

    classifier: Classifier
    runs: tuple[pathlib.Path, ...]
    about: dict[str, Any]
    weights_sha256: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def judges(self) -> list[Novelty | None]:
        """Reads each network's score of novelty; None for one that has none. Raises InputError where it is damaged."""
        return [novelty.load(run, digest) for run, digest in zip(self.runs, self.weights_sha256, strict=True)]

    def print_notes(self) -> None:
        """Prints `notes`."""
        for line in self.notes:
            print(line, flush=True)


def load(config: Config, runtime: Runtime) -> Loaded:
    """Reads the runs of `--checkpoint`: one folder, or several with commas between them.

    Raises:
      InputError: a run that cannot be read, or runs that do not go together.
    """
    runs = folders(config.checkpoint)
    members: list[Member] = []
    abouts: list[dict[str, Any]] = []
    digests: list[str] = []
    notes: list[str] = []
    for run in runs:
        model, about = checkpoints.load_model(str(run), which=config.which)
        if abouts and any(about[name] != abouts[0][name] for name in ("class_names", "image_size")):
            raise InputError(f"--checkpoint expected runs of the same classes and image size, received {runs[0]} and "
                             f"{run}, which differ in these; try them one by one")
        digest = checkpoints.weights_sha256(model)
        segment = segmenting.of_run(run, about, config)
        if segment:
            notes.append(f"segment: every image, as in training: {about['segment']}")
        members.append(Member(str(run), model, _stored(run, digest, config, notes), segment))
        abouts.append(about)
        digests.append(digest)
    given = classifier.parse_weights(config.ensemble_weights)
    if not isinstance(given, str) and len(given) != len(runs):
        raise InputError(f"--ensemble_weights expected a number for each of {len(runs)} runs, received {len(given)}; "
                         "try 'val', or leaving it out")
    return Loaded(Classifier(members, views=tta.parse(config.tta, jit=runtime.jit != "off"),
                             weights=None if isinstance(given, str) else given,
                             transform=_policy(config.val_augment, config, runtime)),
                  runs, abouts[0], tuple(digests), tuple(notes))


def of_training(model: keras.Model, which: str, val: ImageSet, config: Config, runtime: Runtime) -> Loaded:
    """Returns the classifier of a training that has ended, and keeps its temperature in the run's folder.

    Its images come segmented already.

    Args:
      model: with the weights of that name.
      which: "best" or "average".
      val: the validation part, on which the temperature is fitted, unless `--temperature` says what it is.
      config: the run's flags.
      runtime: the devices.
    """
    run, digest = config.run_dir, checkpoints.weights_sha256(model)
    choice = temperature.parse(config.temperature)
    found = Classifier([Member(str(run), model, choice.value or 1.0)],
                       views=tta.parse(config.tta, jit=runtime.jit != "off"),
                       transform=_policy(config.val_augment, config, runtime))
    if choice.value is None:
        fitted = fit_temperature(found, val, config, runtime, digest)
        temperature.save(run, which, fitted)
        found = found.at([fitted.temperature])
    return Loaded(found, (run,), checkpoints.about(run), (digest,))


def folders(checkpoint: str) -> tuple[pathlib.Path, ...]:
    """Returns the folders that `--checkpoint` names, each once or more; a name with a comma that exists is one."""
    whole = pathlib.Path(checkpoint).expanduser()
    if whole.is_dir() or "," not in checkpoint:
        return (whole,)
    return tuple(pathlib.Path(part.strip()).expanduser() for part in checkpoint.split(",") if part.strip())


def calibrated(loaded: Loaded, val: ImageSet | None, config: Config, runtime: Runtime) -> Loaded:
    """Fits what validation images decide, where it is asked for: each network's temperature, then their weights.

    A fitted temperature goes into the folder of its run.

    Args:
      loaded: the runs.
      val: labelled images of their size; None: there are none.
      config: the flags.
      runtime: the devices.

    Raises:
      InputError: a fit without images, or a folder that cannot be written.
    """
    choice, by_validation = temperature.parse(config.temperature), config.ensemble_weights == "val"
    if not (choice.fit or by_validation):
        return loaded
    if val is None:
        asked = f"--temperature={config.temperature}" if choice.fit else "--ensemble_weights=val"
        raise InputError(f"{asked} expected labelled images to fit on, received none; try --val_data=FILE")
    found, fitted = loaded.classifier, []
    if choice.fit:
        for which, (run, digest) in enumerate(zip(loaded.runs, loaded.weights_sha256, strict=True)):
            fitted.append(fit_temperature(found.of_member(which), val, config, runtime, digest))
            temperature.save(run, config.which, fitted[-1])
            print(_said(fitted[-1], run), flush=True)
        found = found.at([each.temperature for each in fitted])
    if by_validation and len(loaded.runs) > 1:
        outputs = found.outputs(val, batch_size=config.batch_size,
                                on_batch=common.counter("weighed by", len(val), config.progress))
        each = np.stack([found.of_member(m).probabilities(outputs.logits[m:m + 1]) for m in range(len(found.members))])
        found = found.at([member.temperature for member in found.members],
                         classifier.fitted_weights(each, np.asarray(val.labels)))
        print(f"weights of the networks by {len(val):,} validation images: "
              + ", ".join(f"{run} {weight:.3f}" for run, weight in zip(loaded.runs, found.weights, strict=True)),
              flush=True)
    return dataclasses.replace(loaded, classifier=found)


def fit_temperature(one: Classifier, val: ImageSet, config: Config, runtime: Runtime, digest: str
                    ) -> temperature.Fitted:
    """Returns the temperature of a classifier of one network on labelled images, under the policy of `--temperature`.

    Args:
      one: a classifier with one member.
      val: labelled images.
      config: the flags.
      runtime: the devices.
      digest: the SHA-256 of its weights.
    """
    policy = temperature.parse(config.temperature).augment or config.val_augment
    outputs = one.seeing(_policy(policy, config, runtime)).outputs(
        val, batch_size=config.batch_size, on_batch=common.counter("calibrated on", len(val), config.progress))
    value, before, after = temperature.fit(outputs.logits[0], np.asarray(val.labels))
    return temperature.Fitted(value, before, after, len(val), val.origin, policy, config.tta, digest)


def reestimate(found: Classifier, images: ImageSet, config: Config, on_host: OnHost | None = None) -> None:
    """Does what `--batch_norm=data` asks for: the networks' statistics become those of `images`.

    Args:
      found: its networks change.
      images: those that are measured; labels are not looked at.
      config: the flags.
      on_host: as of `Classifier.outputs`.
    """
    for member in found.members:
        batch_norm.reestimate(member.model, _shown(found, member, images, config, on_host))


def _shown(found: Classifier, member: Member, images: ImageSet, config: Config, on_host: OnHost | None
           ) -> Iterator[tf.Tensor]:
    left = len(images)
    for batch in Pipeline(images, batch_size=min(config.batch_size, left)).in_order():
        pixels, ids = batch["image"][:left], batch["id"][:left]
        yield found.pixels(member, on_host(pixels.numpy(), ids.numpy()) if on_host else pixels, ids)
        left -= len(pixels)


def _stored(run: pathlib.Path, digest: str, config: Config, notes: list[str]) -> float:
    """The temperature by the flag or of the run's folder, else 1; of that of the folder `notes` gets a line."""
    choice = temperature.parse(config.temperature)
    if choice.value is not None:
        return choice.value
    stored = None if choice.fit else temperature.load(run, config.which, digest)
    if stored is None:
        return 1.0
    notes.append(_said(stored, run))
    if stored.tta != config.tta:
        notes.append(f"temperature: fitted with --tta={stored.tta!r}, used with {config.tta!r}; --temperature=fit fits "
                     "it anew")
    return stored.temperature


def _said(fitted: temperature.Fitted, run: pathlib.Path) -> str:
    policy = f" under {fitted.augment}" if fitted.augment else ""
    return (f"temperature of {run}: {fitted.temperature:.3f}, by {fitted.images:,} images of {fitted.origin}{policy} "
            f"(NLL {fitted.nll_before:.4f} -> {fitted.nll_after:.4f})")


def _policy(text: str, config: Config, runtime: Runtime) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
    return classifier.policy_transform(text, seed=config.seed, jit=runtime.jit != "off")
