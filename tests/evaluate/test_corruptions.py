"""The heavy suite is what its docstring says, the same for every caller, and evaluate says what it costs."""

import json
import pathlib

import cells
import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import config
from bloodcell.augment import REGISTRY
from bloodcell.commands import evaluate, train
from bloodcell.data import demo
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import corruptions

MANY = 20_000


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return cells.cells(48)


@pytest.fixture(scope="module")
def compiled():
    return tf.function(corruptions.heavy, jit_compile=True, autograph=False)


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """For 20,000 ids, which op each family (by number, from 0) gives: bool [N] by place."""
    draws = corruptions.draw_heavy(np.arange(MANY), 96)
    return {place: np.asarray(each["on"]) for place, each in draws.items()}


def family(place: str) -> int:
    return int(place.partition(".")[0]) - 1


def within(count: int, share: float, of: int = MANY) -> bool:
    """Whether a count lies within five standard deviations of what a share of independent draws gives."""
    return abs(count - share * of) < 5 * np.sqrt(share * (1 - share) * of)


def test_an_image_gets_2_3_4_or_5_ops_all_equally_often(drawn):
    number = np.sum(list(drawn.values()), axis=0)
    assert set(number) == {2, 3, 4, 5}
    assert all(within(int((number == count).sum()), 1 / 4) for count in (2, 3, 4, 5))


def test_families_and_the_ops_of_each_come_equally_often_and_a_family_once_at_most(drawn):
    for position, ops in enumerate(corruptions.HEAVY.values()):
        own = {place: on for place, on in drawn.items() if family(place) == position}
        in_order = sorted(own, key=lambda place: int(place.split("/")[1]))
        assert [place.rpartition(".")[2] for place in in_order] == [op.partition("(")[0] for op in ops]
        assert np.sum(list(own.values()), axis=0).max() == 1
        mean = 3.5 / len(corruptions.HEAVY)  # of the images draw this family
        assert all(within(int(on.sum()), mean / len(ops)) for on in own.values())


def test_pairs_of_families_come_equally_often(drawn):
    on = np.zeros((len(corruptions.HEAVY), MANY), bool)
    for place, each in drawn.items():
        on[family(place)] |= each
    both = sum(k * (k - 1) for k in (2, 3, 4, 5)) / 4 / (6 * 5)  # hypergeometric
    for one in range(6):
        for other in range(one):
            assert within(int((on[one] & on[other]).sum()), both)


def test_what_is_drawn_of_an_op_does_not_depend_on_how_many_there_are():
    draws = corruptions.draw_heavy(np.arange(MANY), 96)
    number = np.sum([np.asarray(each["on"]) for each in draws.values()], axis=0)
    degrees = np.asarray(draws["1.oneof/1/1.rotate"]["degrees"])
    for count in (2, 5):
        assert abs(degrees[number == count].mean()) < 5 * 104 / np.sqrt(MANY / 4)  # uniform over -180..180
        assert abs(np.abs(degrees[number == count]).mean() - 90) < 5 * 52 / np.sqrt(MANY / 4)


def test_every_group_of_the_project_s_ops_takes_part():
    groups = {REGISTRY[op.partition("(")[0]].lower.__module__.rpartition(".")[2]
              for ops in corruptions.HEAVY.values() for op in ops}
    assert groups == {"geometry", "tonal", "colour", "neighbourhood", "occlusion", "degradation"}


def test_eager_does_not_depend_on_batch_mates_by_a_bit(images):
    ids = np.arange(48) * 31
    whole = corruptions.heavy(images, ids).numpy()
    assert whole.dtype == np.uint8
    for rows in ([7], [40, 3, 11], list(range(20))[::-1]):
        np.testing.assert_array_equal(corruptions.heavy(images[rows], ids[rows]), whole[rows])


def test_compiled_equals_eager_and_does_not_depend_on_batch_mates(images, compiled):
    ids, rows = np.arange(48), np.random.default_rng(0).permutation(48)
    whole, mixed = (compiled(tf.constant(images[order]), tf.constant(ids[order])).numpy() for order in (ids, rows))
    np.testing.assert_array_equal(compiled(tf.constant(images), tf.constant(ids)), whole)
    for one, other in ((mixed, whole[rows]), (whole, corruptions.heavy(images, ids).numpy())):
        apart = np.abs(one.astype(int) - other)
        # More comes of a level's difference that crosses a threshold of a later op (posterize, a file's quantiser).
        assert (apart > 1).mean() < 1e-3
        assert (apart > 0).mean() < 5e-3


def test_pictures_differ_from_the_originals_and_from_one_id_to_the_next(images, compiled):
    """Nearly all do: a strength may be drawn near nothing."""
    ids = np.arange(48)
    one, other = (compiled(tf.constant(images), tf.constant(each)).numpy().astype(int) for each in (ids, ids + 48))
    for pair in ((one, images), (other, images), (one, other)):
        change = np.abs(pair[0] - pair[1]).mean(axis=(1, 2, 3))
        assert np.median(change) > 20
        assert (change > 2).mean() > 0.95


