"""A suite says which case of how many runs and how long it takes; a quick run is small and says that it is one."""

import json
import pathlib
import re
import shlex
import time

import pytest

from benchmarks import SIDE, ops, ours, policies, progress, report, timing
from benchmarks import __main__ as command
from benchmarks.progress import Progress
from bloodcell import augment
from bloodcell.data import demo


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_count_cases_and_say_how_long_it_takes(clock, capsys):
    with Progress("ops", terminal=False) as tell:
        for case in progress.each(["a", "b", "c", "d"], tell):
            clock[0] += 30
            tell(f"{case} ran")
    assert capsys.readouterr().err.splitlines() == [
        "[ops 1/4, 0:30] a ran", "[ops 2/4, 1:00, ETA 3:00] b ran", "[ops 3/4, 1:30, ETA 1:30] c ran",
        "[ops 4/4, 2:00, ETA 0:40] d ran"]


def test_cases_of_a_second_kind_are_counted_on(clock, capsys):
    with Progress("roofline", terminal=False) as tell:
        for kinds in (["a", "b"], ["c"]):
            for case in progress.each(kinds, tell):
                clock[0] += 10
                tell(case)
    assert capsys.readouterr().err.splitlines() == [
        "[roofline 1/2, 0:10] a", "[roofline 2/2, 0:20, ETA 0:20] b", "[roofline 3/3, 0:30, ETA 0:15] c"]


def test_a_race_reports_its_turns_now_and_then(clock, monkeypatch, capsys):
    monkeypatch.setattr(time, "perf_counter", time.monotonic)

    def run(step):
        clock[0] += 10.0

    with Progress("policies", terminal=False) as tell:
        timing.race("policies", [timing.Contestant("v2s", "xla", 10, run)], samples=4, tell=tell)
    lines = capsys.readouterr().err.splitlines()
    assert "[policies 1/1, 0:20] v2s, xla: first call 10.00 s, then 10.000 s" in lines
    assert "[policies 1/1, 0:40, ETA 0:20] v2s (turn 3 of 4)" in lines
    assert len(lines) == 2  # not a line a turn


def test_on_a_terminal_one_line_moves_and_only_between_runs(clock, capsys):
    with Progress("ops", terminal=True) as tell:
        for case in progress.each(["flip", "gray"], tell):
            drawn = len(capsys.readouterr().err)
            time.sleep(0.3)  # a timed run
            assert len(capsys.readouterr().err) == 0
            assert drawn
            progress.part(tell, 0.5, f"{case} (turn 3 of 6)")
            assert "(turn 3 of 6)" in capsys.readouterr().err
            progress.detail(tell, "first call")
            assert len(capsys.readouterr().err) == 0
            tell("bandwidth: 9 GB/s")
            assert "bandwidth: 9 GB/s" in capsys.readouterr().err


def test_whoever_takes_plain_lines_gets_them():
    told: list[str] = []
    assert list(progress.each("ab", told.append)) == ["a", "b"]
    progress.part(told.append, 0.5, "half")
    progress.detail(told.append, "first call")
    assert told == ["first call"]


def test_a_quick_run_takes_a_few_ops_and_a_policy(monkeypatch):
    assert set(ops.QUICK) < set(augment.REGISTRY)
    assert set(policies.QUICK) < set(policies.POLICIES)
    asked = []

    def cells(count):
        asked.append(count)
        return demo.render(2, seed=0, size=SIDE)[0]

    monkeypatch.setattr(ours, "cells", cells)
    monkeypatch.setattr(ops, "race", lambda suite, contestants, **_: [each.case for each in contestants])
    assert set(ops.run({}, samples=1, seconds=1.0, only="", tell=print, quick=True)["rows"]) == set(ops.QUICK)
    assert asked == [64]


def test_a_quick_result_says_so_and_never_takes_the_place_of_a_full_one(monkeypatch, tmp_path):
    given = []
    row = {"suite": "ops", "case": "cutout", "implementation": "xla", "compile_seconds": 0.1, "samples": 3,
           "images_per_second": {"median": 2.0, "q1": 1.0, "q3": 3.0}}

    def run(_, **how):
        given.append(how)
        return {"rows": [row], "batch": 64}

    monkeypatch.setattr(ops, "run", run)
    arguments = ["ops", "--quick", "--only=^cutout$", f"--results={tmp_path}"]
    for _ in range(2):  # a quick one may be replaced
        command.main(arguments)
    result = json.loads((tmp_path / "ops.json").read_text())
    assert result["quick"] is True
    assert [(how["quick"], how["samples"], how["seconds"]) for how in given] == [(True, 3, 0.3)] * 2
    assert result["command"] == "python -m benchmarks ops --quick --samples=3 --only='^cutout$'"
    assert "With `--quick`" in (tmp_path / "README.md").read_text()
    report.write_json(tmp_path / "ops.json", {**result, "quick": False})
    before = (tmp_path / "ops.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert str(stopped.value.code).startswith("error: --quick: expected a folder without results that took longer")
    assert (tmp_path / "ops.json").read_bytes() == before


def test_peers_are_described_by_the_files_that_run_them(tmp_path):
    report.write_json(tmp_path / "ops.json", {
        "command": "c", "date": "2026-01-01", "hardware": {"cpu": "A CPU", "cores": 2, "gpus": []}, "batch": 8,
        "side": 96, "versions": {"keras": "3.99"}, "missing": {}, "peers": {}, "rows": [],
        "strengths": {"posterize": 6.4}})
    report.write(tmp_path)
    page = (tmp_path / "peers.md").read_text()
    assert "Measured: 3.99 (`keras`)." in page
    assert "| `posterize` | 6.4 | `lambda bits: layers.RandomPosterization((round(bits),) * 2, **_RANGE)` |" in page
    assert "| `('RandAugment(num_ops=2)', lambda: layers.RandAugment(num_ops=2, **_RANGE))` |" in page
    assert "With `_RANGE = {'value_range': (0, 255)}`" in page
    assert "RandAugment` draws its ops once a batch" in page


def test_every_documented_command_is_one():
    root = pathlib.Path(command.__file__).parents[1]
    pages = ("README.md", "BUILD.md", "benchmarks/README.md", "docs/performance.md", "docs/reliability.md")
    lines = [line for page in pages
             for line in re.findall(r"python -m benchmarks ((?:[^`|#\n]|\|)*)", (root / page).read_text())]
    assert len(lines) > 8
    for line in lines:
        command._arguments([re.sub(r"[{,].*", "", word) for word in shlex.split(line) if word != "..."])
