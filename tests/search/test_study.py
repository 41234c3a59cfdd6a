"""Trials in a study: what is drawn, what a resume counts, what happens to killed trials, and who shares them."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import optuna
import pytest
import scipy.stats

from bloodcell.errors import InputError
from bloodcell.search import methods, sampling, space
from bloodcell.search.study import FILE, MOST_TRIES, Study, Trial

SPACE = "lr=log(1e-5, 1e-1), x=uniform(-1.0, 1.0)"


def opened(folder, searched=SPACE, method="random(trials=6)", *, pruning=None, seed=0, identity=None) -> Study:
    return Study(folder, space.parse(searched), methods.parse(method), pruning, seed=seed, identity=identity or {})


# In memory where there is one: a study syncs each of its writes, which a busy disk makes slow.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def tmp_path() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield pathlib.Path(folder)


# Takes its part of one search, then is killed in the second trial of another.
OTHER = """
import os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[1])
from bloodcell.search import methods, space
from bloodcell.search.study import Study
def opened(name, method):
    return Study(pathlib.Path(sys.argv[2]) / name, space.parse(sys.argv[3]), methods.parse(method), None, seed=0,
                 identity={})
study = opened("shared", "tpe(trials=8, startup=4)")
print("ready", flush=True)
own = []
while (trial := study.claim()) is not None:
    time.sleep(0.05)
    own.append(trial.number)
    trial.finish(trial.point["x"])
