"""Images by what a classifier's networks see in them: one vector an image, a map of many, the nearest of others.

What belongs here: arithmetic on features and probabilities, in a fixed order, whatever is drawn of it.
"""

from collections.abc import Sequence

import numpy as np
import sklearn.decomposition
import sklearn.manifold
import threadpoolctl

COMPONENTS = 50  # that t-SNE gets
PERPLEXITY = 30.0
_CHUNK = 1024  # queries whose similarities are in memory at once


def joined(features: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns float32 [N,D], rows of unit length (0 where a network's features all are), of several networks' features.

    The dot product of two rows is the mean of the networks' cosine similarities, by their weights.

    Args:
      features: of each network float [N,D of its own].
      weights: of each network, of sum 1.
    """
    parts = [np.sqrt(weight) * each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12)
             for each, weight in zip((np.asarray(own, np.float64) for own in features), weights, strict=True)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def spread(labels: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` positions, ascending, with each class in the share that it has; all where they fit."""
    if len(labels) <= most:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, most).round().astype(np.int64)])


def principal(vectors: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns float32 [N,P], the first principal components of [N,D]: 50, or fewer of few or short vectors.

    Where vectors are many and long, a random projection finds them (Halko et al. 2011), by the seed.
    """
    count = min(COMPONENTS, *vectors.shape)
    if len(vectors) < 2:
        return np.zeros((len(vectors), count), np.float32)
    return sklearn.decomposition.PCA(count, random_state=seed).fit_transform(vectors).astype(np.float32)


def tsne(components: np.ndarray, *, seed: int) -> np.ndarray:
    """Lays vectors out in two dimensions so that near ones stay near (van der Maaten and Hinton 2008).

    Distances between groups, and their sizes, mean little. One thread computes, since the sum of several threads'
    parts would differ in its last bit from run to run, and the picture with it.

    Args:
      components: float32 [N,P], of `principal`.
      seed: of the first places, where they cannot be the first two components.

    Returns:
      float32 [N,2], in the order of the rows; of fewer than 5 vectors, or equal ones, their first two components.
    """
    count = len(components)
    if count < 5 or not np.ptp(components, axis=0).any():
        return np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    maker = sklearn.manifold.TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), random_state=seed,
                                  init="pca" if components.shape[1] > 1 else "random")
    with threadpoolctl.threadpool_limits(1):
        return np.asarray(maker.fit_transform(components), np.float32)


def nearest(queries: np.ndarray, references: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the references whose direction is nearest.

    Args:
      queries: float32 [Q,D], of `joined`.
      references: float32 [R,D], of `joined`.
      count: k, at most R.

    Returns:
      Positions int64 [Q,k], the most similar first, equal ones in their order; and the cosines float32 [Q,k].
    """
    count = min(count, len(references))
    found = np.empty((len(queries), count), np.int64)
    cosines = np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), _CHUNK):
        own = queries[start:start + _CHUNK] @ references.T
        # Those at least as similar as the k-th are sorted alone: all of them may be equal, and still few are.
        least = np.partition(own, -count, axis=1)[:, -count]
        for row, (values, lowest) in enumerate(zip(own, least, strict=True), start):
            at_least = np.flatnonzero(values >= lowest)
            order = np.argsort(-values[at_least], kind="stable")[:count]
            found[row], cosines[row] = at_least[order], values[at_least[order]]
    return found, cosines


def mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the positions, int64, of the images taken for another class, the most confident first.

    Args:
      probabilities: float [N,C].
      labels: int [N].
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
