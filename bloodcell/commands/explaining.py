"""Explanations of a trained model: gathered as arrays and texts, and given to files, pages and TensorBoard.

    found = explaining.explanations(loaded.classifier, images, outputs, kinds=("gradcam", "tsne", "mistakes"))
    drawn = explaining.pictures(found)
    explaining.write(folder, found, drawn)           # the pictures and explanations.json
    explaining.to_board(board, found, drawn, step)   # the pictures, and the Projector's files

`outputs` are `Classifier.outputs` of these images; `train` is `Training`, the text that says why there is none, or None
where nobody asks for neighbours. What is computed belongs to `evaluate.gradcam` and `evaluate.embedding`, drawing to
`evaluate.explanation_sheets`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from bloodcell import config as flags
from bloodcell.config import OF_MODEL
from bloodcell.data import division, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import embedding, explanation_sheets, gradcam
from bloodcell.evaluate.classifier import Classifier, Outputs
from bloodcell.evaluate.explanations import Cells, Explanations, FeatureMap, Neighbours
from bloodcell.files import write_atomically
from bloodcell.train import checkpoints
from bloodcell.train.tensorboard import Board

FILE = "explanations.json"
EACH = 3  # cells of a class, right ones and wrong ones
MOST_CLASSES = 16  # with cells of their own in a picture
MOST_MISTAKES = 24
MOST_MAPPED = 2000  # points of the map
MOST_SEARCHED = 20_000  # training images among which neighbours are looked for
NEAREST = 5  # training images beside a cell
THUMBNAIL = 48  # pixels: side of the Projector's pictures, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Images that a network learned from.

    Attributes:
      images: labelled, of the network's size.
      features: of `Classifier.outputs` for them; None: to be made.
    """

    images: ImageSet
    features: tuple[np.ndarray, ...] | None = None


def explanations(classifier: Classifier, images: ImageSet, outputs: Outputs, *, kinds: Sequence[str] = OF_MODEL,
                 train: Training | str | None = None, batch_size: int = 32, seed: int = 0,
                 on_batch: Callable[[int], None] | None = None) -> Explanations:
    """Gathers explanations of a classifier; the same arguments give the same ones.

    Args:
      classifier: what is explained.
      images: labelled ones.
      outputs: of the classifier for these images.
      kinds: some of `config.OF_MODEL`.
      train: what the networks learned from, for "neighbours"; a text: why that cannot be had.
      batch_size: images a step.
      seed: of the map.
      on_batch: called with the number of training images whose features are made.
    """
    if images.labels is None:
        raise ValueError("expected labelled images")
    labels, probabilities = images.labels, classifier.probabilities(outputs.logits)
    predicted, vectors = probabilities.argmax(axis=1), embedding.joined(outputs.features, classifier.weights)
    mistakes = embedding.mistakes(probabilities, labels)
    learned = train if "neighbours" in kinds and isinstance(train, Training) else None
    rows = {"gradcam": _of_classes(labels, predicted, mistakes, EACH) if "gradcam" in kinds else _NONE,
            "mistakes": mistakes[:MOST_MISTAKES] if "mistakes" in kinds else _NONE,
            "neighbours": _of_classes(labels, predicted, mistakes, 1) if learned else _NONE}

    every = np.unique(np.concatenate(list(rows.values())))  # a cell may be in several pictures
    cells = _cells(classifier, images, every, probabilities[every], batch_size=batch_size)
    picked = {kind: cells.take(np.searchsorted(every, own)) for kind, own in rows.items()}
    return Explanations(
        images.origin, images.class_names, np.bincount(labels, minlength=images.num_classes),
        np.bincount(labels[mistakes], minlength=images.num_classes),
        gradcam=picked["gradcam"] if "gradcam" in kinds else None,
        tsne=_feature_map(images, probabilities, vectors, seed=seed) if "tsne" in kinds else None,
        mistakes=picked["mistakes"] if "mistakes" in kinds else None,
        neighbours=_neighbours(classifier, picked["neighbours"], vectors[rows["neighbours"]], learned,
                               batch_size=batch_size, on_batch=on_batch) if learned else None,
        coarseness=gradcam.coarseness(classifier),
        remarks=(f"no nearest training images: {train}",) if "neighbours" in kinds and isinstance(train, str) else ())


def training_of(run_dir: pathlib.Path, *, data: str = "", cache: str = "auto") -> Training | str:
    """Reads again what a run learned from, or says in a line why that cannot be.

    The run's folder says where the images were (`config.cfg`) and which of them it learned from (`split.json`).

    Args:
      run_dir: the run's folder.
      data: where its `--data` lies now; empty: where it lay.
      cache: `--cache`.
    """
    try:
        about, part = checkpoints.about(run_dir), division.read(run_dir).parts.get("train")
        recipe = run_dir / "config.cfg"
        if part is None or not recipe.is_file():
            return f"{run_dir} does not say what it was trained on"
        trained = flags.parse(["", f"--flagfile={recipe}"])
        if trained is None:
            return f"{recipe} is no run's"
        images = sources.load(data or trained.data, part="train", image_size=about["image_size"], seed=trained.seed,
                              class_names=about["class_names"], max_bad_images=trained.max_bad_images, cache=cache)
    except InputError as error:
        return f"the run's training data cannot be read ({' '.join(str(error).split())})"
    found = division.images_of(part, images)
    if found is None:
        return (f"{data or trained.data} does not hold the images that {run_dir} was trained on; "
                "try --train_data=WHERE_THEY_ARE")
    return Training(found)


