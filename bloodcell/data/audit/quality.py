"""Measures of single images that need no network: background colour, sharpness, exposure. All of them in chunks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from bloodcell.data.audit.outliers import robust_deviations

_CHUNK = 512
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_FEW = 8  # images of a class, below which its spread says nothing


def background(images: Any, index: np.ndarray) -> np.ndarray:
    """Returns float32 [M, 3]: the median colour of the brighter half of an outer frame, a twelfth of the side wide.

    Neighbouring cells reach into the frame; the ground between them is brighter.
    """
    def measure(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[1:3]
        edge = max(1, min(height, width) // 12)
        frame = np.ones((height, width), bool)
        frame[edge:height - edge, edge:width - edge] = False
        colours = pixels[:, frame].astype(np.float32)
        order = np.argsort(colours @ _LUMA, axis=1, kind="stable")
        brighter = np.take_along_axis(colours, order[:, order.shape[1] // 2:, None], axis=1)
        return np.median(brighter, axis=1)

    return _measured(images, index, measure)


def chroma(images: Any, index: np.ndarray) -> np.ndarray:
    """Returns float32 [M]: the mean over pixels of the largest less the smallest channel, in grey levels."""
    def measure(pixels: np.ndarray) -> np.ndarray:
        return (pixels.max(-1) - pixels.min(-1)).mean(axis=(1, 2), dtype=np.float32)

    return _measured(images, index, measure)


def distance_to_common(colours: np.ndarray, *, share: float) -> np.ndarray:
    """Returns float64 [M]: how near, in grey levels, each colour has a `share` of all the others (at least three)."""
    if len(colours) < 2:
        return np.zeros(len(colours))
    wanted = min(len(colours) - 1, max(3, round(share * len(colours))))
    return NearestNeighbors(n_neighbors=wanted + 1).fit(colours).kneighbors(colours)[0][:, -1]


def blur_deviations(images: Any, index: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [M]: how many robust deviations an image's edges are weaker than its class's median.

    Edges: the logarithm of the variance of the 4-neighbour Laplacian (J. Pech-Pacheco et al., "Diatom autofocusing in
    brightfield microscopy: a comparative study", 2000). Classes of fewer than 8 images are compared with the whole set.
    """
    def measure(pixels: np.ndarray) -> np.ndarray:
        grey = np.pad(pixels.astype(np.float32) @ _LUMA, ((0, 0), (1, 1), (1, 1)), mode="edge")
        laplacian = (4 * grey[:, 1:-1, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2]
                     - grey[:, 1:-1, 2:])
        return np.log(laplacian.var(axis=(1, 2)) + 1e-3)

    edges = _measured(images, index, measure)
    weaker = -robust_deviations(edges)
    for label in np.unique(labels):
        here = labels == label
        if here.sum() >= _FEW:
            weaker[here] = -robust_deviations(edges[here])
    return weaker


def exposure(images: Any, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two float32 [M]: mean and standard deviation of an image's luma, in grey levels."""
    def measure(pixels: np.ndarray) -> np.ndarray:
        grey = pixels.astype(np.float32) @ _LUMA
        return np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))], axis=1)

    mean, deviation = _measured(images, index, measure).T
    return mean, deviation


def _measured(images: Any, index: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.concatenate([measure(np.asarray(images[index[start:start + _CHUNK]]))
                           for start in range(0, len(index), _CHUNK)])
