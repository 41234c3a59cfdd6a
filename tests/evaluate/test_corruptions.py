"""The heavy suite is what its docstring says, the same for every caller, and evaluate says what it costs."""

import io
import json
import pathlib

import cells
import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bloodcell import config
from bloodcell.augment import REGISTRY
from bloodcell.commands import classifying, corrupting, evaluate, train
from bloodcell.data import demo, segment, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import corruptions, medmnist_c, plots
from bloodcell.evaluate.classifier import Classifier, Member
from bloodcell.evaluate.corruption_sheet import corruption_sheet_png
from bloodcell.train import strategy as strategies

MANY = 20_000


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return cells.cells(48)


@pytest.fixture(scope="module")
def compiled():
    return tf.function(corruptions.heavy, jit_compile=True, autograph=False)


@pytest.fixture(scope="module")
def eager(images) -> np.ndarray:
    return corruptions.heavy(images, np.arange(48)).numpy()


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


def test_eager_does_not_depend_on_batch_mates_by_a_bit(images, eager):
    assert eager.dtype == np.uint8
    for rows in ([7], [40, 3, 11, *range(20, 36)][::-1]):
        np.testing.assert_array_equal(corruptions.heavy(images[rows], np.asarray(rows)), eager[rows])


def test_compiled_equals_eager_and_does_not_depend_on_batch_mates(images, compiled, eager):
    ids, rows = np.arange(48), np.random.default_rng(0).permutation(48)
    whole, mixed = (compiled(tf.constant(images[order]), tf.constant(ids[order])).numpy() for order in (ids, rows))
    np.testing.assert_array_equal(compiled(tf.constant(images), tf.constant(ids)), whole)
    for one, other in ((mixed, whole[rows]), (whole, eager)):
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


def darken(images, ids, severity):
    return images - np.minimum(images, (ids % 10 * severity)[:, None, None, None]).astype(np.uint8)


@pytest.fixture
def darker(monkeypatch) -> None:
    """One corruption more, which every id makes darker by its last digit, times the severity; and one without any."""
    monkeypatch.setitem(corruptions.CORRUPTIONS, "darker",
                        corruptions.Corruption("Darker.", "factor", ("1", "2"), "here", darken))
    monkeypatch.setitem(corruptions.CORRUPTIONS, "suite",
                        corruptions.Corruption("Inverted.", "", ("",), "here", lambda images, ids, _: 255 - images,
                                               compilable=True))


@pytest.mark.parametrize("batch_size", [3, 20, 64])
def test_a_model_sees_the_same_corrupted_pixels_in_batches_of_any_size(images, batch_size):
    """A model that tells what it sees; the last batch is filled up with images of the first."""
    given = ImageSet(images[:20], None, np.arange(20, dtype=np.int64) * 5, ("a", "b"), "test", ("f",) * 20)
    inputs = keras.Input((96, 96, 3))
    told = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs) / 64)
    for name in ("bubble", "motion", "jpeg"):
        found = Classifier([Member("told", told)])
        result = found.probabilities(found.outputs(given, batch_size=batch_size,
                                                   on_host=corruptions.on_host(name, 5, jit=False)).logits)
        logits = medmnist_c.apply(name, images[:20], given.ids, 5).mean(axis=(1, 2)) / 64
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(result, expected, atol=1e-5)


CLEAN = {"accuracy": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.7, "auc": 1.0}
WORSE = {"accuracy": 0.6, "balanced_accuracy": 0.5, "macro_f1": 0.4, "auc": 0.9}
WORST = {"accuracy": 0.4, "balanced_accuracy": 0.2, "macro_f1": 0.1, "auc": 0.8}


def test_figures_of_a_corruption_by_hand():
    worse = {"accuracy": 0.6, "balanced_accuracy": 0.5, "macro_f1": 0.4, "balanced_error": 0.5,
             "relative_balanced_error": pytest.approx(0.3)}
    assert corruptions.figures([WORSE], CLEAN) == worse
    both = corruptions.figures([WORSE, WORST], CLEAN)
    assert both.pop("severities") == [worse, {
        "accuracy": 0.4, "balanced_accuracy": 0.2, "macro_f1": 0.1, "balanced_error": 0.8,
        "relative_balanced_error": pytest.approx(0.6)}]
    assert both == pytest.approx({"accuracy": 0.5, "balanced_accuracy": 0.35, "macro_f1": 0.25, "balanced_error": 0.65,
                                  "relative_balanced_error": 0.45})


