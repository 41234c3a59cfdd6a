"""A tiny job end to end through the flags: train, resume, evaluate, predict, and what lands on disk."""

import csv
import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from bloodcell import config
from bloodcell.commands import evaluate, parts, predict, train
from bloodcell.data import demo
from bloodcell.errors import InputError
from bloodcell.models import MissingWeights
from bloodcell.train import loop

TINY = ("--model=cnn", "--weights=none", "--image_size=32", "--batch_size=16",
        "--stages=all(epochs=1, lr=1e-3)", "--augment=flip", "--progress=none", "--explain=none")


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", *TINY, *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(96, seed=1, part="train", size=32)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train.run(settings(f"--data={data}", "--split=fractions(0.6, 0.2, 0.2)", f"--workdir={folder}",
                       f"--report={folder.parent / 'figures.json'}"))
    return folder


def test_the_run_folder_holds_what_is_promised(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    assert names == {"config.cfg", "metrics.jsonl", "report.json", "report.html", "augmented.png", "confusion.png",
                     "reliability.png", "model.json", "split.json", "temperature.json", "checkpoints", "tensorboard",
                     ".lock"}
    report = json.loads((run_dir / "report.json").read_text())
    assert report["config"]["batch_size"] == 16
    assert sum(report["data"]["parts"]["train"]["per_class"].values()) == report["data"]["parts"]["train"]["images"]
    assert sum(part["images"] for part in report["data"]["parts"].values()) == 96
    assert len(report["weights_sha256"]) == 64
    assert 100 < report["peak_memory_mib"] < 100_000
    assert report["versions"]["keras"] == keras.__version__


def test_tensorboard_has_the_pictures_of_the_last_figures(run_dir):
    tags = {value.tag for path in (run_dir / "tensorboard").glob("events*")
            for event in EventFileLoader(str(path)).Load() for value in event.summary.value}
    assert {"confusion/test", "reliability/test"} <= tags


def test_the_figures_are_of_the_test_part_and_written_where_asked(run_dir):
    figures = json.loads((run_dir.parent / "figures.json").read_text())
    report = json.loads((run_dir / "report.json").read_text())
    assert set(figures) == {"accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "auc",
                            "ece", "intervals", "per_class", "confusion"}
    assert all(report[name] == value for name, value in figures.items())
    assert report["part"] == "test"
    assert sum(row["support"] for row in figures["per_class"].values()) == report["data"]["parts"]["test"]["images"]


def test_evaluate_on_the_same_split_prints_the_same_line(run_dir, data, capsys):
    evaluate.run(settings("--mode=evaluate", f"--checkpoint={run_dir}", f"--data={data}",
                          "--split=fractions(0.6, 0.2, 0.2)"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("devices: ")
    printed, trained = json.loads(lines[-1]), json.loads((run_dir.parent / "figures.json").read_text())
    assert set(printed) == set(trained)
    table = [line.split() for line in lines[-6:-1]]
    assert table[0] == ["accuracy", f"{printed['accuracy']:.4f}", f"{printed['intervals']['accuracy'][0]:.4f}", "to",
                        f"{printed['intervals']['accuracy'][1]:.4f}"]
    assert [" ".join(row[:-4]) for row in table] == [
        "accuracy", "balanced accuracy", "macro F1", "AUC", "calibration error (ECE)"]
    assert printed["accuracy"] == trained["accuracy"]
    assert printed["ece"] == pytest.approx(trained["ece"], abs=1e-5)


def test_the_folders_flagfile_trains_the_same_weights(run_dir, tmp_path):
    again = config.parse(["main.py", f"--flagfile={run_dir / 'config.cfg'}", f"--workdir={tmp_path}",
                          "--progress=none", "--explain=none"])
    assert again is not None
    train.run(again)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (run_dir, tmp_path))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["data"] == second["data"]


def test_training_again_in_a_finished_folder_only_measures(run_dir, data, capsys):
    before = json.loads((run_dir / "report.json").read_text())["weights_sha256"]
    lines = len((run_dir / "metrics.jsonl").read_text().splitlines())
    train.run(settings(f"--data={data}", "--split=fractions(0.6, 0.2, 0.2)", f"--workdir={run_dir}"))
    assert json.loads((run_dir / "report.json").read_text())["weights_sha256"] == before
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == lines
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


def test_predict_gives_a_row_for_each_image(run_dir, data, tmp_path):
    out = tmp_path / "out.csv"
    predict.run(settings("--mode=predict", f"--checkpoint={run_dir}", f"--data={data}", f"--predictions={out}"))
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"cells.npz#{index}" for index in range(96)]
    assert all(abs(sum(float(row[f"p{i}"]) for i in range(8)) - 1) < 1e-4 for row in rows)
    assert {row["name"] for row in rows} <= set(demo.CLASS_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_predict_takes_a_flat_folder_and_a_single_file(run_dir, tmp_path):
    images, _ = demo.render(3, seed=2, part="test", size=40)
    folder = tmp_path / "flat"
    folder.mkdir()
    for index, image in enumerate(images):
        keras.utils.save_img(folder / f"{index}.png", image, scale=False)
    results = []
    for source in (folder, folder / "1.png"):
        out = tmp_path / "out.csv"
        predict.run(settings("--mode=predict", f"--checkpoint={run_dir}", f"--data={source}", f"--predictions={out}"))
        results.append(out.read_text().splitlines()[1:])
    assert [line.split(",")[0] for line in results[0]] == ["0.png", "1.png", "2.png"]
    alone, among = results[1][0].split(","), results[0][1].split(",")
    assert alone[:3] == among[:3]
    np.testing.assert_allclose(np.array(alone[3:13], float), np.array(among[3:13], float), atol=1e-4)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_single_file_that_is_no_image_is_one_line(run_dir, tmp_path, content):
    path = tmp_path / "cell.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cell\.png"):
        predict.run(settings("--mode=predict", f"--checkpoint={run_dir}", f"--data={path}",
                             f"--predictions={tmp_path / 'o.csv'}"))


def test_a_dry_run_writes_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.run(settings(f"--data={data}", "--dry_run"))
    assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert out.startswith("devices: ")
    assert "runs/default" in out


def test_the_picture_shows_the_first_stages_images_and_what_they_are_mixed_of(data):
    mixed = settings(f"--data={data}", "--mix=cutmix(1.0)", "--stages=all(1, 1e-3, augment='') | all(1, 1e-3)")
    part = parts.load(mixed)["train"]
    images, titles = train._augmented(part, mixed)
    plain, names = train._augmented(part, dataclasses.replace(mixed, mix=""))
    assert set(names) <= set(demo.CLASS_NAMES)
    for image, own, title, name in zip(images, plain, titles, names, strict=True):
        kept = (image == own).all(axis=-1).mean()  # a box may hold pixels that are equal in both
        shares = dict(line.split("% ")[::-1] for line in title.splitlines()) if "\n" in title else {title: "100"}
        assert sum(map(int, shares.values())) == 100
        assert set(shares) <= set(demo.CLASS_NAMES)
        if len(shares) == 2:
            assert int(shares[name]) / 100 <= kept + 0.006
    assert any("\n" in title for title in titles)


def test_data_are_divided_by_default_and_explicit_sets_are_taken(data):
    default = parts.load(settings(f"--data={data}"))
    assert [len(default[part]) for part in ("train", "val", "test")] != [96, 0, 0]
    assert sum(len(part) for part in default.values()) == 96
    explicit = parts.load(settings(f"--data={data}", f"--val_data={data}"))
    assert {name: len(part) for name, part in explicit.items()} == {"train": 96, "val": 96}


def test_missing_pretrained_weights_stop_real_data_and_warn_on_the_demo(data, tmp_path, monkeypatch, capsys):
    tried = []

    def fit(given, *rest, **more):
        tried.append(given.weights)
        if given.weights == "imagenet":
            raise MissingWeights("no network and no cache")
        raise InterruptedError  # far enough

    monkeypatch.setattr(loop, "fit", fit)
    wanted = ("--model=mobilenet_v3_small", "--weights=imagenet")
    with pytest.raises(MissingWeights):
        train.run(settings(f"--data={data}", *wanted, f"--workdir={tmp_path / 'a'}"))
    monkeypatch.setattr(demo, "PART_SIZES", {"train": 16, "val": 8, "test": 8})
    with pytest.raises(InterruptedError):
        train.run(settings("--data=demo", *wanted, f"--workdir={tmp_path / 'b'}"))
    assert tried == ["imagenet", "imagenet", "none"]
    assert "warning" in capsys.readouterr().err
    assert "--weights=none" in (tmp_path / "b" / "config.cfg").read_text()
