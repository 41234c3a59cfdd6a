"""How far out images lie in feature space. Distances only; which are too far is for `rules` to say."""

import numpy as np
import threadpoolctl
from sklearn.covariance import MinCovDet
from sklearn.decomposition import PCA

_FEW = 8  # images of a class, below which its spread says nothing


def centroid_deviations(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [N]: how much farther than usual each image is from its class's mean, in standard deviations.

    Args:
      features: float [N, D].
      labels: int64 [N]; classes of fewer than 8 images get 0.
    """
    result = np.zeros(len(features))
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        if len(here) < _FEW:
            continue
        rows = features[here].astype(np.float64)
        distance = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
        result[here] = (distance - distance.mean()) / max(float(distance.std()), 1e-12)
    return result


@threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")  # small matrices: threads cost more than they save
def mahalanobis(features: np.ndarray, labels: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Measures how far out of its class an image is by principal components.

    The two distances of ROBPCA's outlier map (M. Hubert, P. Rousseeuw, K. Vanden Branden, "ROBPCA: a new approach to
    robust principal component analysis", Technometrics 47, 2005): within the components, by the minimum covariance
    determinant, and orthogonal to them. A photograph of something else is far in the second, not always in the first.
    The components are those of all images, location and covariance those of a class.

    Args:
      features: float [N, D].
      labels: int64 [N]; classes of fewer than 4 K images, whose covariance cannot be had, get 0 within the components.
      components: K; less where N or D is smaller.

    Returns:
      Two float64 [N]: each distance in robust deviations (1.4826 times the median absolute one) above its median in
      the class. Zeros where there are too few images for two components.
    """
    inside, outside = np.zeros(len(features)), np.zeros(len(features))
    components = min(components, features.shape[1], len(features) // 4)
    if components < 2:
        return inside, outside
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(features)
    scores = pca.transform(features)
    left_over = np.linalg.norm(features - pca.inverse_transform(scores), axis=1)
    moving = scores[:, pca.explained_variance_ > 1e-12]
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        if len(here) < _FEW:
            continue
        outside[here] = robust_deviations(left_over[here])
        if len(here) >= 4 * moving.shape[1] >= 8:
            covariance = MinCovDet(support_fraction=0.75, random_state=0).fit(moving[here])
            inside[here] = robust_deviations(np.sqrt(covariance.mahalanobis(moving[here])))
    return inside, outside


def robust_deviations(values: np.ndarray) -> np.ndarray:
    """Returns float64 [N]: values above their median, in units of 1.4826 times the median absolute deviation."""
    centred = np.asarray(values, np.float64) - np.median(values)
    return centred / max(1.4826 * float(np.median(np.abs(centred))), 1e-12)
