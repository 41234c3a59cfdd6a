"""The goals and whether rows meet them. A goal without its figures is not judged, and says what is missing."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RANDAUGMENT, V2S = "randaugment(2, 9)", "v2s"
OVER_DALI, OVER_KERAS, V2S_OVER_KERAS = 1.5, 10.0, 5.0  # times as fast
COMPILE_SECONDS = 20.0
MEMORY_BATCHES = 8.0  # of float32
FED = 0.98  # of the rate on tensors, for which nothing is read
FED_FROM = "pipeline, jpeg"  # the case of `input` with the files that trainings are fed from, read by nobody else
SOURCES = {"memory": "from memory", "device": "from the device", "tfrecord": "from streamed TFRecords"}
STEP, STEP_POLICY, STEP_NATIVE = "efficientnet_v2_s", "v2s policy", "v2s policy, native op"
AUGMENTED, AUGMENTED_NATIVE, AUGMENTED_ON_GPU = 0.10, 0.03, 0.02  # what a policy may take of a step
CLOSE = 0.15  # of what the clock says, by which a trace may differ from it
GROWTH = 1.05  # of the peak memory from the smaller set to the larger
PEERS_OF_OPS = {"keras": "Keras 3", "tfa": "tf.image + TFA"}

COMPILED = ("native", "xla")
NATIVE, NATIVE_V2S = 4.0, 2.5  # times the fastest peer's RandAugment(2)

Rates = Mapping[tuple[str, str, str], float]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal, whether it is met (None: cannot be said), and the figures, or what is missing of them.

    noisy: why it cannot be said is the noise of figures that are there.
    """

    goal: str
    met: bool | None
    figures: str
    noisy: bool = False

    def word(self) -> str:
        """Returns `met`, `NOT met`, `unclear` (within the noise) or `not judged` (for want of figures)."""
        return "unclear" if self.noisy else {True: "met", False: "NOT met", None: "not judged"}[self.met]


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Returns the median images/s of each (suite, case, implementation)."""
    return {(row["suite"], row["case"], row["implementation"]): row["images_per_second"]["median"] for row in rows}


def judge(result: Mapping[str, Any]) -> list[Verdict]:
    """Judges every goal by the figures of one or more suites, as `report.merge` joins them."""
    rows = result.get("rows", ())
    memory, streams = result.get("memory", ()), result.get("streams", ())
    of = rates(rows)
    on_gpu = bool(result.get("hardware", {}).get("gpus"))
    return [
        _faster(of, RANDAUGMENT, OVER_DALI, "dali", "DALI's rand_augment on CPU"),
        _faster(of, RANDAUGMENT, OVER_KERAS, "keras", "Keras 3's RandAugment(2)"),
        _faster(of, V2S, V2S_OVER_KERAS, "keras", "Keras 3's RandAugment(2)"),
        *(_native(rows, of, case, times) for case, times in ((RANDAUGMENT, NATIVE), (V2S, NATIVE_V2S))),
        *(_no_op_slower(of, peer, title) for peer, title in PEERS_OF_OPS.items()),
        _compile(rows),
        _memory(memory),
        *(_fed(rows, () if on_gpu else result.get("demand", ()), side, title) for side, title in SOURCES.items()),
        _growth(streams),
        *(_augmented(rows, by, on_gpu=on_gpu) for by in (STEP_POLICY, STEP_NATIVE)),
        _agree(result.get("trace", ()), rows),
    ]


def _faster(of: Rates, case: str, times: float, peer: str, title: str) -> Verdict:
    goal = f"{case} at least {times:g}x {title}"
    mine, other = of.get(("policies", case, "xla")), of.get(("policies", RANDAUGMENT, peer))
    if mine is None or other is None:
        return Verdict(goal, None, f"no row of {'ours' if mine is None else title}")
    return Verdict(goal, mine >= times * other, f"{mine:,.0f} against {other:,.0f} images/s: {mine / other:.1f}x")


def _native(rows: Sequence[Mapping[str, Any]], of: Rates, case: str, times: float) -> Verdict:
    goal = f"{case} by the native op at least {times:g}x the fastest peer's RandAugment(2)"
    ours = (*COMPILED, "eager")
    peers = {name: of["policies", RANDAUGMENT, name] for name in dict.fromkeys(
        row["implementation"] for row in rows if (row["suite"], row["case"]) == ("policies", RANDAUGMENT))
        if name not in ours}
    mine = of.get(("policies", case, "native"))
    if mine is None or not peers:
        return Verdict(goal, None, "no row of a peer" if mine else "no row of the native op")
    best = max(peers, key=peers.__getitem__)
    return Verdict(goal, mine >= times * peers[best],
                   f"{mine:,.0f} against {peers[best]:,.0f} images/s of {best}: {mine / peers[best]:.1f}x")


def compiled(of: Rates, suite: str, case: str) -> float | None:
    """Returns our faster compiled implementation's rate, or None without a row."""
    return max((of[suite, case, name] for name in COMPILED if (suite, case, name) in of), default=None)


