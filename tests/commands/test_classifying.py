"""Runs side by side, their views, temperatures and weights, as evaluate reads them from the flags."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import scipy.special

from bloodcell import config, models
from bloodcell.commands import classifying, evaluate
from bloodcell.data import demo
from bloodcell.errors import InputError
from bloodcell.evaluate import metrics, temperature
from bloodcell.models import cnn
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies

CLASSES = demo.CLASS_NAMES


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(48, seed=1, part="train", size=32)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A network of the same kind, which is built and traced sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "_CHANNELS", (16,))
        yield


def write(run: pathlib.Path, seed: int, *, size: int = 32, names: tuple[str, ...] = CLASSES) -> pathlib.Path:
    """Writes a run with random weights whose logits are far apart."""
    (run / "checkpoints").mkdir(parents=True)
    model = models.build("cnn", weights="none", head="", image_size=size, num_classes=len(names), seed=seed)
    kernel = model.get_layer("head").get_layer("logits").kernel
    kernel.assign(10 * kernel)
    checkpoints.save_model_file(run, name="cnn", head="", image_size=size, class_names=names)
    checkpoints.Checkpoints(run).save("best", {}, model)
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write(folder / name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def runs(written, tmp_path) -> list[pathlib.Path]:
    """Two runs, a test's own, since a fit writes into them."""
    return [pathlib.Path(shutil.copytree(run, tmp_path / run.name)) for run in written]


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--mode=evaluate", "--progress=none", "--explain=none", "--batch_size=16",
                           *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


def logits_of(run: pathlib.Path, *views: np.ndarray) -> np.ndarray:
    """Returns [N,C] of each view's images, one after the other."""
    model, _ = checkpoints.load_model(str(run))
    return np.asarray(model(np.concatenate(views).astype(np.float32), training=False), np.float64)


def evaluated(capsys, *arguments: str) -> tuple[dict, list[str]]:
    capsys.readouterr()
    evaluate.run(settings(*arguments))
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1]), lines


def test_an_ensemble_is_the_mean_of_probabilities_and_each_step_has_its_row(runs, data, capsys):
    both = f"--checkpoint={runs[0]}, {runs[1]}"
    figures, lines = evaluated(capsys, both, f"--data={data}", "--tta=flips", "--temperature=3")
    cells = np.load(data)
    pixels, labels = cells["images"], cells["labels"]
    views = [pixels, pixels[:, :, ::-1], pixels[:, ::-1], pixels[:, ::-1, ::-1]]
    logits = np.stack([logits_of(run, *views).reshape(4, len(pixels), -1) for run in runs])
    expected = metrics.compute(labels, scipy.special.softmax(logits / 3, axis=-1).mean(axis=(0, 1)), CLASSES)
    assert figures["accuracy"] == pytest.approx(expected["accuracy"])
    assert figures["ece"] == pytest.approx(expected["ece"], abs=1e-4)
    start = lines.index("what each option brings, and what it costs:") + 2
    names = [line.split("  ")[1] for line in lines[start:start + 5]]
    assert names == [f"{runs[0]}, as trained", f"{runs[1]}, as trained", "mean of the 2 networks",
                     "+ temperature 3.00, 3.00", "+ mean of 4 views"]
    alone = metrics.compute(labels, scipy.special.softmax(logits[0, 0], axis=1), CLASSES)
    row = lines[start].split()
    assert [float(row[-5]), float(row[-3])] == pytest.approx([alone["accuracy"], alone["ece"]], abs=6e-5)


def test_weights_are_taken_from_the_flag_or_from_validation(runs, data, capsys):
    both, where = f"--checkpoint={runs[0]},{runs[1]}", f"--data={data}"
    runtime = strategies.resolve(strategy="none", replicas=0, precision="auto", jit="off", seed=0)
    given = classifying.load(settings(both, where, "--ensemble_weights=3,1"), runtime)
    np.testing.assert_allclose(given.classifier.weights, [0.75, 0.25])
    _, lines = evaluated(capsys, both, where, f"--val_data={data}", "--ensemble_weights=val")
    said = next(line for line in lines if line.startswith("weights of the networks"))
    assert str(runs[0]) in said
    assert sum(float(word.rstrip(",")) for word in said.split() if word.rstrip(",").replace(".", "").isdigit()
               and "." in word) == pytest.approx(1, abs=0.002)


