"""Intervals are those of the percentile bootstrap, as SciPy computes it; what cannot be said is null."""

import json
import time
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bloodcell.evaluate import bootstrap, metrics


def case(images, classes, *, seed=0, sharpness=2.0, levels=0):
    """Labels and probabilities; with `levels` the probabilities have so few values that many are ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = sharpness * np.eye(classes)[labels] + generator.normal(size=(images, classes))
    if levels:
        logits = np.round(logits * levels) / levels
    exponents = np.exp(logits)
    return labels, exponents / exponents.sum(axis=1, keepdims=True)


def intervals(labels, probabilities) -> dict[str, Any]:
    return bootstrap.intervals(labels, probabilities)


# SciPy draws the same images from the same generator, so the ends are the same numbers and not just near ones.
@pytest.mark.parametrize(("images", "classes", "levels"), [(60, 3, 0), (40, 2, 1), (12, 4, 0)])
def test_intervals_are_scipys_of_the_figures_of_each_resample(images, classes, levels, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 80)  # each is measured by `metrics.compute`
    labels, probabilities = case(images, classes, levels=levels)
    names = tuple(map(str, range(classes)))

    def figures(rows):
        found = metrics.compute(labels[rows], probabilities[rows], names)
        return np.array([found[name] for name in metrics.HEADLINE], float)

    interval = scipy.stats.bootstrap(
        (np.arange(images),), lambda rows, axis: np.apply_along_axis(figures, axis, rows).T, n_resamples=80,
        confidence_level=bootstrap.LEVEL, method="percentile", vectorized=True,
        random_state=np.random.default_rng(bootstrap.SEED)).confidence_interval
    ends = bootstrap.intervals(labels, probabilities)
    for name, low, high in zip(metrics.HEADLINE, interval.low, interval.high, strict=True):
        assert ends[name] == pytest.approx([low, high], rel=1e-9), name


def test_another_seed_gives_nearly_the_same_interval():
    labels, probabilities = case(400, 3)
    low, high = intervals(labels, probabilities)["accuracy"]
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    other = scipy.stats.bootstrap((right,), np.mean, n_resamples=20_000, method="percentile",
                                  random_state=np.random.default_rng(9)).confidence_interval
    # a percentile of 1,000 draws errs by about sqrt(p (1 - p) / 1000) / density: 0.085 standard errors at 2.5%
    error = np.sqrt(right.var() / len(right))
    assert abs(low - other.low) < 4 * 0.085 * error + 1 / len(right)
    assert abs(high - other.high) < 4 * 0.085 * error + 1 / len(right)


def test_intervals_hold_the_figure_and_shrink_with_the_root_of_the_images():
    widths = []
    for images in (200, 3_200):
        labels, probabilities = case(images, 4)
        figures, ends = metrics.compute(labels, probabilities, tuple("abcd")), intervals(labels, probabilities)
        assert list(ends) == list(metrics.HEADLINE)
        assert all(ends[name][0] < figures[name] < ends[name][1] for name in ends)
        widths.append(ends["accuracy"][1] - ends["accuracy"][0])
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    labels, probabilities = case(70, 3)
    whole = bootstrap.intervals(labels, probabilities)
    monkeypatch.setattr(bootstrap, "_BLOCK", 7 * 70 + 3)
    in_blocks = bootstrap.intervals(labels, probabilities)
    assert all(in_blocks[name] == pytest.approx(whole[name], abs=1e-12) for name in whole)


def test_one_class_alone_has_every_interval_but_aucs():
    labels, probabilities = np.zeros(1_000, np.int64), case(1_000, 3)[1]
    ends = intervals(labels, probabilities)
    assert ends["auc"] is None
    assert ends["balanced_accuracy"] == ends["accuracy"]
    assert 0 < ends["macro_f1"][0] < ends["macro_f1"][1] < 1
    json.dumps(ends, allow_nan=False)


def test_a_class_of_one_image_is_left_out_where_it_is_not_drawn():
    labels = np.array([0] * 9 + [1])  # a third of the resamples lacks the second class, and has no AUC
    score = np.linspace(0.1, 0.9, 10)
    ends = intervals(labels, np.stack([1 - score, score], axis=1))
    assert ends["auc"] == [1.0, 1.0]
    assert 0 <= ends["balanced_accuracy"][0] <= ends["balanced_accuracy"][1] <= 1


def test_a_single_image_has_no_interval():
    assert bootstrap.intervals(np.array([0]), np.array([[0.9, 0.1]])) == dict.fromkeys(metrics.HEADLINE)


def test_a_test_set_takes_about_half_a_second():
    labels, probabilities = case(3_421, 8)
    began = time.process_time()
    bootstrap.intervals(labels, probabilities)
    assert time.process_time() - began < 3