def test_the_mean_over_corruptions_by_hand_and_by_the_paper_s_formula():
    of_all = {"jpeg": corruptions.figures([WORSE, WORST], CLEAN), "heavy": corruptions.figures([WORST], CLEAN),
              "bubble": corruptions.figures([WORSE, WORSE], CLEAN)}
    mean = corruptions.mean(of_all)
    assert mean is not None
    assert mean.pop("of") == ["jpeg", "bubble"]  # one image under heavy is no severity of anything
    assert mean == pytest.approx({
        "accuracy": 0.55, "balanced_accuracy": 0.425, "macro_f1": 0.325, "balanced_error": 0.575,
        "relative_balanced_error": 0.375,
        "balanced_error_to_alexnet": (0.65 / 0.139762 + 0.5 / 0.128988) / 2,
        "relative_balanced_error_to_alexnet": (0.45 / (0.139762 - 0.018369) + 0.3 / (0.128988 - 0.018369)) / 2})
    assert corruptions.mean({"heavy": of_all["heavy"]}) is None


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--model=cnn", "--weights=none", "--image_size=32",
                           "--batch_size=16", "--stages=all(epochs=1, lr=1e-3)", "--progress=none", "--explain=none",
                           "--jit=off", *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--corruptions=heavi"], "did you mean 'heavy'?"),
    (["--corruptions=all,defocos"], "did you mean 'defocus'?"),
    (["--corruptions=heavy,"], "--corruptions expected names of corruptions"),
    (["--corruptions=heavy", "--val_augment=flip"], "--val_augment"),
])
def test_what_cannot_be_is_one_line(arguments, expected):
    with pytest.raises(InputError, match="expected") as caught:
        settings(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_read_once_each_and_all_is_the_eleven():
    assert corruptions.parse("") == ()
    assert corruptions.parse(" heavy , heavy ") == ("heavy",)
    assert corruptions.parse("all") == tuple(medmnist_c.CORRUPTIONS)
    assert corruptions.parse("bubble, heavy,all") == (
        "bubble", "heavy", *(name for name in medmnist_c.CORRUPTIONS if name != "bubble"))
    assert len(corruptions.parse("all")) == 11


def test_help_names_every_corruption_with_its_severities():
    text = config.help_text()
    for name, entry in corruptions.CORRUPTIONS.items():
        assert f"\n  {name}\n      {entry.summary}\n" in text
    assert "radius, alias of severity 1 to 5: 2, 0.01; 3, 0.1; 4, 0.1; 5, 0.1; 6, 0.1." in text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(64, seed=1, part="train", size=32)
    path = tmp_path_factory.mktemp("corrupted") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


FIGURES = {"accuracy", "balanced_accuracy", "macro_f1", "balanced_error", "relative_balanced_error"}


@pytest.mark.parametrize(("segmented", "names"), [("", ["jpeg", "suite", "darker"]),
                                                  ("threshold(fill=255)", ["darker"])])
@pytest.mark.usefixtures("darker")
def test_evaluate_and_the_end_of_training_add_them_to_the_line_with_a_table_and_pictures(segmented, names, data,
                                                                                        tmp_path, capsys):
    run_dir = tmp_path / "run"
    given = f"--corruptions={','.join(names)}"
    try:
        train.run(settings(f"--data={data}", f"--val_data={data}", f"--workdir={run_dir}", f"--segment={segmented}",
                           given))
        trained = json.loads(capsys.readouterr().out.splitlines()[-1])
        # of segmented images the photographs are gone when the training ends
        assert ("corruptions" in trained) == (run_dir / corrupting.CELLS).exists() == (not segmented)
        evaluate.run(settings("--mode=evaluate", f"--data={data}", f"--checkpoint={run_dir}", given,
                              f"--report={tmp_path / 'r.json'}"))
        lines = capsys.readouterr().out.splitlines()
    finally:
        keras.config.set_dtype_policy("float32")
    figures = json.loads(lines[-1])
    report = json.loads((tmp_path / "r.json").read_text())
    assert figures == report
    measured = figures.pop("corruptions")
    assert trained.pop("corruptions", measured) == measured
    assert figures == trained
    mean = measured.pop("mean", None)
    assert list(measured) == list(corruptions.parse(",".join(names)))
    for name, each in measured.items():
        of_severities = each.pop("severities", [each])
        assert len(of_severities) == len(corruptions.CORRUPTIONS[name].severities)
        for one in (each, *of_severities):
            assert set(one) == FIGURES
            assert one["balanced_error"] == pytest.approx(1 - one["balanced_accuracy"])
            assert one["relative_balanced_error"] == pytest.approx(
                figures["balanced_accuracy"] - one["balanced_accuracy"])
        assert each["balanced_error"] == pytest.approx(np.mean([one["balanced_error"] for one in of_severities]))
        row = next(line.split() for line in lines if line.split()[:1] == [name])
        printed = [*of_severities, each] if len(of_severities) > 1 else [each]
        assert row[1:1 + len(printed)] == [f"{one['balanced_error']:.4f}" for one in printed]
        assert row[1 + len(printed)] == f"{each['relative_balanced_error']:+.4f}"
    assert (mean is not None) == ("jpeg" in names) == (run_dir / corrupting.HEAT_MAP).exists()
    if mean is not None:
        assert mean["balanced_error"] == pytest.approx(np.mean(
            [each["balanced_error"] for name, each in measured.items() if corruptions.CORRUPTIONS[name].alexnet]))
    sheet = Image.open(run_dir / corrupting.CELLS)
    assert sheet.size[0] > 8 * 64 * min(2, len(names))
    assert sum("as in training" in line for line in lines) == (1 if segmented else 0)


@pytest.mark.usefixtures("darker")
def test_of_a_segmented_run_the_photograph_is_corrupted_and_what_remains_is_segmented(data, monkeypatch, tmp_path):
    segmenter = segment.learn("threshold(fill=255)", sources.load(str(data), part="test", image_size=32))
    given = sources.load(str(data), part="test", image_size=32)
    chosen = settings("--mode=evaluate", f"--checkpoint={tmp_path}", "--corruptions=darker")
    runtime = strategies.resolve(strategy="none", replicas=0, precision="auto", jit="off", seed=0)
    inputs = keras.Input((32, 32, 3))
    told = keras.Model(inputs, keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(inputs) / 64))
    member = Member("told", told, segment=lambda pixels: segmenter.filled(pixels, segmenter.masks(pixels)))
    loaded = classifying.Loaded(Classifier([member]), (tmp_path,), {}, ("",))
    measured = corrupting.measure(loaded, given, chosen, runtime, clean=CLEAN)["darker"]["severities"]
    kernel, bias = told.get_weights()
    for severity, figures in enumerate(measured, start=1):
        pixels = darken(given.images, given.ids, severity)
        logits = segmenter.filled(pixels, segmenter.masks(pixels)).mean(axis=(1, 2)) / 64 @ kernel + bias
        assert figures["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == given.labels))
    assert len(measured) == 2


def test_a_folder_that_cannot_get_the_pictures_is_one_line_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(corrupting.os, "access", lambda folder, mode: False)  # to root every folder is writable
    with pytest.raises(InputError, match=r"--corruptions expected a folder --checkpoint .*, received .*; try"):
        evaluate.run(settings("--mode=evaluate", "--data=none.npz", f"--checkpoint={tmp_path}", "--corruptions=jpeg"))


@pytest.mark.parametrize(("side", "shown"), [(32, 64), (96, 96), (224, 96)])
def test_the_sheet_shows_every_cell_under_every_severity(side, shown):
    colours = np.random.default_rng(0).permutation(200)[:2 + 6 + 2] + 20
    cells = [np.full((side, side, 3), (colour, colour, 0), np.uint8) for colour in colours]
    png = corruption_sheet_png(np.stack(cells[:2]), {"one": np.stack(cells[2:8]).reshape(3, 2, side, side, 3),
                                                     "two": np.stack(cells[8:])[np.newaxis]},
                               class_names=["a", "b_c"], parameters={"one": "p", "two": ""},
                               severities={"one": ["1", "2", "3"], "two": [""]}, line="$50 of 100$")
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for number, colour in enumerate(colours):
        assert (pixels == [colour, colour, 0]).all(axis=-1).sum() == shown**2 * (2 if number < 2 else 1)


def test_the_heat_map_s_darkest_cell_is_the_worst():
    png = plots.robustness_png({"one_two": [0.1, 0.2, 0.9], "other": [0.1] * 3, "all": [0.3]}, clean=0.05, mean=0.4)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    colour = np.rint(255 * np.array(matplotlib.colormaps["PuRd"](1.0)[:3]))
    rows, columns = np.nonzero((np.abs(pixels - colour) <= 1).all(axis=-1))
    assert len(rows) > 2000
    assert 0.3 < rows.mean() / pixels.shape[0] < 0.45
    assert 0.6 < columns.mean() / pixels.shape[1] < 0.85