def test_a_fitted_temperature_stays_with_its_weights(runs, data, capsys):
    run, where = f"--checkpoint={runs[0]}", f"--data={data}"
    before, _ = evaluated(capsys, run, where)
    fitted, lines = evaluated(capsys, run, where, "--temperature=fit", f"--val_data={data}")
    assert any("temperature of" in line for line in lines)
    again, lines = evaluated(capsys, run, where)
    assert again == fitted
    assert any("temperature of" in line for line in lines)
    assert again["accuracy"] == before["accuracy"]
    assert again["ece"] < before["ece"]
    cells = np.load(data)
    value, _, _ = temperature.fit(logits_of(runs[0], cells["images"])[None], cells["labels"])
    assert json.loads((runs[0] / temperature.FILE).read_text())["best"]["temperature"] == pytest.approx(value, rel=1e-3)
    assert evaluated(capsys, run, where, "--temperature=none")[0] == before


def test_it_is_fitted_under_the_policy_that_it_names(runs, data, capsys):
    evaluated(capsys, f"--checkpoint={runs[0]}", f"--data={data}", f"--val_data={data}",
              "--temperature=fit(augment='invert')")
    stored = json.loads((runs[0] / temperature.FILE).read_text())["best"]
    cells = np.load(data)
    value, before, _ = temperature.fit(logits_of(runs[0], 255 - cells["images"])[None], cells["labels"])
    assert stored["augment"] == "invert"
    assert stored["nll_before"] == pytest.approx(before, rel=1e-4)
    assert stored["temperature"] == pytest.approx(value, rel=1e-3)


def test_statistics_of_the_measured_images_are_said_and_change_nothing_on_disk(runs, data, capsys):
    run = runs[0]
    content = (run / "checkpoints" / "best.npz").read_bytes()
    plain, _ = evaluated(capsys, f"--checkpoint={run}", f"--data={data}")
    figures, lines = evaluated(capsys, f"--checkpoint={run}", f"--data={data}", "--batch_norm=data")
    assert figures["ece"] != plain["ece"]
    assert any("statistics of the 48 images that are measured" in line for line in lines)
    assert any(line.startswith("  + batch norm of these images") for line in lines)
    assert (run / "checkpoints" / "best.npz").read_bytes() == content


def test_runs_that_do_not_go_together_are_one_line(runs, data, tmp_path):
    larger = write(tmp_path / "larger", 0, size=48)
    fewer = write(tmp_path / "fewer", 0, names=CLASSES[:5])
    for other in (larger, fewer):
        with pytest.raises(InputError, match="same classes and image size") as caught:
            evaluate.run(settings(f"--checkpoint={runs[0]},{other}", f"--data={data}"))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="--ensemble_weights expected a number for each of 2 runs"):
        evaluate.run(settings(f"--checkpoint={runs[0]},{runs[1]}", f"--data={data}", "--ensemble_weights=1,2,3"))


@pytest.mark.parametrize("flag", ["--temperature=fit", "--ensemble_weights=val"])
def test_a_fit_without_validation_images_is_one_line_before_the_work(runs, data, flag):
    with pytest.raises(InputError, match="expected labelled images to fit on, received none; try --val_data"):
        settings(f"--checkpoint={runs[0]},{runs[1]}", f"--data={data}", flag)


def test_a_folder_with_a_comma_is_one_run(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert classifying.folders(str(tmp_path / "a,b")) == (tmp_path / "a,b",)
    assert classifying.folders("runs/a, runs/b") == (pathlib.Path("runs/a"), pathlib.Path("runs/b"))


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.config.set_dtype_policy("float32")
