"""The goals and whether rows meet them. A goal without its figures is not judged, and says what is missing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

RANDAUGMENT, V2S = "randaugment(2, 9)", "v2s"
OVER_DALI, OVER_KERAS, V2S_OVER_KERAS = 1.5, 10.0, 5.0  # times as fast
COMPILE_SECONDS = 20.0
MEMORY_BATCHES = 8.0  # of float32
FED = 0.98  # of the rate with one batch repeated, for which nothing is read
SOURCES = {"memory": "from memory", "device": "from the device", "tfrecord": "from streamed TFRecords"}
STEP, STEP_POLICY, AUGMENTED = "efficientnet_v2_s", "v2s policy", 0.10  # what a policy may take of a step on a CPU
GROWTH = 1.05  # of the peak memory from the smaller set to the larger
PEERS_OF_OPS = {"keras": "Keras 3", "tfa": "tf.image + TFA"}

Rates = Mapping[tuple[str, str, str], float]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal, whether it is met (None: cannot be said), and the figures."""

    goal: str
    met: bool | None
    figures: str

    def word(self) -> str:
        """Returns `met`, `NOT met` or `not judged`."""
        return {True: "met", False: "NOT met", None: "not judged"}[self.met]


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Returns the median images/s of each (suite, case, implementation)."""
    return {(row["suite"], row["case"], row["implementation"]): row["images_per_second"]["median"] for row in rows}


def judge(rows: Sequence[Mapping[str, Any]], memory: Sequence[Mapping[str, Any]],
          streams: Sequence[Mapping[str, Any]] = ()) -> list[Verdict]:
    """Judges every goal.

    Args:
      rows: of all suites, or what there is of them.
      memory: what `benchmarks.memory.measure` returned.
      streams: what `benchmarks.streaming.measure` returned.
    """
    of = rates(rows)
    return [
        _faster(of, RANDAUGMENT, OVER_DALI, "dali", "DALI's rand_augment on CPU"),
        _faster(of, RANDAUGMENT, OVER_KERAS, "keras", "Keras 3's RandAugment(2)"),
        _faster(of, V2S, V2S_OVER_KERAS, "keras", "Keras 3's RandAugment(2)"),
        *(_no_op_slower(of, peer, title) for peer, title in PEERS_OF_OPS.items()),
        _compile(rows),
        _memory(memory),
        *(_fed(rows, side, title) for side, title in SOURCES.items()),
        _growth(streams),
        _augmented(rows),
    ]


def _faster(of: Rates, case: str, times: float, peer: str, title: str) -> Verdict:
    goal = f"{case} at least {times:g}x {title}"
    mine, other = of.get(("policies", case, "xla")), of.get(("policies", RANDAUGMENT, peer))
    if mine is None or other is None:
        return Verdict(goal, None, f"no row of {'ours' if mine is None else title}")
    return Verdict(goal, mine >= times * other, f"{mine:,.0f} against {other:,.0f} images/s: {mine / other:.1f}x")


def losses(of: Rates, peer: str) -> tuple[list[tuple[str, float]], int]:
    """Returns the ops in which a peer is faster, with our part of its speed, slowest first, and how many it shares."""
    ratios = [(case, of[suite, case, "xla"] / rate) for (suite, case, name), rate in of.items()
              if suite == "ops" and name == peer and (suite, case, "xla") in of]
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


def _fed(rows: Sequence[Mapping[str, Any]], side: str, title: str) -> Verdict:
    goal = f"training {title} at {FED:.0%} of the rate with one batch repeated, or more"
    parts = {row["case"]: row["part_of_baseline"] for row in rows
             if (row["suite"], row["implementation"]) == ("input", side) and "part_of_baseline" in row}
    if not parts:
        return Verdict(goal, None, "no row of training beside one batch repeated in `input`")
    return Verdict(goal, all(part["median"] >= FED for part in parts.values()), ", ".join(
        f"{case}: {part['median']:.1%} (quartiles {part['q1']:.1%} to {part['q3']:.1%})"
        for case, part in parts.items()))


def _augmented(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = f"the whole v2s policy at most {AUGMENTED:.0%} of the training step of EfficientNetV2-S"
    parts = [row["part_of_baseline"] for row in rows if "part_of_baseline" in row
             and (row["suite"], row["case"], row["implementation"]) == ("step", STEP, STEP_POLICY)]
    if not parts:
        return Verdict(goal, None, "no row of that step")
    cost, low, high = (1 - parts[0][name] for name in ("median", "q3", "q1"))
    return Verdict(goal, cost <= AUGMENTED, f"{cost:.1%} (quartiles {low:.1%} to {high:.1%})")


def _growth(streams: Sequence[Mapping[str, Any]]) -> Verdict:
    goal = "peak memory of a streamed epoch does not grow with the set"
    peaks = {each["images"]: each["peak_mib"] for each in streams if each["cache"] == "none"}
    if len(peaks) < 2:
        return Verdict(goal, None, "not measured")
    few, many = min(peaks), max(peaks)
    return Verdict(goal, peaks[many] <= GROWTH * peaks[few],
                   f"{peaks[few]:,} MiB with {few:,} images, {peaks[many]:,} with {many:,}")
