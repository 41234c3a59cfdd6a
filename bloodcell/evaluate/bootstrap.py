"""How far the figures of `metrics` can be trusted: bootstrap intervals. NumPy arrays in, JSON values out.

They say what another sample of as many such images might give, not what another training or other microscopes would.
"""

import numpy as np

from bloodcell.evaluate import metrics

LEVEL = 0.95
RESAMPLES = 1_000
SEED = 0  # of its own, not the run's: the same predictions always have the same intervals

NO_ERROR = "no image is wrong, and so none in any resample: but for ECE these intervals are too narrow"

_BLOCK = 2**20  # image counts held at a time; what a block takes is a few times 8 MiB, whatever the set's size


def intervals(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, list[float] | None]:
    """Returns the 95% percentile interval (Efron 1979) of each figure of `metrics.HEADLINE`.

    1,000 times, as many images as there are are drawn with replacement, whatever their class, and the figures computed
    of these as `metrics.compute` does; the interval is from the 2.5th to the 97.5th percentile. A resample in which a
    figure cannot be said (AUC where one class alone was drawn) does not count. Images of one picture or one smear are
    not independent, and then the truth is wider. Two limits of the method: a figure that is perfect in the sample is
    perfect in each resample; and ECE is larger in resamples, which repeat images, so that its interval leans upwards
    and may even lie above the figure where ECE is small.

    Args:
      labels: int [N] in 0..C-1.
      probabilities: float [N, C], finite.

    Returns:
      `[low, high]` by name; None where there are fewer than two images, or no resample has the figure.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    images, classes = probabilities.shape
    if images < 2:
        return dict.fromkeys(metrics.HEADLINE)
    predicted = probabilities.argmax(axis=1)
    of_class = np.eye(classes)
    gaps = np.eye(metrics.ECE_BINS)[metrics.bin_of(probabilities)] * metrics.gap(labels, probabilities)[:, None]
    sums = np.concatenate([of_class[labels], of_class[predicted],  # what each figure but AUC is made of
                           of_class[labels] * (predicted == labels)[:, None], gaps], axis=1)
    pairs = [_Pairs(labels == i, probabilities[:, i]) for i in range(classes)]
    generator = np.random.default_rng(SEED)
    found = []
    block = max(1, _BLOCK // images)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        drawn = generator.integers(0, images, (rows, images))
        counts = np.bincount((drawn * rows + np.arange(rows)[:, None]).ravel(), minlength=images * rows)
        weights = counts.reshape(images, rows).astype(np.float64)  # how often each image is in each resample
        found.append(_figures(weights, weights.T @ sums, pairs))
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    result: dict[str, list[float] | None] = {}
    for name, values in zip(metrics.HEADLINE, np.concatenate(found, axis=1), strict=True):
        said = values[np.isfinite(values)]
        result[name] = np.quantile(said, [low, high]).tolist() if len(said) else None
    return result


class _Pairs:
    """The pairs of an image of a class and another that make up the class's AUC (Mann and Whitney's U)."""

    def __init__(self, own: np.ndarray, score: np.ndarray):
        rest = np.flatnonzero(~own)
        self.own, self.rest = np.flatnonzero(own), rest[np.argsort(score[rest], kind="stable")]
        ranked = score[self.rest]
        self.below, self.up_to = (np.searchsorted(ranked, score[self.own], side=side) for side in ("left", "right"))

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Returns the AUC in each resample; NaN where one side has no image. `weights`: [N, R]."""
        before = np.zeros((len(self.rest) + 1, weights.shape[1]))
        np.cumsum(weights[self.rest], axis=0, out=before[1:])
        own = weights[self.own]
        ordered = np.einsum("nr,nr->r", own, before[self.below] + before[self.up_to]) / 2  # a tie counts half
        with np.errstate(invalid="ignore"):
            return ordered / (own.sum(axis=0) * before[-1])


def _figures(weights: np.ndarray, sums: np.ndarray, pairs: list[_Pairs]) -> np.ndarray:
    """The figures of each resample, [5, R] in the order of `metrics.HEADLINE`."""
    images, classes = len(weights), len(pairs)
    support, given, right, gaps = np.split(sums, [classes, 2 * classes, 3 * classes], axis=1)
    present, seen = support > 0, support + given > 0
    recall, f1 = right / np.maximum(support, 1), 2 * right / np.maximum(support + given, 1)
    auc = np.stack([each.auc(weights) for each in pairs], axis=1)
    known = np.isfinite(auc)
    with np.errstate(invalid="ignore"):
        macro_auc = np.where(known, auc, 0).sum(axis=1) / known.sum(axis=1)
    return np.stack([right.sum(axis=1) / images, recall.sum(axis=1) / present.sum(axis=1),
                     f1.sum(axis=1) / seen.sum(axis=1), macro_auc, np.abs(gaps).sum(axis=1) / images])