def write(folder: pathlib.Path, found: Explanations, drawn: Mapping[str, bytes]) -> list[pathlib.Path]:
    """Writes `pictures` and `explanations.json`; returns what was written.

    Raises:
      InputError: the folder cannot be written.
    """
    files = {f"{kind}.png": png for kind, png in drawn.items()}
    files[FILE] = (json.dumps(found.content(), allow_nan=False) + "\n").encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def pictures(found: Explanations) -> dict[str, bytes]:
    """Returns a PNG file for each kind that there is."""
    draw: dict[str, Callable[[Explanations], bytes]] = {
        "gradcam": explanation_sheets.gradcam_png, "tsne": explanation_sheets.tsne_png,
        "mistakes": explanation_sheets.mistakes_png, "neighbours": explanation_sheets.neighbours_png}
    return {kind: each(found) for kind, each in draw.items() if getattr(found, kind) is not None}


def to_board(board: Board, found: Explanations, drawn: Mapping[str, bytes], step: int) -> None:
    """Writes `pictures` to TensorBoard's Images, and the map's features to its Projector."""
    for kind, png in drawn.items():
        board.png(f"explain/{kind}", png, step)
    if found.tsne is not None:
        names, right = found.class_names, found.tsne.labels == found.tsne.predicted
        board.projector("features", found.tsne.components, images=found.tsne.thumbnails, columns={
            "label": [names[label] for label in found.tsne.labels],
            "predicted": [names[label] for label in found.tsne.predicted],
            "result": ["right" if each else "wrong" for each in right],
            "confidence": [f"{each:.3f}" for each in found.tsne.confidence],
            "file": list(found.tsne.files)})


_NONE = np.zeros(0, np.int64)


def _of_classes(labels: np.ndarray, predicted: np.ndarray, mistakes: np.ndarray, each: int) -> np.ndarray:
    """Of each class the first cells that are right, and the most confident of those that are wrong; by class."""
    found = [_NONE]
    for label in np.unique(labels)[:MOST_CLASSES]:
        found.append(np.flatnonzero((labels == label) & (predicted == label))[:each])
        found.append(mistakes[labels[mistakes] == label][:each])
    return np.concatenate(found)


def _cells(classifier: Classifier, images: ImageSet, rows: np.ndarray, probabilities: np.ndarray, *,
           batch_size: int) -> Cells:
    few = images.subset(rows)
    pixels = few.images[:] if len(few) else np.empty((0, *few.images.shape[1:]), np.uint8)
    labels, predicted = np.asarray(few.labels), probabilities.argmax(axis=1)
    maps = gradcam.GradCam(classifier, batch_size=batch_size)
    heat = maps.maps(pixels, few.ids, predicted)
    heat_of_label, wrong = heat.copy(), np.flatnonzero(predicted != labels)
    heat_of_label[wrong] = maps.maps(pixels[wrong], few.ids[wrong], labels[wrong])
    return Cells(rows, few.ids, few.files, _shown(classifier, pixels, few.ids), heat, heat_of_label, labels, predicted,
                 probabilities)


def _shown(classifier: Classifier, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What the first network is shown, to whole grey levels."""
    if not len(images):
        return images
    pixels = classifier.pixels(classifier.members[0], images, tf.constant(ids))
    return np.clip(np.rint(pixels.numpy()), 0, 255).astype(np.uint8)


def _feature_map(images: ImageSet, probabilities: np.ndarray, vectors: np.ndarray, *, seed: int) -> FeatureMap:
    labels = np.asarray(images.labels)
    rows = embedding.spread(labels, MOST_MAPPED)
    components = embedding.principal(vectors[rows], seed=seed)
    return FeatureMap(rows, images.ids[rows], tuple(images.files[row] for row in rows),
                      embedding.tsne(components, seed=seed), components, _thumbnails(images, rows), labels[rows],
                      probabilities[rows].argmax(axis=1), probabilities[rows].max(axis=1))


def _thumbnails(images: ImageSet, rows: np.ndarray) -> np.ndarray:
    side = min(THUMBNAIL, *images.images.shape[1:3])
    small = np.empty((len(rows), side, side, 3), np.uint8)
    for start in range(0, len(rows), 256):
        for place, image in enumerate(images.images[rows[start:start + 256]], start):
            small[place] = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return small


def _neighbours(classifier: Classifier, cells: Cells, vectors: np.ndarray, train: Training, *,
                batch_size: int, on_batch: Callable[[int], None] | None) -> Neighbours:
    images, features = train.images, train.features
    if images.labels is None:
        raise ValueError("expected labelled training images")
    chosen = embedding.spread(images.labels, MOST_SEARCHED)
    plain = classifier.seeing(None, views=())  # training images as they are
    if features is None:
        features = plain.outputs(images.subset(chosen), batch_size=batch_size, on_batch=on_batch, timed=False).features
    else:
        features = tuple(each[chosen] for each in features)
    place, similarity = embedding.nearest(vectors, embedding.joined(features, classifier.weights), NEAREST)
    near = chosen[place]
    shown = _shown(plain, np.asarray(images.images[near.ravel()]), images.ids[near.ravel()])
    return Neighbours(cells, shown.reshape(*near.shape, *shown.shape[1:]), images.ids[near],
                      tuple(tuple(images.files[row] for row in own) for own in near), images.labels[near], similarity,
                      len(chosen), images.origin)
