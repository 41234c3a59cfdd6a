"""Features side by side, their map and their neighbours are what other tools find, in the order of the rows."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from bloodcell.evaluate import embedding


def groups(counts: tuple[int, ...], *, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around a direction for each group, shuffled, and their groups."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return (8 * np.eye(width)[labels] + rng.normal(size=(len(labels), width))).astype(np.float32), labels


def test_a_dot_product_is_the_weighted_mean_of_cosines():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(6, 4)).astype(np.float32), 50 * rng.normal(size=(6, 9)).astype(np.float32)
    found = embedding.joined((first, second), (0.75, 0.25))

    def cosine(own):
        lengths = np.linalg.norm(own, axis=1)
        return own @ own.T / np.outer(lengths, lengths)

    np.testing.assert_allclose(found @ found.T, 0.75 * cosine(first) + 0.25 * cosine(second), atol=1e-6)
    assert found.dtype == np.float32
    assert not embedding.joined((np.zeros((2, 3)),), (1.0,)).any()


def test_principal_components_are_those_of_the_singular_values():
    vectors = np.random.default_rng(1).normal(size=(70, 60)).astype(np.float32)
    found = embedding.principal(vectors, seed=0)
    assert found.shape == (70, 50)
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :50], atol=1e-3)
    assert embedding.principal(vectors[:3], seed=0).shape == (3, 3)


def test_the_map_keeps_the_order_of_rows_and_is_the_same_each_time():
    vectors, labels = groups((30, 20, 25))
    first, again = (embedding.tsne(vectors, seed=0) for _ in range(2))
    assert first.shape == (75, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_few_images_have_a_map_too(count):
    vectors = groups((4, 4))[0][:count]
    for own in (embedding.principal(vectors, seed=0), np.ones((count, 3), np.float32), np.ones((count, 1), np.float32)):
        found = embedding.tsne(own, seed=0)
        assert found.shape == (count, 2)
        assert np.isfinite(found).all()


def test_a_seed_makes_one_map_where_chance_has_a_part():
    line = groups((20,))[0][:, :1]
    first, again, other = (embedding.tsne(line, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_nearest_are_those_of_scikit_learn():
    references, queries = groups((40, 40, 40))[0], groups((7, 9))[0]
    found, cosines = embedding.nearest(embedding.joined((queries,), (1.0,)), embedding.joined((references,), (1.0,)), 6)
    distances, expected = NearestNeighbors(n_neighbors=6, metric="cosine").fit(references).kneighbors(queries)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-5)


def test_equally_near_ones_come_in_their_order_and_more_than_there_are_is_all():
    same = np.tile(np.array([[0.6, 0.8]], np.float32), (5, 1))
    found, cosines = embedding.nearest(same[:1], np.concatenate([[[1.0, 0.0]], same]).astype(np.float32), 3)
    assert found.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert embedding.nearest(same[:2], same[:3], 9)[0].tolist() == [[0, 1, 2]] * 2
    assert embedding.nearest(same[:0], same, 2)[0].shape == (0, 2)


def test_mistakes_come_by_confidence():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0, 0.9], [0.3, 0.7, 0]])
    labels = np.array([0, 0, 2, 1, 2])
    assert embedding.mistakes(probabilities, labels).tolist() == [3, 1, 4, 2]
    assert embedding.mistakes(probabilities, probabilities.argmax(axis=1)).tolist() == []


@pytest.mark.parametrize("most", [1, 10, 99])
def test_a_part_has_the_classes_in_their_shares(most):
    labels = np.random.default_rng(2).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    rows = embedding.spread(labels, most)
    assert len(np.unique(rows)) == most
    assert (np.diff(rows) > 0).all()
    assert np.abs(np.bincount(labels[rows], minlength=3) - np.array([0.6, 0.3, 0.1]) * most).max() <= 1
    assert embedding.spread(labels[:7], 7).tolist() == list(range(7))
