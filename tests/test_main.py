"""Bad input ends with exit status 1 and one line on stderr, never with a stack trace."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def call(capture, *arguments: str) -> tuple[int, str, list[str]]:
    """Runs main in this process; returns status, stdout and the lines of stderr, from `capfd` or `capsys`."""
    sys.path.insert(0, str(ROOT))
    try:
        main = importlib.import_module("main").main
    finally:
        sys.path.remove(str(ROOT))
    capture.readouterr()
    status = main(["main.py", *arguments])
    captured = capture.readouterr()
    # TensorFlow's own log, where this test is the first to start it; a process that begins with main is spared.
    own = re.compile(r"[EWI]0000 00:00:|WARNING: All log messages before absl")
    return status, captured.out, [line for line in captured.err.splitlines() if not own.match(line)]


def refused(capfd, *arguments: str) -> str:
    status, _, lines = call(capfd, *arguments)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


SMALL = ("--model=mobilenet_v3_small", "--weights=none", "--image_size=32")


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> str:
    """A set of few images: with --data=demo a training renders some thousands before it looks where it writes."""
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(32) % 4)
    return f"--data={path}"


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--bacth_size=3"], "did you mean 'batch_size'?"),
    (["left_over"], "left_over"),
    (["--data=nowhere.npz", *SMALL], "nowhere.npz"),
    (["--data=nowhere", *SMALL], "nowhere"),
    (["--augment=rotat(30)"], "did you mean 'rotate'?"),
    (["--augment=rotate(1000)"], "rotate"),
    (["--model=efficientnet_lite"], "did you mean"),
    (["--weights=nowhere.h5"], "nowhere.h5"),
    (["--mode=evaluate", "--checkpoint=nowhere"], "nowhere"),
    (["--mode=predict", "--checkpoint=nowhere", "--predictions=out.csv"], "nowhere"),
    (["--mode=predict", "--checkpoint=nowhere", "--predictions=no/folder/out.csv"], "no/folder/out.csv"),
])
def test_bad_input_is_one_line_and_status_1(arguments, expected, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capfd, *arguments)


def test_a_workdir_or_a_report_that_cannot_be_written_is_one_line(capfd, cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    for mode in ("train", "audit"):  # said before anything is read
        assert "--workdir" in refused(capfd, *SMALL, f"--mode={mode}", "--data=there_is_none.npz",
                                      f"--workdir={tmp_path / 'file' / 'run'}")
    assert "no/folder/out.json" in refused(capfd, *SMALL, cells, "--report=no/folder/out.json")


def test_damaged_data_are_one_line(capfd, tmp_path):
    whole, cut = tmp_path / "whole.npz", tmp_path / "cut.npz"
    np.savez(whole, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))
    cut.write_bytes(whole.read_bytes()[:300])
    assert "cut.npz" in refused(capfd, *SMALL, f"--data={cut}", f"--workdir={tmp_path / 'run'}")


def test_help_says_every_flag_and_ends_well(capfd):
    status, out, lines = call(capfd, "--help")
    assert status == 0
    assert not lines
    assert "--flagfile" in out
    assert "--batch_size" in out
    assert "rotate(" in out


def test_an_interrupt_is_one_line_and_status_130(capfd, monkeypatch):
    from bloodcell import config

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "validate", interrupted)
    status, _, lines = call(capfd)
    assert (status, len(lines)) == (130, 1)


def test_the_program_itself_prints_one_line_without_tensorflows_chatter(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, str(ROOT / "main.py"), "--augment=rotat(30)"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_a_users_mistake_within_a_stage_of_tf_data_is_one_line_too(capsys, monkeypatch):
    """A shard that goes while a training reads it: the error comes out of TensorFlow, as an error of its own."""
    import tensorflow as tf

    from bloodcell.commands import train
    from bloodcell.errors import InputError

    def reads(_):
        def gone(number):
            raise InputError("x.tfrecord: expected a file, received none; try again")
        for _ in tf.data.Dataset.range(3).map(lambda number: tf.numpy_function(gone, [number], tf.int64)):
            pass

    monkeypatch.setattr(train, "run", reads)
    status, _, lines = call(capsys, *SMALL)
    # Not the file descriptor: TensorFlow's own log, which a process that starts with main is spared, may come into the
    # middle of the line there.
    assert (status, lines) == (1, ["error: x.tfrecord: expected a file, received none; try again"])
    monkeypatch.setattr(train, "run", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(capsys, *SMALL)
