"""Balance: rows as asked, ids of their own, no pixel twice, and images made as published."""

import collections
import tracemalloc
from typing import Any

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE

from bloodcell.data import balance
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline
from bloodcell.data.rows import MADE, STRIDE, Rows
from bloodcell.errors import InputError

COUNTS = (5, 40, 17)


def make(counts=COUNTS, size=6) -> Any:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.random.default_rng(1).integers(0, 256, (len(labels), size, size, 3), np.uint8)
    return ImageSet(images, labels, np.arange(len(labels), dtype=np.int64) * 3 + 2,
                    tuple("abcdefgh"[:len(counts)]), "test", ("",) * len(labels))


def batches(pipeline, epoch) -> dict[str, np.ndarray]:
    """One epoch, without what fills the last batch."""
    elements = list(pipeline.epoch(5, epoch).as_numpy_iterator())
    whole = {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}
    return {name: values[whole["weight"] == 1] for name, values in whole.items()}


@pytest.mark.parametrize(("text", "rows", "new"), [
    ("none", (5, 40, 17), 0), ("class_weights", (5, 40, 17), 0), ("replicate(20)", (20, 40, 20), 0),
    ("replicate", (40, 40, 40), 0), ("synthetic(18)", (18, 40, 18), 14), ("synthetic", (40, 40, 40), 58),
    ("smote(k=3, n=19)", (19, 40, 19), 16), ("smote", (40, 40, 40), 58), ("sampler", (21, 21, 20), 0)])
def test_an_epoch_has_the_rows_asked_for_and_the_pipeline_shows_them_all(text, rows, new):
    images = make()
    balanced = balance.rows(images, text, seed=5, augmenter=lambda pixels, ids: pixels)
    assert tuple(balanced.per_class(images.labels, 3)) == rows
    assert (0 if balanced.extra is None else len(balanced.extra.labels)) == new
    shown = batches(Pipeline(images, batch_size=8, rows=balanced), 0)
    assert tuple(np.bincount(shown["label"])) == rows
    assert len(np.unique(shown["id"])) == sum(rows)
    assert shown["id"].min() >= 0
    read = shown["id"] < MADE
    source = (shown["id"][read] % STRIDE - 2) // 3
    np.testing.assert_array_equal(shown["image"][read], images.images[source])
    np.testing.assert_array_equal(shown["label"][read], images.labels[source])
    assert (~read).sum() == new
    assert "share" not in shown


@pytest.mark.parametrize("text", ["replicate(23)", "replicate(40)"])
def test_every_image_of_a_class_is_repeated_equally_often(text):
    images = make()
    rows = balance.rows(images, text, seed=1)
    counts = np.bincount(rows.index, minlength=len(images))
    for label, count in enumerate(COUNTS):
        own = counts[images.labels == label]
        assert own.max() - own.min() <= 1
        assert own.sum() == max(count, int(text[10:12]))


