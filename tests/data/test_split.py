"""Splits: deterministic, stratified, whole, and no picture on both sides."""

import collections
import itertools
from typing import Any

import numpy as np
import pytest

from bloodcell.data.dataset import ImageSet
from bloodcell.data.split import split, validate
from bloodcell.errors import InputError


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
