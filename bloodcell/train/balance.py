"""Weights that make every class count the same in the loss. Resampling the images would belong to `data`."""

import numpy as np

from bloodcell import spec

PARAMS: dict[str, tuple[spec.Param, ...]] = {"none": (), "class_weights": ()}


def parse(text: str) -> str:
    """Returns `"none"` or `"class_weights"`; raises InputError."""
    term = spec.only_term(spec.parse(text, what="balance"), what="balance")
    spec.bind(term, spec.lookup(term, PARAMS, what="balance"), what="balance")
    return term.name


def class_weights(text: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float32 [num_classes]: ones for `none`, else inversely proportional to how many images a class has.

    The weight of a class with `count` of `n` images is `n / (present * count)`, where `present` is how many classes
    have images at all: the mean over the set is 1, so the learning rate keeps its meaning. A class without images
    gets 1, which nothing uses.
    """
    weights = np.ones(num_classes, np.float32)
    if parse(text) == "class_weights":
        counts = np.bincount(labels, minlength=num_classes)
        present = counts > 0
        weights[present] = len(labels) / (present.sum() * counts[present])
    return weights