print(*own)
study = opened("killed", "random(trials=3)")
study.claim().finish(0.5)
trial = study.claim()
(trial.folder / "checkpoints").mkdir()
print(trial.number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def other() -> Iterator[tuple[pathlib.Path, list[int], list[int]]]:
    """The folder of another process's searches; which trials of the shared one were ours, and which were its."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = pathlib.Path(name)
        with subprocess.Popen([sys.executable, "-c", OTHER, os.getcwd(), name, SPACE], stdout=subprocess.PIPE,
                              text=True) as process:
            assert process.stdout is not None
            study = opened(folder / "shared", method="tpe(trials=8, startup=4)")
            assert process.stdout.readline() == "ready\n"
            own = []
            while (trial := study.claim()) is not None:
                time.sleep(0.05)
                own.append(trial.number)
                x = trial.point["x"]
                assert isinstance(x, float)
                trial.finish(x)
            others, killed_in = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == -signal.SIGKILL
        assert killed_in == "1"
        yield folder, own, list(map(int, others.split()))


def regret(method: str, seed: int) -> float:
    """Returns how far the best of a method's trials is from the quadratic's top."""
    made = space.parse(SPACE)
    study = optuna.create_study(direction="maximize", sampler=sampling.Sampler(methods.parse(method), made, seed))
    for _ in range(20):
        trial = study.ask(sampling.distributions(made))
        study.tell(trial, quadratic(trial.params))
    return 1 - study.best_value


def quadratic(point) -> float:
    """1 at lr = 1e-3 and x = 0.3, and less everywhere else."""
    return 1 - 0.1 * (math.log10(point["lr"]) + 3) ** 2 - 0.5 * (point["x"] - 0.3) ** 2


def started(study: Study) -> Trial:
    trial = study.claim()
    assert trial is not None
    return trial


def searched(study, objective=quadratic) -> list[float]:
    """Runs a study to its end; returns the values in order."""
    while (trial := study.claim()) is not None:
        trial.finish(objective(trial.point))
    return [row.value for row in study.rows()]


def test_a_grid_is_tried_whole_each_point_once_and_no_more(tmp_path):
    made = "lr=log(1e-4, 1e-2), c=choice('a', None)"
    study = opened(tmp_path, made, "grid(points=2)")
    searched(study, lambda point: 0.5)
    expected = [{"lr": lr, "c": c} for lr in (1e-4, 1e-2) for c in ("a", None)]
    assert [row.point for row in study.rows()] == expected
    assert study.trials == study.done() == 4
    assert study.claim() is None


@pytest.mark.parametrize("method", ["random", "tpe", "gp"])
def test_a_small_space_is_tried_whole_and_no_point_twice(tmp_path, method):
    study = opened(tmp_path, "a=int(1, 3), b=choice(True, 1)", f"{method}(trials=20)")
    searched(study, lambda point: 0.1 * point["a"])
    assert study.trials == 6
    assert len({(row.point["a"], repr(row.point["b"])) for row in study.rows()}) == 6


def test_a_model_of_the_results_comes_closer_to_the_top_of_a_quadratic_than_chance():
    by_chance = np.mean([regret("random(trials=20)", seed) for seed in range(8)])
    assert np.mean([regret("tpe(trials=20, startup=5)", seed) for seed in range(8)]) < 0.5 * by_chance
    assert regret("gp(trials=20, startup=5)", 0) < 0.01 * by_chance


def test_expected_improvement_is_the_integral_that_it_stands_for():
    for mean, deviation, best in ((0.0, 1.0, 0.5), (0.7, 0.2, 0.5), (0.1, 1e-9, 0.5), (0.9, 1e-9, 0.5)):
        drawn = mean + deviation * scipy.stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
        expected = np.maximum(drawn - best, 0).mean()
        found = sampling.expected_improvement(np.array([mean]), np.array([deviation]), best)
        assert found[0] == pytest.approx(expected, abs=1e-5)


def test_the_same_seed_tries_the_same_points_stopped_or_not(tmp_path):
    whole = opened(tmp_path / "whole", method="tpe(trials=5, startup=3)")
    searched(whole)
    for trials in (4, 5):
        parts = opened(tmp_path / "parts", method=f"tpe(trials={trials}, startup=3)")
        searched(parts)
    assert [row.point for row in parts.rows()] == [row.point for row in whole.rows()]
    other = opened(tmp_path / "other", method="tpe(trials=1, startup=3)", seed=1)
    searched(other)
    assert other.rows()[0].point != whole.rows()[0].point


def test_a_resume_counts_what_was_done_and_no_more(tmp_path):
    searched(opened(tmp_path, method="random(trials=2)"))
    again = opened(tmp_path, method="random(trials=3)")
    assert again.done() == 2
    searched(again)
    assert [row.number for row in again.rows()] == [0, 1, 2]
    assert opened(tmp_path, method="random(trials=3)").claim() is None


def test_a_trial_whose_process_was_killed_is_tried_again_with_the_same_values(other):
    study = opened(other[0] / "killed", method="random(trials=3)")
    assert [row.state for row in study.rows()] == ["complete", "running"]
    trial = started(study)
    rows = study.rows()
    assert [row.state for row in rows] == ["complete", "killed", "running"]
    assert trial.number == 2
    assert trial.again == 1
    assert trial.point == rows[1].point
    assert not study.folder_of(1).exists()
    trial.finish(0.6)
    searched(study)
    assert [row.state for row in study.rows()] == ["complete", "killed", "complete", "complete"]
    assert study.done() == 3


def test_a_point_that_kills_every_process_is_given_up(tmp_path):
    study = opened(tmp_path, method="random(trials=2)")
    points = []
    for _ in range(MOST_TRIES):
        trial = started(study)
        points.append(trial.point)
        trial.give_back()
    assert all(point == points[0] for point in points)
    searched(study)
    rows = study.rows()
    assert [row.state for row in rows] == ["killed"] * (MOST_TRIES - 1) + ["failed", "complete"]
    assert rows[MOST_TRIES - 1].line == "the process was killed in each of 3 tries"
    assert rows[MOST_TRIES].point != points[0]


def test_two_processes_share_the_trials_and_do_none_twice(other):
    folder, own, others = other
    assert own
    assert others
    assert sorted(own + others) == list(range(8))
    rows = opened(folder / "shared", method="tpe(trials=8, startup=4)").rows()
    assert all(row.state == "complete" and row.value == row.point["x"] for row in rows)
    assert len({json.dumps(row.point) for row in rows}) == 8


def test_a_running_trial_of_another_process_is_left_alone_and_its_point_not_drawn_again(tmp_path):
    study = opened(tmp_path, "n=int(1, 2)", "gp(trials=2)")
    first = started(study)
    other = opened(tmp_path, "n=int(1, 2)", "gp(trials=2)")
    second = started(other)
    assert {first.point["n"], second.point["n"]} == {1, 2}
    assert other.claim() is None
    assert [row.state for row in other.rows()] == ["running", "running"]


def test_the_median_rule_stops_what_is_worse_than_half_of_the_others(tmp_path):
    study = opened(tmp_path, method="random(trials=9)", pruning=methods.parse_pruning("median(startup=3, warmup=2)"))
    for accuracy in (0.5, 0.6, 0.7):
        trial = started(study)
        assert not any(trial.report(accuracy, epoch, prunable=True) for epoch in (1, 2, 3))
        trial.finish(accuracy)
    better, worse = started(study), started(study)
    assert [better.report(0.61, epoch, prunable=True) for epoch in (1, 2)] == [False, False]
    assert [worse.report(0.59, epoch, prunable=True) for epoch in (1, 2)] == [False, True]
    assert not worse.report(0.59, 3, prunable=False)
    worse.prune()
    row = study.rows()[worse.number]
    assert (row.state, row.last, row.value, row.epochs) == ("pruned", 0.59, None, 3)


def test_only_the_best_trial_keeps_more_than_its_flags_and_epochs(tmp_path):
    study = opened(tmp_path)
    for value in (0.4, 0.6, 0.5):
        trial = started(study)
        for name in ("config.cfg", "metrics.jsonl", "model.json"):
            (trial.folder / name).write_text("x")
        (trial.folder / "checkpoints").mkdir()
        (trial.folder / "checkpoints" / "best.npz").write_text("x")
        trial.finish(value)
    held = [sorted(path.name for path in study.folder_of(number).iterdir()) for number in range(3)]
    small = ["config.cfg", "metrics.jsonl"]
    assert held == [small, ["checkpoints", "config.cfg", "metrics.jsonl", "model.json"], small]


def test_importances_name_what_the_objective_depends_on(tmp_path):
    study = opened(tmp_path, method="random(trials=12)")
    searched(study, lambda point: 0.5 + 0.1 * math.log10(point["lr"]) + 1e-3 * point["x"])
    shares = study.importances()
    assert shares["lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(("changes", "said"), [
    ({"searched": "lr=log(1e-5, 1e-2)"}, "--search_space"),
    ({"identity": {"--batch_size": 32}}, "--batch_size: 32 (was 64)"),
])
def test_a_folder_of_another_search_is_refused_and_the_line_says_why(tmp_path, changes, said):
    opened(tmp_path, identity={"--batch_size": 64})
    with pytest.raises(InputError) as caught:
        opened(tmp_path, **changes)
    assert said in str(caught.value)


def test_a_damaged_study_is_one_line(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"study\.db: expected a study that this Optuna .* not a database"):
        opened(tmp_path)