def losses(of: Rates, peer: str) -> tuple[list[tuple[str, float]], int]:
    """Returns the ops in which a peer is faster, with our part of its speed, slowest first, and how many it shares."""
    ratios = [(case, mine / rate) for (suite, case, name), rate in of.items()
              if suite == "ops" and name == peer and (mine := compiled(of, suite, case)) is not None]
    return sorted([(case, ratio) for case, ratio in ratios if ratio < 1.0], key=lambda each: each[1]), len(ratios)


def _no_op_slower(of: Rates, peer: str, title: str) -> Verdict:
    goal = f"no op slower than the same op in {title}"
    slower, shared = losses(of, peer)
    if not shared:
        return Verdict(goal, None, f"no row of {title}")
    figures = f"{shared - len(slower)} of {shared} ops at least as fast"
    if slower:
        figures += "; slower: " + ", ".join(f"{case} ({ratio:.2f}x)" for case, ratio in slower)
    return Verdict(goal, not slower, figures)


def _compile(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = f"first compile of v2s under {COMPILE_SECONDS:g} s"
    seconds = [row["compile_seconds"] for row in rows
               if (row["suite"], row["case"], row["implementation"]) == ("policies", V2S, "xla")]
    if not seconds:
        return Verdict(goal, None, "no row of v2s")
    return Verdict(goal, seconds[0] < COMPILE_SECONDS, f"{seconds[0]:.1f} s")


def _memory(memory: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = f"peak extra memory under {MEMORY_BATCHES:g} float32 batches, every policy"
    if not memory:
        return Verdict(goal, None, "not measured")
    worst = max(memory, key=lambda each: each["float32_batches"])
    return Verdict(goal, worst["float32_batches"] < MEMORY_BATCHES,
                   f"at most {worst['float32_batches']:.2f} ({worst['case']})")


def _fed(rows: Sequence[Mapping[str, Any]], demand: Sequence[Mapping[str, Any]], side: str, title: str) -> Verdict:
    """Judges by trainings that were timed; where their noise is too large, by what they could lose at most.

    On a CPU that is the source's own time, if no core ever read an image while another trained: of what feeds p times
    the demand when it is alone, p / (1 + p) is left.
    """
    goal = f"training {title} at {FED:.0%} of the rate on tensors, or more"
    beside = {row["case"] for row in rows if (row["suite"], row["implementation"]) == ("input", "tensors")}
    fed = [row for row in rows if (row["suite"], row["implementation"]) == ("input", side) and row["case"] in beside
           and "part_of_baseline" in row]
    if not fed:
        return Verdict(goal, None, "no row of training on tensors in `input`")
    timed = _at_least(goal, FED, fed, ", ".join(
        f"{row['case']}: {part['median']:.1%} (quartiles {part['q1']:.1%} to {part['q3']:.1%})"
        for row in fed for part in [row["part_of_baseline"]]))
    parts = {f"training {each['training']}": each["part"]["q1"] for each in demand
             if (each["case"], each["implementation"]) == (FED_FROM, side)}
    if not timed.noisy or not all(row["case"] in parts for row in fed):
        return timed
    least = min(parts[row["case"]] / (1 + parts[row["case"]]) for row in fed)
    return _told(timed, f"at least {least:.1%} if reading and training took turns", met=least >= FED)


def _at_least(goal: str, least: float, rows: Sequence[Mapping[str, Any]], figures: str) -> Verdict:
    """Judges the medians of rows' parts by the values between which they lie; all must be on the bound's side."""
    ranges = [_range(row["part_of_baseline"], row["samples"]) for row in rows]
    if any(high < least for _, high in ranges):
        return Verdict(goal, False, figures)
    if all(low >= least for low, _ in ranges):
        return Verdict(goal, True, figures)
    return Verdict(goal, None, figures, noisy=True)


def _augmented(rows: Sequence[Mapping[str, Any]], by: str, *, on_gpu: bool) -> Verdict:
    """Judges by steps that were timed; where their noise is too large, by the policy alone beside the step without.

    Only on a CPU, where both take all cores, one after the other.
    """
    most = AUGMENTED_ON_GPU if on_gpu else AUGMENTED_NATIVE if by == STEP_NATIVE else AUGMENTED
    goal = (f"the whole v2s policy{' by the native op' if by == STEP_NATIVE else ''} at most {most:.0%} of the "
            f"training step of EfficientNetV2-S{' on a GPU' if on_gpu else ''}")
    of = {(row["suite"], row["case"], row["implementation"]): row for row in rows}
    row = of.get(("step", STEP, by), {})
    if "part_of_baseline" not in row:
        return Verdict(goal, None, "no row of that step")
    part = row["part_of_baseline"]
    cost, low, high = (1 - part[name] for name in ("median", "q3", "q1"))
    timed = _at_least(goal, 1 - most, [row], f"{cost:.1%} (quartiles {low:.1%} to {high:.1%})")
    alone, plain = of.get(("policies", V2S, "native" if by == STEP_NATIVE else "xla")), of.get(("step", STEP, "none"))
    if not timed.noisy or on_gpu or alone is None or plain is None:
        return timed
    step, policy = plain["images_per_second"]["q3"], alone["images_per_second"]["q1"]
    alone_cost = step / (step + policy)
    return _told(timed, f"by the time of the policy alone {alone_cost:.1%}", met=alone_cost <= most)


def _told(noisy: Verdict, figures: str, *, met: bool) -> Verdict:
    """Adds figures to a verdict that noise hides; they can tell that the goal is met, never that it is not."""
    return dataclasses.replace(noisy, met=met or None, noisy=not met, figures=f"{noisy.figures}; {figures}")


def _agree(traces: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = f"`augment` in TensorBoard's trace within {CLOSE:.0%} of what the clock says of the policy alone"
    if not traces:
        return Verdict(goal, None, "not measured")
    runs = {row["case"]: row["samples"] for row in rows
            if (row["suite"], row["implementation"]) == ("trace", "the policy alone")}
    ranges = []
    for each in traces:
        traced, alone = _range(each["trace_ms"], each["steps"]), _range(each["alone_ms"], runs[each["case"]])
        ranges.append((traced[0] / alone[1] - 1, traced[1] / max(alone[0], 1e-9) - 1))
    figures = ", ".join(
        f"{each['case']}: {each['trace_ms']['median']:.1f} ms a step against {each['alone_ms']['median']:.1f} "
        f"({each['trace_ms']['median'] / each['alone_ms']['median'] - 1:+.0%}, {low:+.0%} to {high:+.0%})"
        for each, (low, high) in zip(traces, ranges, strict=True))
    if any(low > CLOSE or high < -CLOSE for low, high in ranges):
        return Verdict(goal, False, figures)
    inside = all(low >= -CLOSE and high <= CLOSE for low, high in ranges)
    return Verdict(goal, True if inside else None, figures, noisy=not inside)


def _range(of: Mapping[str, float], samples: int) -> tuple[float, float]:
    """Returns the values between which a median lies with 95%."""
    half = notch(samples) * (of["q3"] - of["q1"]) / math.sqrt(samples)
    return of["median"] - half, of["median"] + half


@functools.cache
def notch(samples: int) -> float:
    """Returns how far a median may be from the true one with 95%, in distances of the quartiles / sqrt(samples).

    Found by drawing so many normal figures again and again, since nothing simple fits few of them: 4.7 for five, 2.2
    for fifteen, 1.82 for many. The notches of box plots are narrower, 1.57 (McGill, Tukey and Larsen 1978), as they are
    made to be held against each other.
    """
    samples = max(samples, 3)  # the fewest that are timed
    drawn = np.random.default_rng(0).standard_normal((100_000, samples))
    q1, median, q3 = np.quantile(drawn, [0.25, 0.5, 0.75], axis=1)
    return float(np.quantile(np.abs(median) * math.sqrt(samples) / (q3 - q1), 0.95))


def _growth(streams: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = "peak memory of a streamed epoch does not grow with the set"
    peaks = {each["images"]: each["peak_mib"] for each in streams if each["cache"] == "none"}
    if len(peaks) < 2:
        return Verdict(goal, None, "not measured")
    few, many = min(peaks), max(peaks)
    return Verdict(goal, peaks[many] <= GROWTH * peaks[few],
                   f"{peaks[few]:,} MiB with {few:,} images, {peaks[many]:,} with {many:,}")
