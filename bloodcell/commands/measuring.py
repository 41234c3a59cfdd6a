"""A classifier measured on labelled images: its figures, and what each option brings and costs.

The figures themselves belong to `evaluate.metrics` and `evaluate.bootstrap`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.commands import classifying, common
from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.evaluate import bootstrap, classifier, metrics
from bloodcell.evaluate.classifier import Classifier, Outputs

_OF_METRICS = ("accuracy", "balanced_accuracy", "ece")


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What came of it.

    Attributes:
      figures: of `metrics.compute`, with their `intervals`.
      probabilities: float32 [N,C].
      outputs: what they were made of; features among it.
      options: JSON values: a row for each step from the networks as they were trained to all that the flags ask for,
        with `name`, `accuracy`, `balanced_accuracy`, `ece`, `nll` and `images_per_second`; where there is no more than
        one step, none.
    """

    figures: dict[str, Any]
    probabilities: np.ndarray
    outputs: Outputs
    options: list[dict[str, Any]]


def measure(found: Classifier, images: ImageSet, config: Config) -> Measured:
    """Measures a classifier on labelled images; with `--batch_norm=data` their statistics become its networks'."""
    if images.labels is None:
        raise ValueError("expected labelled images")
    before = None
    if config.batch_norm == "data":
        before = found.seeing(found.transform, views=()).outputs(
            images, batch_size=config.batch_size, on_batch=common.counter("evaluated", len(images), config.progress))
        classifying.reestimate(found, images, config)
        print(f"batch normalisation: statistics of the {len(images):,} images that are measured (--batch_norm=data): "
              "an image's figures depend on the others", flush=True)
    outputs = found.outputs(images, batch_size=config.batch_size,
                            on_batch=common.counter("evaluated", len(images), config.progress))
    probabilities = found.probabilities(outputs.logits)
    figures = metrics.compute(images.labels, probabilities, images.class_names)
    steps = list(_steps(found, outputs, before))
    options = [_row(name, images, each, seconds) for name, each, seconds in steps] if len(steps) > 1 else []
    return Measured({**figures, "intervals": bootstrap.intervals(images.labels, probabilities)}, probabilities, outputs,
                    options)


def _steps(found: Classifier, outputs: Outputs, before: Outputs | None) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yields name, probabilities and seconds of each step; each has what those before it have."""
    members = found.members
    plain, even = [1.0] * len(members), [1.0]
    first = before or outputs
    for m, member in enumerate(members):
        name = f"{member.name}, as trained" if len(members) > 1 else "as trained"
        yield name, classifier.combined(first.logits[m:m + 1, :1], even, even), first.seconds[m, 0]
    one = outputs.seconds[:, 0].sum()
    if len(members) > 1:
        yield (f"mean of the {len(members)} networks", classifier.combined(first.logits[:, :1], plain, found.weights),
               first.seconds[:, 0].sum())
    if before is not None:
        yield "+ batch norm of these images", classifier.combined(outputs.logits[:, :1], plain, found.weights), one
    temperatures = [member.temperature for member in members]
    if temperatures != plain:
        said = ", ".join(f"{value:.2f}" for value in temperatures)
        yield f"+ temperature {said}", classifier.combined(outputs.logits[:, :1], temperatures, found.weights), one
    if len(found.views) > 1:
        yield f"+ mean of {len(found.views)} views", found.probabilities(outputs.logits), outputs.seconds.sum()


def _row(name: str, images: ImageSet, probabilities: np.ndarray, seconds: float) -> dict[str, Any]:
    figures = metrics.compute(np.asarray(images.labels), probabilities, images.class_names)
    return {"name": name, **{key: figures[key] for key in _OF_METRICS},
            "nll": metrics.negative_log_likelihood(np.asarray(images.labels), probabilities),
            "images_per_second": round(len(images) / seconds, 1)}


def options_table(options: Sequence[Mapping[str, Any]]) -> str:
    """Returns lines for people: what each option brings, and what it costs."""
    width = max(len(row["name"]) for row in options)
    lines = [f"  {'':<{width}}  accuracy  balanced     ECE     NLL  images/s"]
    lines += [f"  {row['name']:<{width}}  {row['accuracy']:8.4f}  {row['balanced_accuracy']:8.4f}  {row['ece']:6.4f}  "
              f"{row['nll']:6.4f}  {row['images_per_second']:8,.0f}" for row in options]
    return "\n".join(["what each option brings, and what it costs:", *lines])
