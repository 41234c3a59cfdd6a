"""A small search end to end through the flags; and with a training that is made up, what the command does around it."""

import csv
import dataclasses
import json
import os
import pathlib
import signal
import tempfile
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from bloodcell import config
from bloodcell.commands import search
from bloodcell.data import demo
from bloodcell.errors import InputError, Stopped
from bloodcell.models import cnn
from bloodcell.search import objective

TINY = ("--mode=search", "--model=cnn", "--weights=none", "--image_size=16", "--batch_size=16", "--clean=none",
        "--stages=all(epochs=2, lr=1e-3)", "--progress=none", "--split=fractions(0.6, 0.4)")
SPACE = "lr=log(1e-4, 1e-2), batch_size=choice(8, 16), optimizer=choice('adamw', sgd(momentum=0.8))"


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", *TINY, *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A network of the same kind, which is built and traced sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "_CHANNELS", (16,))
        yield


@pytest.fixture
def tmp_path() -> Iterator[pathlib.Path]:
    """A folder in memory where there is one: a study syncs each of its writes, which a busy disk makes slow."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield pathlib.Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(80, seed=1, part="train", size=16)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> pathlib.Path:
    """A search of two trials; its output is beside it."""
    made = tmp_path_factory.mktemp("runs") / "search"
    search.run(settings(f"--data={data}", f"--search_space={SPACE}", "--search=random(trials=2)", f"--workdir={made}",
                        f"--report={made.parent / 'line.json'}"))
    return made


def made_up(monkeypatch, values) -> list[config.Config]:
    """Replaces the training: trials get `values` in order, or end with one where that is an error; returns flags."""
    seen: list[config.Config] = []

    def trained(own, runtime, parts, run_dir, watch):
        seen.append(own)
        value = values[len(seen) - 1]
        if isinstance(value, BaseException):
            raise value
        for epoch in (1, 2):
            watch({"epoch": epoch, "val_accuracy": value})
        return value, value

    monkeypatch.setattr(objective, "_train", trained)
    monkeypatch.setattr(objective, "_forget", lambda: None)  # it looks at everything that other tests have left
    monkeypatch.setattr(search.page, "page", lambda rows, *rest, **settings: "\n".join(row.line for row in rows))
    return seen


def test_the_folder_holds_what_is_promised(folder):
    assert {path.name for path in folder.iterdir()} == {
        "study.db", "trials.csv", "study.html", "best.cfg", "trials", "tensorboard", ".study.lock"}
    line = json.loads((folder.parent / "line.json").read_text())
    best, other = line["best_trial"], 1 - line["best_trial"]
    assert (line["trials"], line["complete"], line["pruned"], line["failed"]) == (2, 2, 0, 0)
    assert {path.name for path in (folder / "trials" / f"{other:04d}").iterdir()} == {"config.cfg", "metrics.jsonl"}
    kept = folder / "trials" / f"{best:04d}"
    assert {path.name for path in kept.iterdir()} == {"config.cfg", "metrics.jsonl", "model.json", "checkpoints"}
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["best.npz"]
    assert len((kept / "metrics.jsonl").read_text().splitlines()) == 2
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[best]["balanced_accuracy"]) == line["balanced_accuracy"] >= float(
        rows[other]["balanced_accuracy"])
    assert float(rows[best]["lr"]) == line["values"]["lr"]


def test_the_best_flagfile_is_valid_and_holds_the_best_values(folder, data):
    text = (folder / "best.cfg").read_text()
    line = json.loads((folder.parent / "line.json").read_text())
    assert text.startswith("# The best of 2 trials")
    assert f"balanced accuracy {line['balanced_accuracy']:.4f}" in text.splitlines()[0]
    parsed = config.parse(["main.py", f"--flagfile={folder / 'best.cfg'}"])
    assert parsed is not None
    config.validate(parsed)
    expected = dataclasses.replace(
        settings(f"--data={data}", "--mode=train"), stages=f"all(epochs=2, lr={line['values']['lr']!r})",
        batch_size=line["values"]["batch_size"], optimizer=line["values"]["optimizer"], recipe="best", progress="auto")
    assert parsed == expected


def test_the_kept_checkpoint_and_flags_give_the_figure_that_was_written(folder, data, tmp_path):
    line = json.loads((folder.parent / "line.json").read_text())
    parsed = config.parse(["main.py", f"--flagfile={folder / 'best.cfg'}", "--progress=none"])
    assert parsed is not None
    runtime = search._runtime(parsed)
    train, val = search.Images(settings(f"--data={data}", f"--search_space={SPACE}")).of(parsed).folds[0]()
    value, _ = objective._train(parsed, runtime, lambda: (train, val), tmp_path, lambda record: None)
    assert value == pytest.approx(line["balanced_accuracy"], abs=1e-9)


def test_tensorboards_hparams_have_the_space_and_each_trial(folder):
    found = {}
    for path in (folder / "tensorboard").rglob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME:
                    found[path.parent.name, value.tag] = plugin_data_pb2.HParamsPluginData.FromString(
                        value.metadata.plugin_data.content)
    space = found["tensorboard", metadata.EXPERIMENT_TAG].experiment
    assert [info.name for info in space.hparam_infos] == ["lr", "batch_size", "optimizer"]
    line = json.loads((folder.parent / "line.json").read_text())
    trial = found[f"{line['best_trial']:04d}", metadata.SESSION_START_INFO_TAG].session_start_info
    assert trial.hparams["lr"].number_value == line["values"]["lr"]
    assert trial.hparams["batch_size"].number_value == line["values"]["batch_size"]
    assert trial.hparams["optimizer"].string_value == line["values"]["optimizer"]


def test_the_same_command_again_trains_nothing_and_more_trials_go_on(folder, data, monkeypatch, capsys):
    seen = made_up(monkeypatch, [0.99])
    flags = (f"--data={data}", f"--search_space={SPACE}", f"--workdir={folder}")
    before = (folder / "best.cfg").read_text()
    search.run(settings(*flags, "--search=random(trials=2)"))
    assert not seen
    assert (folder / "best.cfg").read_text() == before
    search.run(settings(*flags, "--search=random(trials=3)"))
    assert len(seen) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["best_trial"] == 2


def test_a_trial_that_fails_is_a_line_and_the_search_goes_on(data, tmp_path, monkeypatch, capsys):
    import tensorflow as tf

    made_up(monkeypatch, [InputError("training: expected a finite loss, received nan"), 0.7, MemoryError(),
                          tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), float("nan")])
    search.run(settings(f"--data={data}", f"--search_space={SPACE}", "--search=random(trials=5)",
                        f"--workdir={tmp_path}"))
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["failed", "complete", "failed", "failed", "failed"]
    assert rows[0]["line"] == "training: expected a finite loss, received nan"
    assert "out of memory" in rows[2]["line"]
    assert "out of memory" in rows[3]["line"]
    assert "finite" in rows[4]["line"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["best_trial"] == 1
    assert "expected a finite loss" in (tmp_path / "study.html").read_text()


def test_a_search_whose_trials_all_fail_says_so_soon(data, tmp_path, monkeypatch):
    seen = made_up(monkeypatch, [InputError(f"no {number}") for number in range(20)])
    with pytest.raises(InputError, match=r"5 trials that failed, the last: no 4"):
        search.run(settings(f"--data={data}", f"--search_space={SPACE}", f"--workdir={tmp_path}"))
    assert len(seen) == search.MOST_FAILURES


def test_ctrl_c_keeps_what_is_done_and_the_same_command_tries_the_point_again(data, tmp_path, monkeypatch, capsys):
    flags = (f"--data={data}", f"--search_space={SPACE}", "--search=random(trials=2)", f"--workdir={tmp_path}")
    seen = made_up(monkeypatch, [0.5, Stopped(signal.SIGINT), 0.6])
    with pytest.raises(Stopped, match="1 of 2 trials are done and kept; the same command goes on"):
        search.run(settings(*flags))
    assert "trial 0" in (tmp_path / "best.cfg").read_text()
    assert (tmp_path / "study.html").is_file()
    search.run(settings(*flags))
    assert seen[2].stages == seen[1].stages
    assert "(trial 1 again, which was killed)" in capsys.readouterr().out
    with open(tmp_path / "trials.csv", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["complete", "killed", "complete"]


def test_folds_are_grouped_trained_each_and_averaged(data, tmp_path, monkeypatch, capsys):
    values, parts = [0.5, 0.7, 0.9], []

    def trained(own, runtime, made, run_dir, watch):
        train, val = made()
        parts.append((set(train.ids.tolist()), set(val.ids.tolist())))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "val_accuracy": values[len(parts) - 1]}) + "\n")
        return values[len(parts) - 1], values[len(parts) - 1]

    monkeypatch.setattr(objective, "_train", trained)
    monkeypatch.setattr(objective, "_forget", lambda: None)
    search.run(settings(f"--data={data}", "--search_space=batch_size=choice(8)", "--search=random(trials=1, folds=3)",
                        f"--workdir={tmp_path}", "--split="))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["balanced_accuracy"] == pytest.approx(0.7)
    assert line["folds"] == values
    assert set.union(*(val for _, val in parts)) == set(range(80))
    assert sum(len(val) for _, val in parts) == 80
    assert all(not train & val and len(train | val) == 80 for train, val in parts)
    lines = [json.loads(each) for each in (tmp_path / "trials/0000/metrics.jsonl").read_text().splitlines()]
    assert [(each["fold"], each["val_accuracy"]) for each in lines] == [(1, 0.5), (2, 0.7), (3, 0.9)]


def test_images_are_read_once_for_each_size(data, tmp_path, monkeypatch):
    reads = []
    load = search.parts.load

    def noted(own):
        reads.append(own.image_size)
        return load(own)

    monkeypatch.setattr(search.parts, "load", noted)
    made_up(monkeypatch, [0.5] * 6)
    search.run(settings(f"--data={data}", "--search_space=image_size=choice(16, 32), batch_size=choice(8, 16, 32)",
                        "--search=grid", f"--workdir={tmp_path}"))
    assert reads == [16, 32]


def test_a_dry_run_trains_a_batch_and_writes_nothing(data, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(search.loop, "fit", lambda own, *rest: seen.append(own))
    search.run(settings(f"--data={data}", f"--search_space={SPACE}", f"--workdir={tmp_path / 'none'}", "--dry_run"))
    assert capsys.readouterr().out.splitlines()[-1] == "dry run: done"
    assert list(tmp_path.iterdir()) == []
    assert [(own.dry_run, own.mode, own.batch_size, own.stages) for own in seen] == [
        (True, "train", 8, "all(epochs=2, lr=0.0001)")]


def test_the_folder_of_a_training_is_not_searched_in(data, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="holds a training"):
        search.run(settings(f"--data={data}", f"--search_space={SPACE}", f"--workdir={tmp_path}"))