def test_without_its_ops_the_policy_is_the_identity(images):
    draws = corruptions.draw_heavy(np.arange(48), 96)
    none = {place: {**each, "on": tf.zeros([48], tf.bool)} for place, each in draws.items()}
    np.testing.assert_array_equal(corruptions._policy(96).apply(images, none, dtype="uint8"), images)


@pytest.mark.parametrize("side", [28, 224])
def test_lengths_grow_with_the_side_up_to_what_an_op_takes(side):
    sigma = corruptions.draw_heavy(np.arange(2000), side)["4.oneof/1/1.blur"]["sigma"]
    assert float(tf.reduce_max(sigma)) == pytest.approx(min(2.0 * side / 96, 3.0), rel=0.01)
    assert corruptions.heavy(np.zeros((2, side, side, 3), np.uint8), np.arange(2)).shape == (2, side, side, 3)


@pytest.fixture
def darker(monkeypatch) -> None:
    """One corruption more, which every id makes darker by its last digit."""
    def apply(images, ids):
        return images - tf.minimum(images, tf.cast(ids % 10, tf.uint8)[:, tf.newaxis, tf.newaxis, tf.newaxis])

    monkeypatch.setitem(corruptions.CORRUPTIONS, "darker", corruptions.Corruption("Darker.", apply))


@pytest.mark.usefixtures("darker")
def test_a_set_in_memory_is_corrupted_image_by_image_and_stays_as_it_was(images):
    pixels = np.resize(images, (70, *images.shape[1:])).copy()
    given = ImageSet(pixels, None, np.arange(70, dtype=np.int64) * 7, ("a", "b"), "test", ("f",) * 70)
    result = corruptions.corrupted(given, "darker", jit=False)
    expected = np.clip(pixels.astype(int) - (given.ids % 10)[:, None, None, None], 0, 255)
    np.testing.assert_array_equal(result.images, expected)
    np.testing.assert_array_equal(given.images, np.resize(images, pixels.shape))


def test_figures_of_a_corruption_by_hand():
    figures = corruptions.figures({"accuracy": 0.6, "balanced_accuracy": 0.5, "macro_f1": 0.4, "auc": 0.9},
                                  {"accuracy": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.7, "auc": 1.0})
    assert figures == {"accuracy": 0.6, "balanced_accuracy": 0.5, "macro_f1": 0.4, "balanced_error": 0.5,
                       "relative_balanced_error": pytest.approx(0.3)}


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--model=cnn", "--weights=none", "--image_size=32",
                           "--batch_size=16", "--stages=all(epochs=1, lr=1e-3)", "--progress=none", "--jit=off",
                           *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--corruptions=heavi"], "did you mean 'heavy'?"),
    (["--corruptions=heavy,"], "--corruptions expected heavy"),
    (["--corruptions=heavy", "--val_augment=flip"], "--val_augment"),
])
def test_what_cannot_be_is_one_line(arguments, expected):
    with pytest.raises(InputError, match="expected") as caught:
        settings(*arguments)
    assert expected in str(caught.value)


def test_names_are_read_once_each():
    assert corruptions.parse("") == ()
    assert corruptions.parse(" heavy , heavy ") == ("heavy",)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(64, seed=1, part="train", size=32)
    path = tmp_path_factory.mktemp("corrupted") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


@pytest.mark.parametrize(("segment", "name"), [("", "heavy"), ("threshold(fill=255)", "darker")])
@pytest.mark.usefixtures("darker")
def test_evaluate_adds_them_to_its_line_and_training_does_not(segment, name, data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    try:
        train.run(settings(f"--data={data}", f"--val_data={data}", f"--workdir={run_dir}", f"--segment={segment}",
                           f"--corruptions={name}"))
        trained = json.loads(capsys.readouterr().out.splitlines()[-1])
        evaluate.run(settings("--mode=evaluate", f"--data={data}", f"--checkpoint={run_dir}", f"--corruptions={name}",
                              f"--report={tmp_path / 'r.json'}"))
        lines = capsys.readouterr().out.splitlines()
    finally:
        keras.config.set_dtype_policy("float32")
    figures = json.loads(lines[-1])
    assert figures == json.loads((tmp_path / "r.json").read_text())
    corrupted = figures.pop("corruptions").pop(name)
    assert figures == trained
    assert set(corrupted) == {"accuracy", "balanced_accuracy", "macro_f1", "balanced_error", "relative_balanced_error"}
    balanced = corrupted["balanced_accuracy"]
    assert corrupted["balanced_error"] == pytest.approx(1 - balanced)
    assert corrupted["relative_balanced_error"] == pytest.approx(figures["balanced_accuracy"] - balanced)
    assert sum("as in training" in line for line in lines) == (2 if segment else 0)
