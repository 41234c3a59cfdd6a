"""Splits: deterministic, stratified, whole, and no picture on both sides."""

import collections
import itertools
from typing import Any

import numpy as np
import pytest

from bloodcell.data import demo, similarity
from bloodcell.data.dataset import ImageSet
from bloodcell.data.split import SPLITS, shares, split, validate
from bloodcell.errors import InputError

KNOWN_GROUPS = similarity.equal_pixels
SEARCH = similarity.groups


@pytest.fixture(autouse=True)
def _pictures_are_equal_pixels(monkeypatch):
    """What is tested here is the division of groups; the pictures of `make` have no structure to be alike in."""
    monkeypatch.setattr(similarity, "groups", KNOWN_GROUPS)


def make(labels, pictures=None) -> Any:
    """One 2x2 picture per number in `pictures`; equal numbers are equal pictures."""
    labels = np.asarray(labels, np.int64)
    numbers = np.arange(len(labels)) if pictures is None else np.asarray(pictures)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    images[:, 0, 0] = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1)
    names = tuple("abcdefgh"[:labels.max() + 1])
    return ImageSet(images, labels, np.arange(len(labels), dtype=np.int64), names, "test",
                    tuple(map(str, range(len(labels)))))


def parts(result) -> list[Any]:
    return [part for part in (result.train, result.val, result.test) if part is not None]


@pytest.mark.parametrize("text", ["fractions(0.83, 0.13, 0.04)", "fractions(0.8, 0.2)",
                                  "fractions(train=0.5, val=0.5)"])
def test_every_image_is_in_exactly_one_part_in_the_sources_order(text):
    images = make(np.random.default_rng(0).integers(0, 8, 1000))
    result = parts(split(images, text, 0))
    ids = np.concatenate([part.ids for part in result])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1000))
    for part in result:
        assert np.all(np.diff(part.ids) > 0)
        np.testing.assert_array_equal(part.images, images.images[part.ids])
        np.testing.assert_array_equal(part.labels, images.labels[part.ids])
        assert part.files == tuple(map(str, part.ids))


def test_each_class_is_divided_in_the_asked_proportion():
    labels = np.repeat(np.arange(8), [852, 2181, 1085, 2026, 849, 993, 2330, 1643])
    result = parts(split(make(labels), "fractions(0.83, 0.13, 0.04)", 3))
    for part, share in zip(result, (0.83, 0.13, 0.04), strict=True):
        assert np.abs(np.bincount(part.labels) - np.bincount(labels) * share).max() <= 1


def test_the_seed_alone_decides():
    images = make(np.arange(400) % 4)
    first, again, other = (split(images, "fractions(0.5, 0.5)", seed).val.ids.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert split(images, "fractions(0.5, 0.5)", -1).val.ids.tolist() != first


def test_every_image_has_the_same_chance():
    """100 splits of 40 images: each lands in a 30 % part 30 times, within four standard deviations."""
    images = make(np.arange(40) % 2)
    chosen = [split(images, "fractions(0.7, 0.3)", seed).val.ids.tolist() for seed in range(100)]
    hits = collections.Counter(itertools.chain.from_iterable(chosen))
    assert min(hits[i] for i in range(40)) >= 30 - 4 * 4.6
    assert max(hits.values()) <= 30 + 4 * 4.6


def test_equal_pictures_never_cross_even_under_other_labels():
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 150, 600)
    labels = rng.integers(0, 4, 600)
    for seed in range(5):
        result = parts(split(make(labels, pictures), "fractions(0.6, 0.2, 0.2)", seed))
        groups = [set(pictures[part.ids]) for part in result]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
        assert abs(len(result[0]) - 360) <= 12


