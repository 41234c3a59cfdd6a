"""A run's segmentation reaches training, evaluation and prediction alike, and its sheet shows what it did."""

import json

import keras
import numpy as np
import pytest

from bloodcell import config
from bloodcell.commands import evaluate, explain, measuring, parts, predict, segmenting, train
from bloodcell.data import demo, segment
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate.classifier import Classifier
from bloodcell.train import checkpoints, loop, state

SPEC = "knn(fill=7)"


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--image_size=48", "--model=mobilenet_v3_small", "--weights=none",
                           "--progress=none", *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images, labels = demo.render(48, seed=1, size=48)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a training that ended before its first step, and what it was to learn from."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    chosen = settings(f"--data={data}", f"--segment={SPEC}", f"--workdir={folder}")
    seen: dict[str, ImageSet] = {}

    def fit(given, _, learned, checked, run_dir):
        checkpoints.save_model_file(run_dir, name=given.model, head="", image_size=48, class_names=learned.class_names,
                                    segment=given.segment)
        seen.update(train=learned, val=checked)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit", fit)
        with pytest.raises(InterruptedError):
            train.run(chosen)
    return folder, chosen, seen


@pytest.fixture
def model(run, monkeypatch):
    about = json.loads((run[0] / "model.json").read_text())
    about["class_names"] = tuple(about["class_names"])
    inputs = keras.Input((48, 48, 3))
    network = keras.Model(inputs, keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(inputs)))
    monkeypatch.setattr(checkpoints, "load_model", lambda checkpoint, which: (network, about))
    return about


def test_training_sees_each_part_segmented(run):
    folder, chosen, seen = run
    plain = parts.load(chosen)
    segmenter = segment.load(folder, SPEC)
    for name, images in seen.items():
        pixels = plain[name].images[:]
        masks = segmenter.masks(pixels)
        assert 0.02 < masks.mean() < 0.6
        np.testing.assert_array_equal(images.images, segmenter.filled(pixels, masks))
        np.testing.assert_array_equal(images.labels, plain[name].labels)
        assert (images.images[~masks] == 7).all()


def test_only_the_training_part_teaches(run):
    folder, chosen, _ = run
    plain = parts.load(chosen)
    assert segment.learn(SPEC, plain["train"]).digest() == segment.load(folder, SPEC).digest()


def test_a_run_that_goes_on_uses_what_it_has_learned(run, monkeypatch):
    _, chosen, seen = run
    monkeypatch.setattr(segment, "learn", None)
    done, _ = segmenting.in_training(parts.load(chosen), chosen, resumed=True)
    np.testing.assert_array_equal(done["val"].images, seen["val"].images)


def test_segment_must_be_the_same_when_a_run_goes_on():
    assert "segment" not in state.FREE_FLAGS
    assert "--segment=knn(fill=7)" in config.to_flagfile(settings(f"--segment={SPEC}"))


@pytest.mark.parametrize("given", ["", f"--segment={SPEC}", "--segment=knn(k=5, fill='7')"])
@pytest.mark.usefixtures("model")
def test_evaluation_measures_segmented_images(run, data, given, monkeypatch, capsys):
    seen = []

    def measure(found, images, *rest):
        seen.append(found.members[0].segment(images.images))
        raise InterruptedError  # far enough

    monkeypatch.setattr(measuring, "measure", measure)
    with pytest.raises(InterruptedError):
        evaluate.run(settings("--mode=evaluate", f"--checkpoint={run[0]}", f"--data={data}", given or "--seed=0"))
    plain = np.load(data)["images"]
    segmenter = segment.load(run[0], SPEC)
    np.testing.assert_array_equal(seen[0], segmenter.filled(plain, segmenter.masks(plain)))
    assert f"as in training: {SPEC}" in capsys.readouterr().out


@pytest.mark.usefixtures("model")
def test_prediction_sees_segmented_images(run, data, tmp_path, monkeypatch):
    seen = []
    batch = Classifier.batch

    def watched(found, images, ids):
        seen.append(found.members[0].segment(np.asarray(images)))
        return batch(found, images, ids)

    monkeypatch.setattr(Classifier, "batch", watched)
    predict.run(settings("--mode=predict", f"--checkpoint={run[0]}", f"--data={data}",
                         f"--predictions={tmp_path / 'out.csv'}"))
    plain = np.load(data)["images"]
    segmenter = segment.load(run[0], SPEC)
    expected = segmenter.filled(plain, segmenter.masks(plain))
    np.testing.assert_array_equal(np.concatenate(seen)[:len(plain)], expected)


@pytest.mark.parametrize(("of_run", "given"), [(SPEC, "threshold"), (SPEC, "knn"), ("", "threshold")])
def test_another_segmentation_than_the_runs_is_one_line(run, model, data, of_run, given):
    model["segment"] = of_run
    with pytest.raises(InputError, match="--segment expected") as caught:
        evaluate.run(settings("--mode=evaluate", f"--checkpoint={run[0]}", f"--data={data}", f"--segment={given}"))
    assert "\n" not in str(caught.value)


def test_a_run_that_lost_what_it_learned_is_one_line(model, data, tmp_path):
    with pytest.raises(InputError, match=r"segment\.npz"):
        evaluate.run(settings("--mode=evaluate", f"--checkpoint={tmp_path}", f"--data={data}"))


def test_the_sheet_shows_every_class_before_and_after(data, tmp_path, capsys):
    chosen = settings("--mode=explain", "--explain=segment", "--segment=threshold", f"--data={data}",
                      f"--workdir={tmp_path}")
    explain.run(chosen)
    assert (tmp_path / explain.SEGMENT_SHEET).read_bytes().startswith(b"\x89PNG")
    _, done = segmenting.in_training(parts.load(chosen), chosen)
    assert done is not None
    assert [bar.name for bar in done.shares] == list(demo.CLASS_NAMES)
    kept = done.examples.masks
    np.testing.assert_array_equal(done.examples.results[kept], done.examples.images[kept])
    assert (done.examples.results[~kept] == 255).all()
    assert set(done.examples.labels) == set(range(8))
    assert demo.CLASS_NAMES[3] in capsys.readouterr().out


def test_explaining_a_segmentation_needs_one():
    with pytest.raises(InputError, match="--explain=segment expected --segment"):
        settings("--mode=explain", "--explain=segment")
