"""Somebody is always told what is going on."""

import re

import pytest

from bloodcell.train import progress
from bloodcell.train.progress import Progress


def follow(shown):
    with shown:
        shown.where("stage 1/1 all, epoch 1/2")
        shown.compiling()
        shown.advance(1, 0.0, 2.0)
        shown.advance(4, 123.0, 1.5)
        shown.validating()
        shown.say("epoch 1 done")


def test_lines_say_at_once_that_the_step_compiles(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    follow(Progress("auto", total_steps=10))  # pytest's captured stdout is no terminal
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage 1/1 all, epoch 1/2: compiling the step..."
    assert re.search(r"step 5/10  123 images/s  loss 1\.5000  ETA 0:00$", lines[2])
    assert lines[-1] == "epoch 1 done"


def test_a_line_comes_now_and_then_not_each_time(capsys):
    shown = Progress("lines", total_steps=1000)
    for _ in range(1000):
        shown.advance(1, 1.0, 1.0)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_bar_shows_speed_loss_and_time_left(capsys):
    follow(Progress("bar", total_steps=10))
    out = capsys.readouterr().out
    assert "epoch 1 done" in out
    assert "50%" in out


def test_none_is_silent(capsys):
    follow(Progress("none", total_steps=10))
    assert capsys.readouterr().out == ""


def test_time_left_comes_from_the_speed_since_compilation(monkeypatch):
    now = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    shown = Progress("none", total_steps=3700 * 2 + 15)
    shown.advance(5, 1.0, 1.0)  # the clock starts after the first look
    shown.advance(10, 1.0, 1.0)
    assert shown._eta(110.0) == "2:03:20"
    shown.skip(7400)
    assert shown._eta(110.0) == "0:00"


@pytest.mark.parametrize("done", [0, 5])
def test_a_resumed_run_counts_on(capsys, done):
    Progress("lines", total_steps=10, done_steps=done).advance(1, 1.0, 1.0)
    assert f"step {done + 1}/10" in capsys.readouterr().out
