"""Figures of a classifier from labels and probabilities. NumPy arrays in, JSON values out; no TensorFlow, no files.

How far to trust them is `bootstrap`'s business.
"""

from typing import Any

import numpy as np
import sklearn.metrics

from bloodcell.errors import InputError

ECE_BINS = 15

# What train and evaluate print, `intervals` of `bootstrap` among them; report.json has all.
PRINTED = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "auc", "ece", "intervals",
           "per_class", "confusion")
HEADLINE = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "auc": "AUC",
            "ece": "calibration error (ECE)"}  # the figures that have intervals, as people read them


def compute(labels: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Computes all figures of one evaluation.

    Args:
      labels: int [N] in 0..C-1, N at least 1.
      probabilities: float [N, C], rows that sum to 1.
      class_names: C names.

    Returns:
      JSON values, where what cannot be said is `None`: `accuracy`; `balanced_accuracy` (mean recall of the classes that
      have images) and `macro_recall`, another name of it; `macro_precision` and `macro_f1` (means over the classes that
      have images or were predicted, 0 where never predicted); `auc` (one class against the rest, mean over the classes
      that have images, `None` where there is one class alone); `ece`; `per_class`, a dictionary by name of `precision`
      (`None` where never predicted), `recall`, `f1` and `auc` (`None` where the class has no image) and `support`;
      `confusion`, C rows of true classes by C columns of predicted ones; `calibration`, as `calibration` says.

    Raises:
      InputError: probabilities that are not finite.
      ValueError: shapes that do not fit, or no image.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    classes = len(class_names)
    if not len(labels) or probabilities.shape != (len(labels), classes):
        raise ValueError(f"expected probabilities [{len(labels)}, {classes}] of at least one image, "
                         f"received {probabilities.shape}")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise InputError(f"expected finite probabilities of every image, received NaN or infinity for {broken:,} of "
                         f"{len(labels):,} images; try the weights of another epoch, or --precision=float32")
    predicted = probabilities.argmax(axis=1)
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=np.arange(classes))
    support, given = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=0.0)
    present = support > 0
    seen = present | (given > 0)
    auc = _auc(labels, probabilities, present)
    per_class = {
        name: {"precision": float(precision[i]) if given[i] else None,
               "recall": float(recall[i]) if present[i] else None,
               "f1": float(f1[i]) if present[i] else None, "auc": auc[i], "support": int(support[i])}
        for i, name in enumerate(class_names)}
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_precision": float(precision[seen].mean()),
        "macro_recall": float(recall[present].mean()),
        "macro_f1": float(f1[seen].mean()),
        "auc": float(np.mean([value for value in auc if value is not None])) if present.sum() > 1 else None,
        "ece": expected_calibration_error(labels, probabilities),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "calibration": calibration(labels, probabilities),
    }


def _auc(labels: np.ndarray, probabilities: np.ndarray, present: np.ndarray) -> list[float | None]:
    """The area of each class against the rest; None where either side has no image."""
    several = present.sum() > 1
    return [float(sklearn.metrics.roc_auc_score(labels == i, probabilities[:, i])) if several and present[i] else None
            for i in range(len(present))]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Returns how far confidence is from accuracy, 0..1 (ECE: Guo et al. 2017, after Naeini et al. 2015).

    Images are sorted by confidence (the largest probability) into `bins` bins of equal width `(a, b]` over 0..1; the
    result is the mean of |accuracy - mean confidence| over the bins, weighted by their images.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      bins: how many.
    """
    gaps = np.bincount(bin_of(probabilities, bins), weights=gap(labels, probabilities), minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Returns what a reliability diagram shows: the bins of `expected_calibration_error` in order, as JSON values.

    Each has its ends `above` (not in it) and `up_to` (in it), `images`, and of these the `accuracy` and the mean
    `confidence`, `None` where it has none.
    """
    which = bin_of(probabilities, bins)
    images = np.bincount(which, minlength=bins)
    confidence = np.bincount(which, weights=probabilities.max(axis=1), minlength=bins)
    correct = np.bincount(which, weights=probabilities.argmax(axis=1) == labels, minlength=bins)
    return [{"above": i / bins, "up_to": (i + 1) / bins, "images": int(images[i]),
             "accuracy": float(correct[i] / images[i]) if images[i] else None,
             "confidence": float(confidence[i] / images[i]) if images[i] else None} for i in range(bins)]


def bin_of(probabilities: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Returns the bin of `expected_calibration_error` that each row of [N, C] falls into: int [N], 0..bins-1."""
    return np.clip(np.ceil(probabilities.max(axis=1) * bins).astype(int) - 1, 0, bins - 1)


def gap(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """1 for a right image and 0 for a wrong one, less its confidence: [N]. Of a bin the sum is what ECE adds up."""
    return (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1)


def negative_log_likelihood(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean of -ln(probability of the true class) in nats; probabilities below 1e-12 count as that."""
    own = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def normalised_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Returns the entropy of each row of [N, C] over its maximum ln(C): float64 [N], 0 (certain) to 1 (all alike)."""
    p = np.asarray(probabilities, np.float64)
    logs = np.log(np.where(p > 0, p, 1.0))
    return np.clip(-(p * logs).sum(axis=1) / np.log(p.shape[1]), 0.0, 1.0)
