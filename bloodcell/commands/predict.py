"""`--mode=predict`: class and probabilities of new images, as a CSV file."""

import csv
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from bloodcell.commands import common, segmenting
from bloodcell.config import Config
from bloodcell.data import folder, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.data.decode import decode_file
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError, shown
from bloodcell.evaluate import inference, metrics
from bloodcell.files import write_atomically
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies

LOW_CONFIDENCE = 0.5  # below this largest probability an image is flagged
UNREADABLE = "unreadable"  # the flag of an image that --max_bad_images let pass without figures


def run(config: Config) -> None:
    """Writes `--predictions` for the images of `--data`; labels are neither needed nor read.

    Raises:
      InputError: a checkpoint, images or an output file that cannot be used.
    """
    common.check_output(config.predictions, "--predictions")
    runtime = strategies.resolve(strategy=config.strategy, replicas=config.replicas, precision=config.precision,
                                 jit=config.jit, seed=config.seed)
    model, about = checkpoints.load_model(config.checkpoint, which=config.which)
    names = about["class_names"]
    images = _load(config, about["image_size"], names)
    common.print_header(runtime, config.data, {"unlabelled": images})
    images = segmenting.of_run(images, config, about)
    probabilities = inference.probabilities(model, images, batch_size=config.batch_size,
                                            on_batch=common.counter("predicted", len(images), config.progress))
    text = to_csv(images.files, probabilities, names, [name for name, _ in images.left_out])
    write_atomically(pathlib.Path(config.predictions), text.encode())
    flagged = int((probabilities.max(axis=1) < LOW_CONFIDENCE).sum())
    unreadable = f", and {len(images.left_out):,} {UNREADABLE}" if images.left_out else ""
    print(f"wrote {config.predictions}: {len(images):,} images, {flagged:,} of them flagged{unreadable}", flush=True)


def to_csv(files: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str],
           unreadable: Sequence[str] = ()) -> str:
    """Returns the CSV text.

    Args:
      files: N names.
      probabilities: float [N, C].
      class_names: C names.
      unreadable: names of images that have no probabilities, because they cannot be used.

    Returns:
      A header and N lines of `file,label,name,p0..p(C-1),confidence,novelty,flag`: `label` and `name` are the most
      probable class's, `confidence` its probability, `novelty` the entropy of the probabilities over its maximum
      (0..1), `flag` is `low_confidence` below a confidence of 0.5, else empty. A line for each of `unreadable` follows,
      with `unreadable` for its flag and nothing between.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"p{i}" for i in range(len(class_names))]
    writer.writerow(["file", "label", "name", *columns, "confidence", "novelty", "flag"])
    labels, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    novelty = metrics.normalised_entropy(probabilities)
    for i, file in enumerate(files):
        writer.writerow([file, labels[i], class_names[labels[i]], *(f"{p:.6f}" for p in probabilities[i]),
                         f"{confidence[i]:.6f}", f"{novelty[i]:.6f}",
                         "low_confidence" if confidence[i] < LOW_CONFIDENCE else ""])
    for file in unreadable:
        writer.writerow([file, *[""] * (len(columns) + 4), UNREADABLE])
    return buffer.getvalue()


def _load(config: Config, image_size: int, names: tuple[str, ...]) -> ImageSet:
    """Reads `--data`, which for this command may also be a single image file."""
    path = pathlib.Path(os.path.expanduser(config.data))
    if path.suffix.lower() not in folder.SUFFIXES or os.path.isdir(path):
        return sources.load(config.data, part="test", labelled=False, image_size=image_size, seed=config.seed,
                            class_names=names, max_bad_images=config.max_bad_images, cache=config.cache)
    image = decode_file(path)
    if isinstance(image, str):
        raise InputError(f"--data expected an image file, received {shown(str(path))} ({image}); try another file")
    return ImageSet(to_square(image[None], image_size), None, np.zeros(1, np.int64), names, config.data,
                    (shown(path.name),))
