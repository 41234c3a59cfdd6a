"""The figures equal those worked out by hand and scikit-learn's; what cannot be said is null, and no crash."""

import json
import warnings

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from bloodcell.errors import InputError
from bloodcell.evaluate import metrics

NAMES = ("a", "b", "c")


def one_hot(predicted, confidence=1.0, classes=3):
    rest = (1 - confidence) / (classes - 1)
    return np.where(np.arange(classes) == np.asarray(predicted)[:, None], confidence, rest)


def softmax(logits):
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_figures_of_a_small_case_equal_those_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    figures = metrics.compute(labels, one_hot([0, 0, 0, 1, 1, 2, 2, 2]), NAMES)
    assert figures["confusion"] == [[3, 1, 0], [0, 1, 1], [0, 0, 2]]
    assert figures["accuracy"] == pytest.approx(6 / 8)
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    f1 = [2 * 3 / (3 + 4), 2 * 1 / (2 + 2), 2 * 2 / (3 + 2)]  # 2 TP / (predicted + actual)
    assert figures["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert figures["per_class"]["c"] == {"precision": pytest.approx(2 / 3), "recall": 1.0,
                                         "f1": pytest.approx(f1[2]), "auc": pytest.approx((6 + 5) / 12), "support": 2}
    assert figures["ece"] == pytest.approx(2 / 8)  # always certain, wrong twice


def test_auc_is_the_share_of_pairs_in_order():
    labels = np.array([0, 0, 1, 1, 1])
    score = np.array([0.1, 0.6, 0.4, 0.7, 0.6])  # of class 1
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in score[labels == 1] for n in score[labels == 0]]
    figures = metrics.compute(labels, np.stack([1 - score, score], axis=1), ("n", "p"))
    assert figures["auc"] == pytest.approx(np.mean(pairs))


def test_a_class_without_images_is_null_and_no_crash():
    figures = metrics.compute(np.array([0, 0, 1]), one_hot([0, 1, 1], 0.8), NAMES)
    assert figures["per_class"]["c"] == {"precision": None, "recall": None, "f1": None, "auc": None, "support": 0}
    assert figures["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["macro_f1"] == pytest.approx(2 / 3)
    assert figures["auc"] is not None
    json.dumps(figures, allow_nan=False)


def test_predictions_of_a_class_without_images_cost_macro_f1():
    figures = metrics.compute(np.array([0, 0, 1, 1]), one_hot([0, 0, 1, 2]), NAMES)
    assert figures["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert figures["per_class"]["c"]["precision"] == 0.0
    assert figures["per_class"]["c"]["f1"] is None


def test_one_class_alone_has_no_auc():
    figures = metrics.compute(np.zeros(3, np.int64), one_hot([0, 0, 1]), NAMES)
    assert figures["auc"] is None
    assert figures["balanced_accuracy"] == pytest.approx(2 / 3)


def test_calibration_error_equals_the_bins_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, True])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.where(right, 0, 1)
    # bin of 0.95: accuracy 3/4 against 0.95; bin of 0.55: accuracy 1 against 0.55
    expected = 4 / 6 * abs(0.75 - 0.95) + 2 / 6 * abs(1 - 0.55)
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(expected)


def test_calibration_bins_are_closed_above():
    # 0.6 ends the bin (0.4, 0.6] of five; 0.61 begins the next: in one bin they would cancel
    probabilities = np.array([[0.6, 0.4], [0.62, 0.38]])
    value = metrics.expected_calibration_error(np.array([0, 1]), probabilities, bins=5)
    assert value == pytest.approx((0.4 + 0.62) / 2)


@pytest.mark.parametrize(("images", "classes"), [(600, 8), (50, 2), (40, 12)])
def test_figures_equal_scikit_learn(images, classes):
    generator = np.random.default_rng(images)
    labels = generator.integers(0, classes - (classes > 8), images)  # of twelve classes one is absent
    probabilities = softmax(2 * np.eye(classes)[labels] + generator.normal(size=(images, classes)))
    names = tuple(f"class {i}" for i in range(classes))
    figures = metrics.compute(labels, probabilities, names)
    predicted, present = probabilities.argmax(1), np.unique(labels)
    assert figures["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that a predicted class has no image
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert figures["balanced_accuracy"] == figures["macro_recall"] == pytest.approx(balanced)
    for name, score in (("macro_precision", sklearn.metrics.precision_score), ("macro_f1", sklearn.metrics.f1_score)):
        assert figures[name] == pytest.approx(score(labels, predicted, average="macro", zero_division=0.0))
    said = sklearn.metrics.classification_report(labels, predicted, labels=range(classes), target_names=names,
                                                 output_dict=True, zero_division=0.0)
    for i in present:
        row = figures["per_class"][names[i]]
        assert row["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels == i, probabilities[:, i]))
        for key, other in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert (row[key] or 0.0) == pytest.approx(said[names[i]][other])
        assert row["support"] == said[names[i]]["support"]
    assert figures["confusion"] == sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    if len(present) == classes:
        auc = (sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr") if classes > 2 else
               sklearn.metrics.roc_auc_score(labels, probabilities[:, 1]))
        assert figures["auc"] == pytest.approx(auc)


def test_the_reliability_diagram_equals_scikit_learns_and_sums_up_to_the_calibration_error():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 500)
    probabilities = softmax(np.eye(4)[labels] + generator.normal(size=(500, 4)))
    bins = metrics.calibration(labels, probabilities)
    assert [each["above"] for each in bins] == pytest.approx(np.arange(15) / 15)
    assert [each["up_to"] for each in bins] == pytest.approx(np.arange(1, 16) / 15)
    assert sum(each["images"] for each in bins) == 500
    accuracy, confidence = sklearn.calibration.calibration_curve(
        probabilities.argmax(1) == labels, probabilities.max(1), n_bins=15, strategy="uniform")
    filled = [each for each in bins if each["images"]]
    np.testing.assert_allclose([each["accuracy"] for each in filled], accuracy)
    np.testing.assert_allclose([each["confidence"] for each in filled], confidence)
    assert bins[0] == {"above": 0.0, "up_to": 1 / 15, "images": 0, "accuracy": None, "confidence": None}
    by_hand = sum(each["images"] * abs(each["accuracy"] - each["confidence"]) for each in filled) / 500
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(by_hand)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_one_line(value):
    probabilities = one_hot([0, 1, 2], 0.8)
    probabilities[1, 2] = value
    with pytest.raises(InputError, match=r"^expected finite .* received NaN or infinity for 1 of 3 images; try .*$"):
        metrics.compute(np.array([0, 1, 2]), probabilities, NAMES)


def test_novelty_runs_from_certain_to_undecided():
    rows = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(metrics.normalised_entropy(rows), [0, 1, 0.5], atol=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected probabilities"):
        metrics.compute(np.zeros(2, np.int64), np.ones((3, 3)) / 3, NAMES)
    with pytest.raises(ValueError, match="at least one"):
        metrics.compute(np.zeros(0, np.int64), np.ones((0, 3)), NAMES)
