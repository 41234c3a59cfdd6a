"""Beta and Dirichlet draws against SciPy's distributions."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from bloodcell.augment import beta

U = np.linspace(0.0, 1.0, 20_001, dtype=np.float32)[:-1]


@pytest.mark.parametrize(("a", "b"), [(1, 1), (0.2, 0.2), (0.05, 0.05), (1, 2), (2, 1), (0.4, 3), (32, 32), (1, 7)])
def test_quantiles_are_scipys(a, b):
    ours = beta.quantile(tf.constant(U), float(a), float(b)).numpy()
    assert (np.diff(ours) >= 0).all()
    assert ours.min() >= 0
    assert ours.max() <= 1
    # In probability, which is what a draw's frequency is: at most half a knot off, and knots themselves exact.
    inside = (ours > 1e-6) & (ours < 1 - 1e-4)  # beyond, float32 blurs 1 - x
    assert np.abs(scipy.stats.beta.cdf(ours.astype(np.float64), a, b) - U)[inside].max() < 2e-4
    at = np.linspace(0, 1, beta.KNOTS)
    np.testing.assert_allclose(beta.table(float(a), float(b)), scipy.stats.beta.ppf(at, a, b), atol=3e-5)


@pytest.mark.parametrize(("alpha", "width"), [(1.0, 3), (0.5, 2), (4.0, 4), (1.0, 1)])
def test_dirichlet_has_the_right_moments_and_marginals(alpha, width):
    u = np.random.default_rng(0).random((20_000, max(width - 1, 1)), dtype=np.float32)
    drawn = beta.dirichlet(tf.constant(u), alpha, width).numpy()
    assert drawn.shape == (20_000, width)
    np.testing.assert_allclose(drawn.sum(axis=1), 1, atol=1e-6)
    for part in range(width if width > 1 else 0):
        assert scipy.stats.kstest(drawn[:, part], scipy.stats.beta(alpha, alpha * (width - 1)).cdf).pvalue > 1e-4
