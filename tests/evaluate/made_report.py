"""A report's figures and images, made by hand: each image has a colour of its own, and names are hostile."""

import functools

import numpy as np

from bloodcell.evaluate import bootstrap, metrics
from bloodcell.evaluate.explanations import Cells, Explanations, FeatureMap, Neighbours
from bloodcell.evaluate.gallery import Classified

NAMES = ("immature_granulocyte", "</script><img src=x onerror=alert(1)>", "platelet", "basophil & \"co\"")
#         as:  0   1   2   3
CONFUSION = ((70, 6, 0, 1),
             (2, 40, 0, 0),
             (0, 0, 65, 0),
             (0, 3, 0, 0))
PAIRS = [(true, predicted) for true, row in enumerate(CONFUSION) for predicted, count in enumerate(row)
         for _ in range(count)]
COUNT = len(PAIRS)
SIDE = 24


@functools.cache
def labels() -> np.ndarray:
    return np.array([true for true, _ in PAIRS])


@functools.cache
def probabilities() -> np.ndarray:
    """Rows whose largest value is between 0.5 and 0.99, another one for each image."""
    rows = np.zeros((COUNT, len(NAMES)))
    sure = np.linspace(0.5, 0.99, COUNT)[np.random.default_rng(0).permutation(COUNT)]
    for row, (_, predicted) in enumerate(PAIRS):
        rows[row] = (1 - sure[row]) / (len(NAMES) - 1)
        rows[row, predicted] = sure[row]
    return rows


def colours() -> np.ndarray:
    """uint8 [N,3]; two images differ by 20 levels at least in some channel."""
    place = np.arange(COUNT)
    return np.stack([place % 10 * 24, place // 10 % 10 * 24, place // 100 * 100], axis=1).astype(np.uint8)


def images() -> np.ndarray:
    return np.broadcast_to(colours()[:, None, None], (COUNT, SIDE, SIDE, 3)).copy()


def files() -> tuple[str, ...]:
    return tuple(f"folder/<b>{row}</b>.png" for row in range(COUNT))


def classified() -> Classified:
    return Classified(images(), files(), labels(), probabilities())


def content(**more) -> dict:
    part = {"images": COUNT, "origin": "x", "fingerprint": "f" * 64,
            "per_class": dict(zip(NAMES, map(sum, CONFUSION), strict=True))}
    return {**figures(), "part": "test", "recipe": "mine",
            "config": {"mode": "train", "model": "a & b", "data": "demo", "augment": "flip | rotate(180)"},
            "data": {"origin": "demo", "parts": {"train": part, "test": part}}, "devices": "CPU",
            "precision": "float32", "jit": "augment", "images_per_second": 123.4, "peak_memory_mib": 2048,
            "weights_sha256": "0" * 64, "versions": {"tensorflow": "2.21.0"}, **more}


@functools.cache
def figures() -> dict:
    return {**metrics.compute(labels(), probabilities(), NAMES),
            "intervals": bootstrap.intervals(labels(), probabilities())}


HISTORY = [{"epoch": n, "loss": 2 / n, "accuracy": 0.3 * n, "val_loss": 1.9 / n, "val_accuracy": 0.25 * n}
           for n in (1, 2, 3)]
GRID = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3)).astype(np.float32)

OPTIONS = [{"name": "as trained", "accuracy": 0.9, "balanced_accuracy": 0.8, "ece": 0.1, "nll": 0.5,
            "images_per_second": 400.0},
           {"name": "+ mean of 4 <views>", "accuracy": 0.9125, "balanced_accuracy": 0.79, "ece": 0.1, "nll": 0.4,
            "images_per_second": 100.0}]


def corruptions() -> dict:
    def one(error: float) -> dict:
        return {"accuracy": 1 - error, "balanced_accuracy": 1 - error, "macro_f1": 1 - error, "balanced_error": error,
                "relative_balanced_error": error - 0.1}

    pixelate = {**one(0.2), "severities": [one(error) for error in (0.1, 0.15, 0.2, 0.25, 0.3)]}
    gamma = {**one(0.6), "severities": [one(error) for error in (0.4, 0.5, 0.6, 0.7, 0.8)]}
    return {"pixelate": pixelate, "defocus": gamma, "heavy": one(0.5),
            "mean": {**one(0.4), "of": ["pixelate", "defocus"]}}


def explanations() -> Explanations:
    def cells(rows: np.ndarray) -> Cells:
        heat = np.broadcast_to(np.linspace(0, 1, SIDE, dtype=np.float32), (len(rows), SIDE, SIDE))
        every = probabilities()[rows].astype(np.float32)
        return Cells(rows, rows, tuple(files()[row] for row in rows), images()[rows], heat, heat[:, ::-1],
                     labels()[rows], every.argmax(axis=1), every)

    rows, wrong = np.arange(0, COUNT, 9), np.flatnonzero(labels() != probabilities().argmax(axis=1))
    few, near = cells(rows[:3]), rows[:6].reshape(3, 2)
    predicted = probabilities().argmax(axis=1)
    points = np.random.default_rng(0).normal(size=(COUNT, 2)).astype(np.float32)
    return Explanations(
        "demo", NAMES, np.bincount(labels()), np.bincount(labels()[wrong], minlength=4), cells(rows), FeatureMap(
            np.arange(COUNT), np.arange(COUNT), files(), points, points, images()[:, :4, :4], labels(), predicted,
            probabilities().max(axis=1).astype(np.float32)),
        cells(wrong), Neighbours(few, images()[near], near, tuple(tuple(files()[i] for i in row) for row in near),
                                 labels()[near], np.full((3, 2), 0.5, np.float32), 99, "<train>"),
        "The maps are coarse.", ("a <remark>",))