def test_a_picture_copied_under_every_label_stays_whole():
    """The course's file: one cartoon 200 times under each label, one portrait 200 times under label 5."""
    labels = np.concatenate([np.arange(1200) % 8, np.arange(1600) % 8, np.full(200, 5)])
    pictures = np.concatenate([np.arange(1200), np.full(1600, 5000), np.full(200, 5001)])
    result = parts(split(make(labels, pictures), "fractions(0.83, 0.13, 0.04)", 0))
    for picture in (5000, 5001):
        assert sum(picture in pictures[part.ids] for part in result) == 1
    for part in result:
        assert set(part.labels) == set(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_every_part_if_it_has_the_images(seed):
    labels = [0] * 100 + [1] * 3 + [2] * 2
    result = parts(split(make(labels), "fractions(0.9, 0.05, 0.05)", seed))
    assert all({0, 1} <= set(part.labels) for part in result)
    assert sum(2 in part.labels for part in result) == 2


def test_a_rare_class_whose_images_are_mostly_copies_is_in_every_part_too():
    labels, pictures = [0] * 100 + [1] * 102, [*range(100), *[500] * 100, 501, 502]
    result = parts(split(make(labels, pictures), "fractions(0.83, 0.13, 0.04)", 0))
    assert all({0, 1} == set(part.labels) for part in result)


@pytest.mark.parametrize(("text", "said"), [
    ("fractions(0.8, 0.1)", "sum 0.9"),
    ("fractions(0.8, 0.1, 0.2)", "sum 1.1"),
    ("fractions(0.8, 0.2, 0)", "above 0"),
    ("fractions(1.2, -0.2)", "0..1"),
    ("fractions(0.8)", "val"),
    ("fractions(0.7, 0.1, 0.1, 0.1)", "at most 3"),
    ("fraction(0.8, 0.2)", "did you mean 'fractions'?"),
    ("fractions(0.8, 0.2) | fractions(0.8, 0.2)", "one term"),
    ("", "one term"),
    ("fractions(0.8, 'x')", "val"),
    ("kfold(1)", "2..100"),
    ("kfold(5, fold=5)", "0..4"),
    ("kfold(5, test=0)", "between 0 and 1"),
    ("balanced_test(0)", "1..1e+06"),
    ("balanced_test(5, val=1)", "between 0 and 1"),
    ("two_copies(0.6)", "second"),
    ("two_copies(0.6, 60)", "0..1"),
    ("two_copies(0.6, 1, val=0.9, test=0.1)", "0.9 and 0.1"),
    ("run", "unknown name"),
])
def test_bad_specs_are_one_line(text, said):
    with pytest.raises(InputError) as caught:
        validate(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_may_miss_one_by_a_millionth():
    validate("fractions(0.3333333, 0.3333333, 0.3333333)")


def test_unlabelled_sets_and_empty_parts_are_refused():
    images = make([0, 1])
    with pytest.raises(InputError, match="none of 2"):
        split(images, "fractions(0.8, 0.1, 0.1)", 0)
    unlabelled = ImageSet(images.images, None, images.ids, (), "flat", images.files)
    with pytest.raises(InputError, match="without labels"):
        split(unlabelled, "fractions(0.5, 0.5)", 0)


# ---- Folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [None, 0.2])
def test_folds_are_disjoint_cover_everything_and_hold_each_class_alike(test):
    labels = np.random.default_rng(0).choice(4, 1003, p=[0.6, 0.25, 0.1, 0.05])
    images = make(labels)
    results: list[Any] = [split(images, f"kfold(5, fold={fold}, test={test})", 7) for fold in range(5)]
    held = [] if test is None else [results[0].test.ids]
    np.testing.assert_array_equal(np.sort(np.concatenate([*(each.val.ids for each in results), *held])),
                                  np.arange(1003))
    for each in results:
        assert (each.test is None) == (test is None)
        if each.test is not None:
            np.testing.assert_array_equal(each.test.ids, held[0])
        np.testing.assert_array_equal(np.sort(np.concatenate([part.ids for part in parts(each)])), np.arange(1003))
        share = 0.2 * (1 - (test or 0))
        assert np.abs(np.bincount(each.val.labels, minlength=4) - share * np.bincount(labels)).max() <= 1.5


def test_another_seed_makes_other_folds_and_copies_share_one():
    rng = np.random.default_rng(1)
    pictures, labels = rng.integers(0, 120, 400), rng.integers(0, 3, 400)
    images = make(labels, pictures)
    assert not np.array_equal(split(images, "kfold(4)", 0).val.ids, split(images, "kfold(4)", 1).val.ids)
    folds = [set(pictures[split(images, f"kfold(4, {fold})", 0).val.ids]) for fold in range(4)]
    assert sum(map(len, folds)) == len(set(pictures.tolist()))


# ---- Balanced test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_balanced_test_has_n_of_each_class_and_the_rest_is_divided_by_val(seed):
    labels = np.repeat(np.arange(4), [30, 400, 100, 60])
    result: Any = split(make(labels), "balanced_test(20, val=0.25)", seed)
    assert np.bincount(result.test.labels).tolist() == [20] * 4
    assert np.abs(np.bincount(result.val.labels) - 0.25 * (np.bincount(labels) - 20)).max() <= 1
    np.testing.assert_array_equal(np.sort(np.concatenate([part.ids for part in parts(result)])), np.arange(590))


def test_the_balanced_test_keeps_copies_together_and_takes_no_picture_under_two_labels():
    """Class 0 has 6 single images and 8 pairs, class 1 and 2 share 10 pictures beside 30 of their own."""
    pictures = np.concatenate([np.arange(6), np.repeat(np.arange(10, 18), 2), np.arange(20, 30), np.arange(20, 30),
                               np.arange(40, 70), np.arange(80, 110)])
    labels = np.concatenate([np.zeros(22), np.ones(10), np.full(10, 2), np.ones(30), np.full(30, 2)]).astype(np.int64)
    for seed in range(10):
        result: Any = split(make(labels, pictures), "balanced_test(12)", seed)
        assert np.bincount(result.test.labels).tolist() == [12] * 3
        held = set(pictures[result.test.ids])
        assert not held & set(pictures[np.concatenate([result.train.ids, result.val.ids])])
        assert not held & set(range(20, 30))


def test_single_images_are_tested_with_the_same_chance():
    images = make(np.arange(60) % 2)
    hits = np.zeros(60)
    for seed in range(200):
        result: Any = split(images, "balanced_test(10)", seed)
        hits[result.test.ids] += 1
    assert np.abs(hits - 200 / 3).max() < 4 * np.sqrt(200 / 3 * 2 / 3)


def test_a_class_with_too_few_images_for_the_balanced_test_is_named():
    with pytest.raises(InputError, match=r"received 11 images of 11 pictures of b") as caught:
        split(make([0] * 100 + [1] * 11), "balanced_test(10)", 0)
    assert "\n" not in str(caught.value)
    split(make([0] * 100 + [1] * 12), "balanced_test(10, val=0.5)", 0)
    with pytest.raises(InputError, match="40 images of 20 pictures of b"):  # an odd number of pairs
        split(make([0] * 100 + [1] * 40, [*range(100), *np.repeat(np.arange(200, 220), 2)]), "balanced_test(11)", 0)


# ---- Two copies, near copies -----------------------------------------------------------------------------------------


def test_two_copies_divides_as_fractions_does_and_says_how_often_each_copy_is_augmented():
    images = make(np.arange(500) % 5)
    ours = parts(split(images, "two_copies(0.6, 0.5)", 4))
    for one, other in zip(ours, parts(split(images, "fractions(0.83, 0.13, 0.04)", 4)), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    assert split(images, "two_copies(0.6, 0.5, val=0.2, test=None)", 4).test is None
    assert shares("two_copies(0.6, 0.5)") == (0.6, 0.5)
    assert shares("fractions(0.8, 0.2)") == shares("") == ()


@pytest.mark.parametrize("text", ["fractions(0.5, 0.3, 0.2)", "kfold(3)", "balanced_test(4)", "two_copies(1, 1, 0.3)"])
def test_a_recoloured_shifted_copy_stays_with_its_picture(text, monkeypatch):
    assert text.partition("(")[0] in SPLITS
    monkeypatch.setattr(similarity, "groups", SEARCH)
    cells, _ = demo.render(64, seed=3, part="train", size=96)
    shifted = np.roll(np.asarray(cells), 2, axis=2)
    near = np.clip(np.rint(shifted * np.array([0.95, 1.0, 1.04])), 0, 255).astype(np.uint8)
    labels = np.tile(np.arange(64, dtype=np.int64) % 2, 2)
    images = ImageSet(np.concatenate([cells, near]), labels, np.arange(128), ("a", "b"), "test", ("",) * 128)
    for part in parts(split(images, text, 0)):
        held = set(part.ids.tolist())
        assert all((number + 64 in held) == (number in held) for number in range(64))
