"""The benchmark's own promises: turns are taken, quartiles are right, the compile is apart."""

import time

import pytest

from benchmarks import timing
from benchmarks.timing import Contestant, race


def test_contestants_take_turns_there_and_back_after_a_first_and_a_warm_up_call(monkeypatch):
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.0)
    calls: list[tuple[str, int]] = []

    def contestant(name):
        return Contestant("case", name, 10, lambda step: calls.append((name, step)))

    rows = race("suite", [contestant("a"), contestant("b")], samples=3)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1),
                     ("a", 2), ("b", 2), ("b", 3), ("a", 3), ("a", 4), ("b", 4)]
    assert [(row["suite"], row["case"], row["implementation"], row["samples"]) for row in rows] == [
        ("suite", "case", "a", 3), ("suite", "case", "b", 3)]


def test_rates_and_compile_seconds_are_those_of_a_known_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    durations = iter([5.0, 1.0, 1.0, 2.0, 4.0])  # the first call compiles, the second warms up, three are timed

    def run(step):
        now[0] += next(durations)

    row, = race("suite", [Contestant("case", "a", 100, run)], samples=3)
    assert row["images_per_second"] == pytest.approx({"median": 50.0, "q1": 37.5, "q3": 75.0})
    assert row["compile_seconds"] == pytest.approx(5.0 - 2.0)


def _clocked(monkeypatch, seconds):
    """A clock that stands still but for runs: `seconds[name]` each."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def contestant(name, lengthen=None):
        def run(step):
            now[0] += seconds[name]
        return Contestant("case", name, 10, run, lengthen and (lambda times: lengthen(times, now)))
    return contestant


def test_a_slow_contestant_has_fewer_runs_spread_over_the_race(monkeypatch):
    contestant = _clocked(monkeypatch, {"quick": 0.1, "slow": 1.0, "slowest": 60.0})
    rows = race("suite", [contestant("quick"), contestant("slow"), contestant("slowest")], samples=15, seconds=5.5)
    assert [row["samples"] for row in rows] == [15, 5, 3]
    assert [row["images_per_second"]["median"] for row in rows] == [100.0, 10.0, pytest.approx(10 / 60, abs=0.05)]


def test_few_samples_stay_few(monkeypatch):
    contestant = _clocked(monkeypatch, {"slow": 9.0})
    assert race("suite", [contestant("slow")], samples=1, seconds=0.1)[0]["samples"] == 1


def test_parts_of_a_baseline_leave_out_what_slows_a_whole_turn(monkeypatch):
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.0)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    slowness = [1.0, 1.0, 1.0, 10.0, 2.0]  # of the machine: the first two calls, and three turns

    def contestant(name, seconds):
        def run(step):
            now[0] += seconds * slowness[step]
        return Contestant("case", name, 10, run)

    fed, free = race("suite", [contestant("fed", 1.25), contestant("free", 1.0)], samples=3, baseline="free")
    assert fed["part_of_baseline"] == {"median": 0.8, "q1": 0.8, "q3": 0.8}
    assert "part_of_baseline" not in free
    alone, = race("suite", [contestant("fed", 1.0)], samples=3, baseline="free")
    assert "part_of_baseline" not in alone


def test_parts_of_a_baseline_are_of_the_turns_that_both_take(monkeypatch):
    contestant = _clocked(monkeypatch, {"quick": 0.5, "slow": 2.0})
    slow, quick = race("suite", [contestant("slow"), contestant("quick")], samples=8, seconds=4.0, baseline="quick")
    assert (slow["samples"], quick["samples"]) == (3, 8)
    assert slow["part_of_baseline"]["median"] == pytest.approx(0.25)


def test_what_is_over_too_soon_runs_again_and_again(monkeypatch):
    now, steps = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(step):
        steps.append(step)
        now[0] += 0.07

    row, = race("suite", [Contestant("case", "a", 7, run)], samples=2)
    assert steps == [0, 1, 6, 7, 8, 9, 10, 11]  # two runs of three, 0.21 s each
    assert row["images_per_second"]["median"] == pytest.approx(100.0)
    assert row["samples"] == 2


def test_a_pipeline_that_is_over_too_soon_runs_longer_at_the_same_rate(monkeypatch):
    lengthened = []

    def lengthen(times, now):
        lengthened.append(times)

        def run(step):
            now[0] += 0.06 * times
        return run

    contestant = _clocked(monkeypatch, {"pipeline": 0.06, "plain": 0.06})
    pipeline, plain = race("suite", [contestant("pipeline", lengthen), contestant("plain")], samples=2)
    assert lengthened == [4]  # 0.24 s, the first multiple beyond a fifth of a second
    assert pipeline["images_per_second"] == pytest.approx(plain["images_per_second"], rel=1e-3)
