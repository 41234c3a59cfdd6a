"""The benchmark's own promises: turns are taken, quartiles are right, the compile is apart."""

import time

import pytest

from benchmarks.timing import Contestant, race


def test_contestants_take_turns_after_a_first_and_a_warm_up_call():
    calls: list[tuple[str, int]] = []

    def contestant(name):
        return Contestant("case", name, 10, lambda step: calls.append((name, step)))

    rows = race("suite", [contestant("a"), contestant("b")], samples=3)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1),
                     ("a", 2), ("b", 2), ("a", 3), ("b", 3), ("a", 4), ("b", 4)]
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
