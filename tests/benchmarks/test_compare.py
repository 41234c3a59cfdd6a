"""Two results are compared by ratios alone, and noise is no regression."""

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import compare, report, saved
from bloodcell.errors import InputError


def _row(suite, case, implementation, rate, *, noise=0.02, samples=9, **more):
    return {"suite": suite, "case": case, "implementation": implementation, "compile_seconds": 0.0, "samples": samples,
            "images_per_second": {"median": rate, "q1": rate * (1 - noise), "q3": rate * (1 + noise)}, **more}


def _result(*rows, **more):
    return {"rows": list(rows), "peers": {"keras": {"title": "Keras 3"}, "pillow": {"title": "Pillow"}}, "batch": 256,
            "side": 96, "quick": False, **more}


def _part(median, noise=0.005):
    return {"median": median, "q1": median - noise, "q3": median + noise}


def _words(old, new, **given):
    return {change.key[1:]: change.word for change in compare.changes(old, new, **given)}


OLD = _result(_row("ops", "flip", "xla", 1000), _row("ops", "flip", "eager", 100), _row("ops", "flip", "keras", 500),
              _row("ops", "gray", "xla", 1000), _row("ops", "gray", "keras", 500))


def test_a_loss_of_30_per_cent_against_a_peer_is_found_although_every_figure_doubled(tmp_path, capsys):
    new = _result(_row("ops", "flip", "xla", 2000), _row("ops", "flip", "eager", 200),
                  _row("ops", "flip", "keras", 1000), _row("ops", "gray", "xla", 2000),
                  _row("ops", "gray", "keras", 1000 / 0.7))
    assert _words(OLD, new) == {("flip", "xla to eager"): "same", ("flip", "xla to keras"): "same",
                                ("gray", "xla to keras"): "regression"}
    for name, result in (("old", OLD), ("new", new)):
        report.write_json(tmp_path / name, result)
    with pytest.raises(SystemExit) as stopped:
        command.main(["compare", str(tmp_path / "old"), str(tmp_path / "new")])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out.splitlines()
    assert " ".join(printed[-2].split()) == (
        "ops gray, xla to keras 2.000 (1.922 to 2.082) 1.400 (1.345 to 1.457) -30.0% REGRESSION")
    assert printed[-1].startswith("1 of 3 ratios")
    command.main(["compare", str(tmp_path / "old"), str(tmp_path / "new"), "--threshold=0.4"])
    assert "no regression in 3 ratios" in capsys.readouterr().out


def test_a_machine_of_half_the_speed_is_no_regression():
    slow = _result(*({**row, "images_per_second": {name: rate / 2 for name, rate in row["images_per_second"].items()}}
                     for row in OLD["rows"]))
    assert set(_words(OLD, slow).values()) == {"same"}


@pytest.mark.parametrize(("old", "new", "word"), [(0.02, 0.02, "regression"), (0.2, 0.02, "same"), (0.02, 0.2, "same")])
def test_what_lies_within_the_quartiles_of_either_file_is_noise(old, new, word):
    before, after = (_result(_row("policies", "v2s", "xla", rate, noise=noise),
                             _row("policies", "v2s", "pillow", 100, noise=noise))
                     for rate, noise in ((1000, old), (800, new)))
    assert _words(before, after) == {("v2s", "xla to pillow"): word}


def test_a_ratio_that_rose_is_better_and_two_runs_say_nothing():
    def result(rate, samples):
        return _result(_row("ops", "flip", "xla", rate, samples=samples), _row("ops", "flip", "keras", 500))
    assert _words(result(1000, 9), result(1500, 9)) == {("flip", "xla to keras"): "better"}
    assert _words(result(1000, 9), result(500, 2)) == {("flip", "xla to keras"): "too few runs"}


def test_settings_of_a_step_have_no_cost_of_a_policy():
    result = _result(_row("step", "v2_s", "jit=augment", 50), _row("step", "v2_s", "jit=off", 30,
                                                                  part_of_baseline=_part(0.6)))
    assert _words(result, result) == {("v2_s", "jit=off, part of baseline"): "same"}


@pytest.mark.parametrize(("before", "after", "cost"), [
    (0.95, 0.90, "regression"),  # a policy that took 5% of the step takes 10%
    (0.95, 0.94, "same"),  # a point
    (1.01, 1.00, "same"),  # nothing before and nothing now
    (0.85, 0.92, "better")])
def test_a_policy_may_not_cost_more_of_a_step(before, after, cost):
    old, new = (_result(_row("step", "v2_s", "none", 50), _row("step", "v2_s", "v2s policy", 49,
                                                              part_of_baseline=_part(part)))
                for part in (before, after))
    words = _words(old, new)
    assert words["v2_s", "v2s policy, cost"] == cost
    assert words["v2_s", "v2s policy, part of baseline"] == "same"  # within a tenth


def test_parts_of_other_things_are_ratios_too():
    old, new = (_result(_row("roofline", "warp", "xla", rate, part_of_limit=_part(part)))
                for rate, part in ((1000, 0.5), (5000, 0.3)))
    assert _words(old, new) == {("warp", "xla, part of limit"): "regression"}


@pytest.mark.parametrize(("new", "said"), [
    (_result(_row("step", "v2_s", "none", 50)), "same suite, received ops against step"),
    (_result(_row("ops", "blur", "xla", 50)), "a ratio that both results have, received none"),
    ({**OLD, "batch": 64}, "the same batch, received 256 against 64"),
    ({**OLD, "quick": True}, "two results with --quick or two without")])
def test_results_that_cannot_be_compared_are_one_line(new, said):
    with pytest.raises(InputError, match=said) as error:
        compare.changes(OLD, new)
    assert "try" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"rows": [{}], "peers": {}}', '{"rows": []}',
                                     json.dumps({**OLD, "rows": [{**OLD["rows"][0], "images_per_second": 3}]})])
def test_a_file_that_is_no_result_is_one_line(content, tmp_path):
    report.write_json(tmp_path / "old", OLD)
    if content is not None:
        (tmp_path / "new").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        command.main(["compare", str(tmp_path / "old"), str(tmp_path / "new")])
    line = str(stopped.value.code)
    assert line.startswith("error: expected a benchmark's result, received ")
    assert "\n" not in line
    assert saved.read(tmp_path / "old") == OLD
