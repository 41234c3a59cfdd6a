"""Replicas in processes of their own: they share the batch, exchange what they should, and are summed up honestly."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
import types
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import charts_scaling, page_scaling, replicas, report, scaling
from benchmarks.replicas import REDUCED, REDUCTION, UNREDUCED, Program
from benchmarks.timing import Contestant

# Two logical devices train a layer on pixels, with and without exchange; prints what there is to know.
_TWO_REPLICAS = """
import json
import keras
import numpy as np
import tensorflow as tf
from benchmarks import SIDE, replicas, training
from benchmarks.replicas import REDUCED, REDUCTION, UNREDUCED, Program
from bloodcell import models

models.build = lambda *_, num_classes, **__: keras.Sequential(
    [keras.Input((SIDE, SIDE, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.BatchNormalization(),
     keras.layers.Dense(num_classes)])
built, rows = [], []
build, divided = training.build, training.divided
training.build = lambda *args, **given: built.append(build(*args, **given)) or built[-1]


def watched(batch, runtime):
    parts = divided(batch, runtime)
    rows.append([part.numpy().tolist() for part in runtime.strategy.experimental_local_results(parts["id"])])
    return parts


training.divided = watched
devices, runs = replicas._build(2, [Program("layer", "", 8, 1, what) for what in (REDUCED, UNREDUCED, REDUCTION)])
for run in runs:
    run()
same = []
for each in built:
    copies = [[value.numpy() for value in each.runtime.strategy.experimental_local_results(variable.value)]
              for variable in each.model.variables]
    same.append([bool(np.array_equal(*pair)) for pair in copies])
print(json.dumps({"devices": devices, "rows": rows, "same": same}))
"""


def test_two_replicas_divide_the_batch_and_stay_equal_only_where_they_exchange():
    done = subprocess.run([sys.executable, "-c", _TWO_REPLICAS], check=False, text=True, capture_output=True,
                          cwd=pathlib.Path(replicas.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == "CPU as 2 logical devices"
    assert found["rows"] == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2
    reduced, unreduced = found["same"]
    assert all(reduced)
    assert not all(unreduced)


def _python(monkeypatch, tmp_path, text):
    """Lets a script stand for Python: what a process says is the test's."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{text}")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_process_runs_what_its_turn_asks_for_and_nothing_before(monkeypatch, tmp_path):
    log = tmp_path / "log"
    _python(monkeypatch, tmp_path, f"""
import json, sys
settings = json.loads(sys.argv[-1])
print(json.dumps({{"devices": str(settings["replicas"])}}), flush=True)
for line in sys.stdin:
    open({str(log)!r}, "a").write(settings["programs"][int(line)]["what"] + ";")
    print("{{}}", flush=True)
""")
    programs = [Program("network", "", 8, 2, what) for what in (REDUCED, UNREDUCED)]
    with replicas.start(2, programs) as two:
        assert two.devices == "2"
        assert not log.exists()
        contestant = two.contestant("case", "2 replicas", programs[1], 1)
        assert contestant.images == 16
        contestant.run(0)
        assert log.read_text() == "not reduced;"
        two.run(0)
        assert log.read_text() == "not reduced;reduced;"
        process = two._process
    assert process.poll() is not None


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    _python(monkeypatch, tmp_path, "import sys\nsys.exit('out of memory')\n")
    with pytest.raises(RuntimeError, match="4 replicas: the process ended: out of memory"), replicas.start(4, []):
        pass


def test_replicas_that_a_machine_has_no_gpu_for_are_left_out_and_named(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(replicas, "own_devices", lambda: 2)
    assert replicas.possible((1, 2, 4), told.append) == [1, 2]
    assert told == ["4 replicas: expected as many GPUs, found 2; left out"]
    monkeypatch.setattr(replicas, "own_devices", lambda: 0)
    assert replicas.possible((1, 2, 4), told.append) == [1, 2, 4]


def _row(case, name, rate, **more: Any):
    return {"suite": "scaling", "case": case, "implementation": name, "compile_seconds": 1.0, "samples": 3,
            "images_per_second": {"median": rate, "q1": rate, "q3": rate}, **more}


def _part(median, q1, q3):
    return {"part_of_baseline": {"median": median, "q1": q1, "q3": q3}}


ROWS = [_row("weak, net", "1 replica", 100.0), _row("weak, net", "2 replicas", 90.0, **_part(0.9, 0.88, 0.94)),
        _row("weak, net, all-reduce of 2", REDUCED, 90.0, **_part(0.95, 0.9, 0.97)),
        _row("weak, net, all-reduce of 2", UNREDUCED, 95.0), _row("weak, net, all-reduce of 2", REDUCTION, 3000.0)]


def test_efficiency_is_held_against_what_the_devices_allow():
    one, two = scaling.summary(ROWS, own_devices=False)
    assert (one["replicas"], one["kept"]["median"], one["efficiency"]["median"]) == (1, 1.0, 1.0)
    assert "all_reduce" not in one
    assert (two["best"], two["kept"]["median"], two["efficiency"]["median"]) == (1, 0.9, 0.9)
    assert two["all_reduce"] == {"median": 0.05, "q1": 0.03, "q3": 0.1}
    assert two["alone"] == 0.03  # 90 images take 1 s to train on, and 0.03 s to exchange after
    own = scaling.summary([ROWS[0], _row("weak, net", "2 replicas", 180.0, **_part(1.8, 1.7, 1.9))], own_devices=True)
    assert (own[1]["best"], own[1]["efficiency"]) == (2, {"median": 0.9, "q1": 0.85, "q3": 0.95})


@pytest.fixture
def pretended(monkeypatch):
    """No process is started; returns what they would have been asked for."""
    asked: list[tuple[int, list[Program]]] = []

    @contextlib.contextmanager
    def start(count, programs):
        asked.append((count, programs))
        yield types.SimpleNamespace(devices=f"{count} devices", contestant=lambda case, name, program, number: (
            Contestant(case, name, program.batch, lambda _: time.sleep(0.002))))

    monkeypatch.setattr(replicas, "start", start)
    monkeypatch.setattr(replicas, "own_devices", lambda: 0)
    monkeypatch.setattr(scaling, "race", _race)
    return asked


def _race(suite, contestants, *, baseline, **_):
    return [_row(each.case, each.implementation, 50.0, **({} if each.implementation == baseline else
                                                          _part(0.9, 0.8, 1.0))) for each in contestants]


def test_weak_scaling_gives_each_replica_a_batch_and_strong_scaling_divides_one(pretended, tmp_path):
    command.main(["scaling", "--only=mobilenet", f"--json={tmp_path / 'out.json'}",
                  f"--results={tmp_path / 'results'}"])
    assert [(count, [(program.batch, program.what) for program in programs]) for count, programs in pretended] == [
        (count, [(batch, what) for what in (REDUCED, UNREDUCED, REDUCTION)[:1 if count == 1 else 3]])
        for batches in ((32, 64, 128), (64, 64, 64)) for count, batch in zip((1, 2, 4), batches, strict=True)]
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(each["case"], each["replicas"]) for each in result["scaling"]] == [
        (f"{kind}, mobilenet_v3_small", count) for kind in ("weak", "strong") for count in (1, 2, 4)]
    assert result["devices"] == {"1": "1 devices", "2": "2 devices", "4": "4 devices"}
    assert not any("part_of_baseline" in row for row in result["rows"] if row["implementation"] == REDUCTION)
    page = (tmp_path / "results" / "README.md").read_text()
    assert "They share the cores" in page
    assert "| `weak, mobilenet_v3_small` | 2 | 50 | 90.0% | 90.0% (80.0% to 100.0%) | 10.0% (0.0% to 20.0%) |" in page
    assert (tmp_path / "results" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_run_keeps_the_exchange_and_cuts_the_cases(pretended):
    found = scaling.run({}, samples=1, seconds=1.0, only="", tell=print, quick=True)
    assert [count for count, _ in pretended] == [1, 2]
    assert "all_reduce" in found["scaling"][-1]


def test_page_and_chart_take_what_there_is():
    def table(head, rows):
        return "\n".join(map(" | ".join, [head, *rows]))

    assert page_scaling.section({"scaling": []}, table) == []
    whole = {"scaling": scaling.summary(ROWS, own_devices=True), "devices": {"2": "2 x GPU"}}
    assert "Each has a device of its own" in page_scaling.section(whole, table)[0]
    assert charts_scaling.kept(whole).axes
    assert charts_scaling.kept({"scaling": scaling.summary(ROWS[:1], own_devices=False)}).axes
    assert report.SECTIONS["scaling"](whole)
