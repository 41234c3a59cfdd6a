"""An evaluation's report: where it is written, what it says of the run, and the command that does it again."""

import html
import json
import os
import pathlib
import re
import shlex
import types
from typing import Any

import made_report
import numpy as np
import pytest

from bloodcell import config
from bloodcell.commands import classifying, reporting
from bloodcell.commands.measuring import Measured
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import novelty

FEATURES = np.random.default_rng(0).normal(size=(made_report.COUNT, 8)).astype(np.float32)
FEATURES[:10] *= -1  # of class 0, named rightly


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"name": "cnn", "head": "", "image_size": 24,
                                                   "class_names": made_report.NAMES}))
    (folder / "config.cfg").write_text("--augment=<flip>\n")
    (folder / "report.html").write_text("the run's own")
    return folder


def written(run: pathlib.Path, *arguments: str, runs: int = 1) -> pathlib.Path:
    flags = config.parse(["main.py", "--mode=evaluate", f"--checkpoint={run}", "--data=cells.npz", *arguments])
    assert flags is not None
    reporting.check(flags)
    images = ImageSet(made_report.images(), made_report.labels(), np.arange(made_report.COUNT), made_report.NAMES,
                      "cells.npz", made_report.files())
    outputs = types.SimpleNamespace(seconds=np.array([[2.0, 3.0]]), features=(FEATURES,) * runs)
    members = [types.SimpleNamespace(temperature=1.0 + place / 2) for place in range(runs)]
    found: Any = types.SimpleNamespace(members=members)
    loaded = classifying.Loaded(found, (run,) * runs, {}, ("a" * 64,) * runs)
    runtime = types.SimpleNamespace(devices="CPU", precision="float32", jit="augment")
    measured = Measured(made_report.figures(), made_report.probabilities(), outputs, [])  # type: ignore[arg-type]  # stubs
    return reporting.evaluation(flags, runtime, loaded, measured, images=images, part="test")  # type: ignore[arg-type]


def test_it_goes_beside_the_runs_own_report_which_stays(run):
    assert written(run) == run / "evaluation.html"
    assert sorted(path.name for path in run.iterdir()) == ["config.cfg", "evaluation.html", "evaluation.json",
                                                           "model.json", "report.html"]
    assert (run / "report.html").read_text() == "the run's own"
    page, content = (run / "evaluation.html").read_text(), json.loads((run / "evaluation.json").read_text())
    assert "187 images of\ncells.npz, by cnn" in page
    assert "--augment=&lt;flip&gt;" in page  # the flags that trained it
    assert content["images_per_second"] == pytest.approx(made_report.COUNT / 5)
    assert content["confusion"] == [list(row) for row in made_report.CONFUSION]
    assert content["temperature"] == ""


def test_it_goes_where_workdir_says(run, tmp_path):
    assert written(run, f"--workdir={tmp_path / 'new' / 'folder'}") == tmp_path / "new" / "folder" / "evaluation.html"
    assert not (run / "evaluation.html").exists()
    assert (tmp_path / "new" / "folder" / "evaluation.json").exists()


def test_the_command_does_the_same_again(run):
    written(run, "--tta=flips", "--batch_size=7", f"--workdir={run}")
    page = (run / "evaluation.html").read_text()
    command = re.sub("<[^>]*>", "", page.split('<pre class="command">')[1].split("</pre>", maxsplit=1)[0])
    flags = config.parse(shlex.split(html.unescape(command))[1:])
    assert flags == config.parse(["main.py", "--mode=evaluate", f"--checkpoint={run}", "--data=cells.npz",
                                  "--tta=flips", "--batch_size=7"])


def test_several_runs_are_named_once_and_have_their_temperatures(run):
    written(run, runs=3)
    content = json.loads((run / "evaluation.json").read_text())
    assert content["model"] == "the mean of 3 networks (cnn)"
    assert content["temperature"] == "1.000, 1.500, 2.000"
    assert "temperature 1.000, 1.500, 2.000" in (run / "evaluation.html").read_text()


def test_it_says_how_many_images_are_novel_to_a_run_that_can_tell(run):
    known = [novelty.Known("", 0.99, FEATURES[10:])]
    novelty.Novelty.fit([("", FEATURES[10:])], known, weights_sha256="a" * 64, k=1).save(run)
    written(run)
    content = json.loads((run / "evaluation.json").read_text())
    # All but ten lie in the bank themselves, at distance 0.
    assert content["novelty"]["flagged_here"] == pytest.approx(10 / made_report.COUNT, abs=0.02)
    assert content["novelty"]["flagged_mistakes"] == pytest.approx(0, abs=0.1)
    assert content["novelty"]["training_vectors"] == made_report.COUNT - 10
    assert "Images that are no blood cell" in (run / "evaluation.html").read_text()


def test_a_folder_that_cannot_be_written_is_said_before_the_work(run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot be written; try --workdir=FOLDER"):
        written(run)
