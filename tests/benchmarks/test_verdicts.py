"""The goals are judged by the figures alone, and what is missing is said."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import verdicts


def _row(suite, case, implementation, rate, compile_seconds=0.0):
    return {"suite": suite, "case": case, "implementation": implementation, "compile_seconds": compile_seconds,
            "images_per_second": {"median": rate, "q1": rate, "q3": rate}, "samples": 3}


def _judge(rows, memory=()):
    return {verdict.goal: verdict for verdict in verdicts.judge({"rows": rows, "memory": memory})}


@pytest.mark.parametrize(("ours", "word"), [(1500.0, "met"), (1499.0, "NOT met")])
def test_randaugment_against_dali_turns_at_one_and_a_half(ours, word):
    found = _judge([_row("policies", "randaugment(2, 9)", "xla", ours),
                    _row("policies", "randaugment(2, 9)", "dali", 1000.0)])
    verdict = found["randaugment(2, 9) at least 1.5x DALI's rand_augment on CPU"]
    assert verdict.word() == word
    assert "1,000 images/s" in verdict.figures


def test_v2s_is_held_against_keras_randaugment():
    rows = [_row("policies", "v2s", "xla", 1900.0, 21.0), _row("policies", "randaugment(2, 9)", "keras", 400.0),
            _row("policies", "randaugment(2, 9)", "xla", 4000.0)]
    found = _judge(rows)
    assert found["v2s at least 5x Keras 3's RandAugment(2)"].word() == "NOT met"
    assert found["randaugment(2, 9) at least 10x Keras 3's RandAugment(2)"].word() == "met"
    assert found["first compile of v2s under 20 s"].word() == "NOT met"


def test_a_slower_op_is_named_with_its_ratio():
    rows = [_row("ops", "flip", "xla", 1000.0), _row("ops", "flip", "keras", 900.0), _row("ops", "flip", "tfa", 900.0),
            _row("ops", "invert", "xla", 1000.0), _row("ops", "invert", "tfa", 2000.0),
            _row("ops", "flip", "dali", 9000.0)]
    found = _judge(rows)
    assert found["no op slower than the same op in Keras 3"].word() == "met"
    addons = found["no op slower than the same op in tf.image + TFA"]
    assert (addons.word(), addons.figures) == ("NOT met", "1 of 2 ops at least as fast; slower: invert (0.50x)")


def test_memory_is_that_of_the_hungriest_policy():
    memory = [{"case": "a", "bytes": 1, "float32_batches": 1.0}, {"case": "b", "bytes": 9, "float32_batches": 8.0}]
    verdict = _judge([], memory)["peak extra memory under 8 float32 batches, every policy"]
    assert (verdict.word(), verdict.figures) == ("NOT met", "at most 8.00 (b)")


@pytest.mark.parametrize(("side", "title"), [("memory", "from memory"), ("device", "from the device"),
                                             ("tfrecord", "from streamed TFRecords")])
@pytest.mark.parametrize(("part", "word"), [(1.0, "met"), (0.985, "unclear"), (0.97, "unclear"), (0.96, "NOT met")])
def test_training_may_lose_two_per_cent_to_its_input_wherever_that_lies(side, title, part, word):
    fed = {**_row("input", "training lite0", side, 90.0), "samples": 9,  # 2.78 x 0.015 / 3 = 0.0139 either way
           "part_of_baseline": {"median": part, "q1": 0.97, "q3": 0.985}}
    found = _judge([fed, _row("input", "training lite0", "tensors", 100.0),
                    _row("input", "pipeline, jpeg", side, 9.0)])
    verdict = found.pop(f"training {title} at 98% of the rate on tensors, or more")
    assert (verdict.word(), verdict.figures) == (
        word, f"training lite0: {part:.1%} (quartiles 97.0% to 98.5%)")
    assert {other.word() for other in found.values()} == {"not judged"}


@pytest.mark.parametrize("samples", [3, 4, 5, 7, 9, 15])
def test_a_median_lies_where_it_is_said_to_lie_in_95_of_100_cases(samples):
    drawn = np.random.default_rng(7).normal(20.0, 3.0, (50_000, samples))
    q1, median, q3 = np.percentile(drawn, [25, 50, 75], axis=1)
    half = verdicts.notch(samples) * (q3 - q1) / np.sqrt(samples)
    assert np.mean(np.abs(median - 20.0) <= half) == pytest.approx(0.95, abs=0.005)


def test_of_many_figures_the_median_is_as_sure_as_theory_has_it():
    # a median's deviation is sqrt(pi / 2) of the mean's, the quartiles lie 1.349 deviations apart
    quantile = stats.norm.ppf
    exact = quantile(0.975) * np.sqrt(np.pi / 2) / (quantile(0.75) - quantile(0.25))
    assert verdicts.notch(400) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("part", "word"), [(0.98, "met"), (0.979, "NOT met")])
def test_without_noise_the_bound_itself_decides(part, word):
    fed = {**_row("input", "training lite0", "memory", 90.0),
           "part_of_baseline": {"median": part, "q1": part, "q3": part}}
    found = _judge([fed, _row("input", "training lite0", "tensors", 100.0)])
    assert found["training from memory at 98% of the rate on tensors, or more"].word() == word


@pytest.mark.parametrize(("part", "alone", "gpus", "word", "figures"), [
    (0.98, 49.0, [], "met", "; at least 98.0% if reading and training took turns"),  # 49 / 50
    (0.98, 48.9, [], "unclear", "; at least 98.0% if reading and training took turns"),
    (0.85, 1000.0, [], "NOT met", ""), (0.98, 1000.0, ["a GPU"], "unclear", "")])
def test_what_noise_hides_is_bounded_by_the_time_of_reading_alone(part, alone, gpus, word, figures):
    fed = {**_row("input", "training lite0", "memory", 90.0), "samples": 9,
           "part_of_baseline": {"median": part, "q1": part - 0.05, "q3": part + 0.05}}
    demand = [{"case": "pipeline, jpeg", "implementation": name, "training": "lite0",
               "part": {"median": 2 * times, "q1": times, "q3": 3 * times}}
              for name, times in (("memory", alone), ("dali", 1))]
    rows = [fed, _row("input", "training lite0", "tensors", 100.0)]
    judged = {verdict.goal: verdict
              for verdict in verdicts.judge({"rows": rows, "demand": demand, "hardware": {"gpus": gpus}})}
    verdict = judged["training from memory at 98% of the rate on tensors, or more"]
    assert verdict.word() == word
    assert verdict.figures == f"training lite0: {part:.1%} (quartiles {part - 0.05:.1%} to {part + 0.05:.1%}){figures}"


def test_results_from_before_the_batches_that_are_tensors_are_not_judged():
    found = _judge([_row("input", "training lite0", "memory", 99.0), _row("input", "training lite0", "tfrecord", 99.0)])
    assert {verdict.word() for goal, verdict in found.items() if goal.startswith("training")} == {"not judged"}


@pytest.mark.parametrize(("many", "word"), [(1050, "met"), (1051, "NOT met")])
def test_memory_of_a_streamed_epoch_may_not_grow(many, word):
    streams = [{"images": 10, "cache": "memory", "peak_mib": 10}, {"images": 10, "cache": "none", "peak_mib": 1000},
               {"images": 100, "cache": "none", "peak_mib": many}]
    judged = {verdict.goal: verdict for verdict in verdicts.judge({"rows": [], "streams": streams})}
    assert judged["peak memory of a streamed epoch does not grow with the set"].word() == word


def test_nothing_is_judged_without_figures():
    judged = verdicts.judge({})
    assert len(judged) == 16
    assert {verdict.word() for verdict in judged} == {"not judged"}


@pytest.mark.parametrize(("part", "word"), [(0.97, "met"), (0.91, "unclear"), (0.80, "NOT met")])
def test_a_policy_may_take_a_tenth_of_the_step(part, word):
    row = {**_row("step", "efficientnet_v2_s", "v2s policy", 9.0),
           "part_of_baseline": {"median": part, "q1": 0.85, "q3": 0.9}, "samples": 9}
    goal = "the whole v2s policy at most 10% of the training step of EfficientNetV2-S"
    verdict = _judge([row])[goal]
    assert (verdict.word(), verdict.figures) == (word, f"{1 - part:.1%} (quartiles 10.0% to 15.0%)")
    assert _judge([])[goal].word() == "not judged"


@pytest.mark.parametrize(("part", "word"), [(0.98, "met"), (0.965, "unclear"), (0.93, "NOT met")])
def test_the_native_op_may_take_three_hundredths_of_the_step(part, word):
    row = {**_row("step", "efficientnet_v2_s", "v2s policy, native op", 9.0),
           "part_of_baseline": {"median": part, "q1": 0.97, "q3": 0.98}, "samples": 9}
    judged = _judge([row])
    goal = "the whole v2s policy by the native op at most 3% of the training step of EfficientNetV2-S"
    assert judged[goal].word() == word
    assert judged["the whole v2s policy at most 10% of the training step of EfficientNetV2-S"].word() == "not judged"


@pytest.mark.parametrize(("part", "alone", "word", "figures"), [
    (0.965, 3234.0, "met", "; by the time of the policy alone 3.0%"),  # 100 / 3334
    (0.965, 3233.0, "unclear", "; by the time of the policy alone 3.0%"), (0.93, 1e6, "NOT met", ""),
    (0.965, None, "unclear", "")])
def test_what_noise_hides_of_a_policys_cost_is_told_by_the_policy_alone(part, alone, word, figures):
    rows = [{**_row("step", "efficientnet_v2_s", "v2s policy, native op", 9.0),
             "part_of_baseline": {"median": part, "q1": 0.96, "q3": 0.98}, "samples": 9},
            {**_row("step", "efficientnet_v2_s", "none", 90.0),
             "images_per_second": {"median": 90.0, "q1": 80.0, "q3": 100.0}}]
    if alone:
        rows.append({**_row("policies", "v2s", "native", 9999.0),
                     "images_per_second": {"median": 9999.0, "q1": alone, "q3": 99999.0}})
    verdict = _judge(rows)["the whole v2s policy by the native op at most 3% of the training step of EfficientNetV2-S"]
    assert verdict.word() == word
    assert verdict.figures == f"{1 - part:.1%} (quartiles 2.0% to 4.0%){figures}"


@pytest.mark.parametrize(("part", "word"), [(0.98, "met"), (0.97, "NOT met")])
def test_a_policy_may_take_a_fiftieth_of_the_step_on_a_gpu(part, word):
    row = {**_row("step", "efficientnet_v2_s", "v2s policy", 9.0),
           "part_of_baseline": {"median": part, "q1": part, "q3": part}}
    judged = {verdict.goal: verdict.word() for verdict in verdicts.judge({"rows": [row], "hardware": {"gpus": ["A"]}})}
    assert judged["the whole v2s policy at most 2% of the training step of EfficientNetV2-S on a GPU"] == word
    assert not any("at most 10%" in goal for goal in judged)


@pytest.mark.parametrize(("ms", "word"), [
    (30.0, "met"), (31.0, "met"), (31.2, "unclear"), (37.8, "unclear"), (38.1, "NOT met"), (28.6, "met"),
    (28.4, "unclear"), (22.6, "unclear"), (22.4, "NOT met")])
def test_a_trace_has_to_agree_with_the_clock(ms, word):
    # 3.67 x 1.0 / 2 around the one, so 1.83, and 2.78 x 1.5 / 3 around the other
    figures = {"case": "mobilenet", "steps": 4, "trace_ms": {"median": ms, "q1": ms - 0.5, "q3": ms + 0.5},
               "alone_ms": {"median": 30.0, "q1": 29.0, "q3": 30.5}}
    row = {**_row("trace", "mobilenet", "the policy alone", 2133.3), "samples": 9}
    goal = "`augment` in TensorBoard's trace within 15% of what the clock says of the policy alone"
    judged = {verdict.goal: verdict for verdict in verdicts.judge({"rows": [row], "trace": [figures]})}
    assert judged[goal].word() == word
    assert judged[goal].figures.startswith(f"mobilenet: {ms} ms a step against 30.0 (")


@pytest.mark.parametrize(("ours", "word"), [(4000.0, "met"), (3999.0, "NOT met")])
def test_the_native_op_is_held_against_the_fastest_peer(ours, word):
    rows = [_row("policies", "randaugment(2, 9)", name, rate) for name, rate in (
        ("native", ours), ("xla", 9999.0), ("eager", 9999.0), ("dali", 1000.0), ("pillow", 500.0))]
    found = _judge([*rows, _row("policies", "v2s", "native", 2500.0)])
    verdict = found["randaugment(2, 9) by the native op at least 4x the fastest peer's RandAugment(2)"]
    assert verdict.word() == word
    assert "against 1,000 images/s of dali" in verdict.figures
    assert found["v2s by the native op at least 2.5x the fastest peer's RandAugment(2)"].word() == "met"


def test_an_op_is_as_fast_as_the_faster_of_our_two():
    of = verdicts.rates([_row("ops", "flip", "native", 2000.0), _row("ops", "flip", "xla", 500.0),
                         _row("ops", "flip", "dali", 1000.0)])
    assert verdicts.losses(of, "dali") == ([], 1)
