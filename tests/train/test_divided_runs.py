"""A run keeps how its data was divided, refuses to go on with another division, and trains on the rows it says."""

import json
import shutil
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.commands import evaluate, train
from bloodcell.data import division
from bloodcell.errors import InputError
from bloodcell.train import checkpoints, loop
from bloodcell.train.strategy import Runtime

RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "off", "CPU")
SPLIT = "fractions(0.6, 0.2, 0.2)"


@pytest.fixture
def source(tmp_path, make_images):
    images = make_images(90, size=16)
    keep = np.r_[0:60, 60:90:3]  # 30, 20 and 20 of the classes
    np.savez(tmp_path / "cells.npz", images=images.images[keep], labels=images.labels[keep])
    return tmp_path / "cells.npz"


@pytest.fixture
def make_run(tmp_path, tiny, make_config, source):
    def make(**flags):
        return make_config(**{"data": str(source), "split": SPLIT, "workdir": str(tmp_path / "run"), "image_size": 16,
                              "model": "plain", "stages": "all(epochs=1, lr=1e-2)", "strategy": "none",
                              "precision": "float32", "jit": "off", **flags})
    yield make
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def finished(shared, make_run, tmp_path):
    """A finished run's folder, a copy that the test may spoil; it is trained once."""
    if not (shared / "run").exists():
        train.run(make_run(workdir=str(shared / "run")))
    return shutil.copytree(shared / "run", tmp_path / "run")


def test_the_division_is_saved_and_evaluation_uses_it(tmp_path, make_run, finished, source, capsys):
    saved = json.loads((finished / "split.json").read_text())
    assert (saved["spec"], saved["seed"]) == (SPLIT, 3)
    kept = division.read(finished)
    ids = np.concatenate([part.ids for part in kept.parts.values()])
    np.testing.assert_array_equal(np.sort(ids), np.arange(70))
    assert [len(part.ids) for part in kept.parts.values()] == [saved["parts"][name]["images"]
                                                               for name in ("train", "val", "test")]
    trained = json.loads((finished / "report.json").read_text())
    capsys.readouterr()
    for split in (SPLIT, "run"):
        evaluate.run(make_run(mode="evaluate", checkpoint=str(finished), workdir="", split=split))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == trained["accuracy"]
    with np.load(source) as data:
        np.savez(source, images=255 - data["images"], labels=data["labels"])
    with pytest.raises(InputError, match="--split=run expected the data that") as caught:
        evaluate.run(make_run(mode="evaluate", checkpoint=str(finished), workdir="", split="run"))
    assert "\n" not in str(caught.value)


def test_a_run_refuses_another_division_and_goes_on_with_its_own(make_run, finished, source, tmp_path):
    before = (finished / "split.json").read_bytes()
    with np.load(source) as data:
        np.savez(tmp_path / "recoloured.npz", images=data["images"] ^ 1, labels=data["labels"])
        np.savez(tmp_path / "shorter.npz", images=data["images"][:65], labels=data["labels"][:65])
    changes: list[tuple[dict[str, Any], str]] = [
        ({"split": "kfold(5)"}, r"the split \(was 'fractions\(0.6, 0.2, 0.2\)', now 'kfold\(5\)'\).*the test part"),
        ({"split": "two_copies(0.5, 0.5, val=0.2, test=0.2)"}, "the split"),
        ({"seed": 4}, r"--seed \(was 3, now 4\).*the train part"),
        ({"data": str(tmp_path / "recoloured.npz")}, "the pixels or labels of the test part"),
        ({"data": str(tmp_path / "shorter.npz")}, r"the train part \(was 42 images, now 39")]
    for change, said in changes:
        with pytest.raises(InputError, match=said) as caught:
            train.run(make_run(**change))
        assert "\n" not in str(caught.value)
    train.run(make_run())
    assert (finished / "split.json").read_bytes() == before


def test_a_damaged_division_and_a_dry_run(make_run, finished, tmp_path):
    train.run(make_run(dry_run=True, workdir=str(tmp_path / "dry")))
    assert not (tmp_path / "dry").exists()
    for text in ("{", "[]", '{"spec": "", "seed": 0, "parts": {"train": {"ids": "0-99999999999", "images": 3}}}'):
        (finished / "split.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            train.run(make_run())


def test_ids_are_written_as_ranges_and_read_back():
    assert division.ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"
    for ids in ([], [4], [3, 2, 1, 9, 10], [2**40, 2**40 + 1]):
        np.testing.assert_array_equal(division.from_ranges(division.ranges(np.array(ids, np.int64)), 10), ids)


@pytest.mark.parametrize(("flags", "rows"), [
    ({"balance": "synthetic(21, policy='flip')"}, (21, 21, 21)),
    ({"split": "two_copies(0.5, 0.5, val=0.2, test=0.2)"}, (36, 24, 24))])
def test_the_run_says_and_reports_the_rows_it_trains_on(make_run, tmp_path, capsys, flags, rows):
    train.run(make_run(**flags))
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["data"]["training_rows"]
    assert tuple(each["after"] for each in found["per_class"].values()) == rows
    assert tuple(each["before"] for each in found["per_class"].values()) == (18, 12, 12)
    assert f"training rows an epoch: 42 -> {sum(rows)}" in said
    steps = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert steps == -(-sum(rows) // 8)
    assert sum(part["images"] for part in report["data"]["parts"].values()) == 70  # the parts are as they were


class Killed(BaseException):
    """What a kill looks like from inside."""


def test_a_balanced_run_that_was_killed_has_the_same_bits(tmp_path, tiny, make_images, make_config):
    config = make_config(model="plain", stages="all(epochs=2, lr=2e-2)", augment="invert@0.5",
                         split="two_copies(0.6, 0.5)", balance="sampler")
    learn, val = make_images(21).subset(np.r_[0:12, 12:21:3]), make_images(12, seed=1)
    whole = loop.fit(config, RUNTIME, learn, val, tmp_path / "whole")

    def stop(record):
        raise Killed

    with pytest.raises(Killed):
        loop.fit(config, RUNTIME, learn, val, tmp_path / "cut", on_epoch=stop)
    resumed = loop.fit(config, RUNTIME, learn, val, tmp_path / "cut")
    assert checkpoints.weights_sha256(resumed) == checkpoints.weights_sha256(whole)