def test_the_seed_decides_which_images_come_once_more():
    images = make()
    first, again, other = (balance.rows(images, "replicate(23)", seed=seed).ids.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_the_copies_of_a_doubled_set_and_their_repeats_have_ids_and_shares_of_their_own():
    images = make()
    rows = balance.rows(images, "replicate(50)", shares=(0.25, 0.75), seed=0)
    assert rows.per_class(images.labels, 3).tolist() == [50, 80, 50]
    assert len(np.unique(rows.ids)) == 180
    copy = rows.ids // STRIDE
    np.testing.assert_array_equal(rows.share, np.where(copy % 2 == 0, 0.25, 0.75).astype(np.float32))
    np.testing.assert_array_equal(rows.ids % STRIDE, images.ids[rows.index])


# ---- The sampler -----------------------------------------------------------------------------------------------------


def test_the_sampler_shows_classes_alike_in_each_epoch_and_images_alike_over_the_epochs():
    images = make()
    rows = balance.rows(images, "sampler", seed=3)
    seen = np.zeros(len(images), np.int64)
    for epoch in range(31):
        drawn = rows.epoch(3, epoch)
        assert len(drawn) == len(images)
        assert set(np.bincount(images.labels[drawn.index])) <= {20, 21}
        assert len(np.unique(drawn.ids)) == len(drawn)
        seen += np.bincount(drawn.index, minlength=len(images))
        for label in range(3):  # whole rounds over the class: no image is ever ahead by more than one
            own = seen[images.labels == label]
            assert own.max() - own.min() <= 1
    by_class = np.bincount(images.labels, weights=seen)
    assert by_class.max() - by_class.min() <= 1


def test_a_sampled_epoch_is_a_function_of_seed_and_epoch_and_resumes_in_the_middle():
    images = make()
    rows = balance.rows(images, "sampler", seed=3)
    pipeline, other = (Pipeline(images, batch_size=8, rows=rows) for _ in range(2))
    batches(other, 9)
    whole = list(pipeline.epoch(3, 4).as_numpy_iterator())
    rest = list(other.epoch(3, 4, skip_steps=3).as_numpy_iterator())
    for one, two in zip(whole[3:], rest, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    orders = {(seed, epoch): tuple(rows.epoch(seed, epoch).ids) for seed in (3, 4) for epoch in (4, 5)}
    assert len(set(orders.values())) == 4


def test_the_sampler_of_a_doubled_set_draws_of_both_copies_and_keeps_their_shares():
    images = make()
    rows = balance.rows(images, "sampler", shares=(0.1, 0.9), seed=0)
    drawn = rows.epoch(0, 1)
    assert len(drawn) == 2 * len(images)
    assert len(np.unique(drawn.ids)) == len(drawn)
    np.testing.assert_array_equal(drawn.share, np.where(drawn.ids // STRIDE % 2 == 0, 0.1, 0.9).astype(np.float32))


# ---- Images that are made --------------------------------------------------------------------------------------------


def test_synthetic_images_are_the_policys_of_their_own_ids():
    images, calls = make(), []

    def augmenter(pixels, ids):
        calls.append(pixels.shape)
        return (pixels.astype(np.int64) + ids[:, None, None, None] % 251).astype(np.uint8)

    rows = balance.rows(images, "synthetic(30)", seed=2, augmenter=augmenter)
    made = batches(Pipeline(images, batch_size=8, rows=rows), 0)
    new = made["id"] >= MADE
    assert new.sum() == 38
    bases: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for image, label, number in zip(made["image"][new], made["label"][new], made["id"][new], strict=True):
        before = (image.astype(np.int64) - number % 251) % 256
        found = np.flatnonzero((images.images == before).all(axis=(1, 2, 3)))
        assert len(found) == 1
        assert images.labels[found[0]] == label
        bases[int(label)][int(found[0])] += 1
    assert sorted(bases[0].values()) == [5] * 5
    assert len(bases[2]) == 13
    assert len(set(calls)) == 1  # one shape, so that it is compiled once


def test_a_smote_image_lies_between_an_image_and_a_near_one_of_its_class():
    """Neighbours and points as imbalanced-learn has them; each lies where it says on the line between two images."""
    images = make((9, 60, 30), size=4)
    rows = balance.rows(images, "smote(k=3)", seed=4)
    shown = batches(Pipeline(images, batch_size=16, rows=rows), 0)
    flat = images.images.reshape(len(images), -1).astype(np.float64)
    peer = SMOTE(k_neighbors=3, random_state=0)
    counts = collections.Counter(peer.fit_resample(flat, images.labels)[1].tolist())
    assert counts == collections.Counter(shown["label"].tolist())
    steps = []
    for label in (0, 2):
        own = np.flatnonzero(images.labels == label)
        near = peer.nn_k_.fit(flat[own]).kneighbors(flat[own], return_distance=False)[:, 1:]
        lines = [(base, other) for base, row in enumerate(near) for other in row]
        first, second = (flat[own][[line[side] for line in lines]] for side in (0, 1))
        new = (shown["id"] >= MADE) & (shown["label"] == label)
        for point in shown["image"][new].reshape(new.sum(), -1):
            along = ((point - first) * (second - first)).sum(1) / ((second - first) ** 2).sum(1)
            off = np.abs(first + along[:, None] * (second - first) - point).max(axis=1)
            best = int(off.argmin())
            assert off[best] < 0.75  # half a level of rounding, and what that turns the place along the line by
            assert -0.01 < along[best] < 1.01
            steps.append(along[best])
    assert len(steps) == 51 + 30
    assert abs(np.mean(steps) - 0.5) < 4 / np.sqrt(12 * len(steps))


def test_the_points_between_are_imbalanced_learns():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (20, 5, 5, 3), np.uint8)
    flat = images.reshape(20, -1).astype(np.float64)
    neighbours = balance.nearest(images, 4)
    peer = SMOTE(k_neighbors=4)
    peer.fit_resample(flat, np.repeat([0, 1], [8, 12]))  # makes the search for neighbours
    theirs = peer.nn_k_.fit(flat).kneighbors(flat, return_distance=False)[:, 1:]
    np.testing.assert_array_equal(neighbours, theirs)
    base, which, steps = np.arange(20), rng.integers(0, 4, 20), rng.random(20)
    expected = peer._generate_samples(flat, flat, theirs, base, which, steps[:, np.newaxis])
    ours = balance.between(images, images[neighbours[base, which]], steps)
    assert np.abs(ours.reshape(20, -1) - np.asarray(expected)).max() <= 0.5 + 1e-4


def test_a_class_smaller_than_k_uses_the_neighbours_it_has_and_one_image_is_refused():
    images = make((2, 9))
    rows = balance.rows(images, "smote(k=5)", seed=0)
    assert rows.per_class(images.labels, 2).tolist() == [9, 9]
    Pipeline(images, batch_size=4, rows=rows)
    with pytest.raises(InputError, match="at least 2 images of every class, received 1 of a"):
        balance.rows(make((1, 9)), "smote", seed=0)


def test_made_images_are_the_same_whenever_they_are_made():
    images = make()
    for text in ("smote", "synthetic"):
        made = [batches(Pipeline(images, batch_size=8, rows=balance.rows(
            images, text, seed=6, augmenter=lambda pixels, ids: pixels[:, ::-1])), 1)["image"] for _ in range(2)]
        np.testing.assert_array_equal(made[0], made[1])


# ---- Memory, mistakes, weights ---------------------------------------------------------------------------------------


def test_repeated_images_take_no_memory_for_pixels():
    """1,000 images of 48x48 (6.9 MB) are shown 20,000 times (138 MB): the pipeline takes the images once, and rows."""
    images = make((100, 900), size=48)
    tracemalloc.start()
    rows = balance.rows(images, "replicate(10000)", seed=0)
    pipeline = Pipeline(images, batch_size=64, rows=rows)
    first = next(iter(pipeline.epoch(0, 0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first["image"].shape == (64, 48, 48, 3)
    assert pipeline.num_batches == -(-20_000 // 64)
    assert peak < 1.5 * images.images.nbytes


def test_made_images_take_their_memory_once():
    images = make((100, 1000), size=48)
    rows = balance.rows(images, "synthetic", seed=0, augmenter=lambda pixels, ids: pixels)
    tracemalloc.start()
    pipeline = Pipeline(images, batch_size=64, rows=rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pipeline.num_batches == -(-2000 // 64)
    assert peak < 2000 / 1100 * images.images.nbytes + 3e6


class Lazy:
    """Images that lie in files, as `ImageSet` takes them."""

    dtype, ndim, shape = np.dtype(np.uint8), 4, (62, 6, 6, 3)

    def __len__(self):
        return 62


def test_images_in_files_can_be_repeated_and_sampled_but_not_made_of():
    images = make()
    lazy = object.__new__(ImageSet)
    for name in images.__dataclass_fields__:
        object.__setattr__(lazy, name, Lazy() if name == "images" else getattr(images, name))
    for text in ("none", "class_weights", "replicate(20)", "sampler"):
        np.testing.assert_array_equal(balance.rows(lazy, text).epoch(0, 0).ids,
                                      balance.rows(images, text).epoch(0, 0).ids)
    for text in ("synthetic", "smote"):
        with pytest.raises(InputError, match=f"{text} expected images in memory") as caught:
            balance.rows(lazy, text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [
    ("class_weight", "did you mean 'class_weights'"), ("replicate(0)", "1..1e+07"), ("smote(k=0)", "1..100"),
    ("none(3)", "it takes none"), ("replicate(2000) | sampler", "one term"), ("sampler@0.5", "no '@p'"),
    ("synthetic(10, policy=3)", "quoted text")])
def test_bad_specs_are_one_line(text, said):
    with pytest.raises(InputError) as caught:
        balance.validate(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_weights_are_inverse_frequencies_with_mean_one():
    labels = np.array([0] * 6 + [1] * 3 + [3] * 3)
    weights = balance.class_weights("class_weights", labels, 4)
    np.testing.assert_allclose(weights, [12 / 18, 12 / 9, 1, 12 / 9])
    assert weights[labels].mean() == pytest.approx(1)
    assert balance.class_weights("sampler", labels, 4).tolist() == [1, 1, 1, 1]


def test_ids_beyond_the_room_for_copies_are_refused():
    images = make()
    high = ImageSet(images.images, images.labels, images.ids + STRIDE, images.class_names, "test", images.files)
    with pytest.raises(ValueError, match="ids"):
        Rows.of(high)
