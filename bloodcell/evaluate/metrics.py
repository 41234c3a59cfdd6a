"""Figures of a classifier from labels and probabilities. NumPy arrays in, JSON values out; no TensorFlow, no files."""

from typing import Any

import numpy as np
import sklearn.metrics

ECE_BINS = 15

# What train and evaluate print; the confusion matrix is for the report.
PRINTED = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "per_class")


def compute(labels: np.ndarray, probabilities: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Computes all figures of one evaluation.

    Args:
      labels: int [N] in 0..C-1, N at least 1.
      probabilities: float [N, C], rows that sum to 1.
      class_names: C names.

    Returns:
      JSON values, where what cannot be said is `None`: `accuracy`; `balanced_accuracy` (mean recall of the classes that
      have images); `macro_f1` (mean F1 of the classes that have images or were predicted); `auc` (one against the rest,
      mean over the classes that have images, `None` where there is one class alone); `ece`; `per_class`, a dictionary
      by name of `precision` (`None` where never predicted), `recall` and `f1` (`None` where the class has no image) and
      `support`; `confusion`, C rows of true classes by C columns of predicted ones.

    Raises:
      ValueError: shapes that do not fit, or no image.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    classes = len(class_names)
    if not len(labels) or probabilities.shape != (len(labels), classes):
        raise ValueError(f"expected probabilities [{len(labels)}, {classes}] of at least one image, "
                         f"received {probabilities.shape}")
    predicted = probabilities.argmax(axis=1)
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=np.arange(classes))
    support, given = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=0.0)
    present = support > 0
    per_class = {
        name: {"precision": float(precision[i]) if given[i] else None,
               "recall": float(recall[i]) if present[i] else None,
               "f1": float(f1[i]) if present[i] else None, "support": int(support[i])}
        for i, name in enumerate(class_names)}
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present | (given > 0)].mean()),
        "auc": _auc(labels, probabilities, np.flatnonzero(present)),
        "ece": expected_calibration_error(labels, probabilities),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _auc(labels: np.ndarray, probabilities: np.ndarray, present: np.ndarray) -> float | None:
    if len(present) < 2:
        return None
    return float(np.mean([sklearn.metrics.roc_auc_score(labels == i, probabilities[:, i]) for i in present]))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Returns how far confidence is from accuracy, 0..1 (ECE: Guo et al. 2017, after Naeini et al. 2015).

    Images are sorted by confidence (the largest probability) into `bins` bins of equal width `(a, b]` over 0..1; the
    result is the mean of |accuracy - mean confidence| over the bins, weighted by their images.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      bins: how many.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=correct - confidence, minlength=bins)  # sum of (correct - confidence) in each bin
    return float(np.abs(gaps).sum() / len(labels))


def normalised_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Returns the entropy of each row of [N, C] over its maximum ln(C): float64 [N], 0 (certain) to 1 (all alike)."""
    p = np.asarray(probabilities, np.float64)
    logs = np.log(np.where(p > 0, p, 1.0))
    return np.clip(-(p * logs).sum(axis=1) / np.log(p.shape[1]), 0.0, 1.0)
