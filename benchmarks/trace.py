"""Suite `trace`: what TensorBoard's profiler says that augmentation takes of a step, beside what the clock says.

Three clocks are held against each other, in turns: the part `augment` of a traced step; the same compiled policy alone,
on the same batch; and a step with the policy less a step without. `python -m benchmarks trace FOLDER` reads, instead,
the traces of any run that was made with `--profile_steps`.

The parts are the rows that `bloodcell.train.profiler` adds to a trace of a CPU; of a GPU's, TensorBoard itself shows
the scope `augment`, and nothing here reads it.
"""

import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks import QUICK_NETWORK, training
from benchmarks.step import BATCH
from benchmarks.timing import Contestant, race
from bloodcell import augment
from bloodcell.data import demo
from bloodcell.errors import InputError
from bloodcell.train import step
from bloodcell.train.profiler import Profiler

SECONDS = 30.0  # a contestant's timed runs
NETWORK = "mobilenet_v3_small"  # the fastest: a policy takes the largest part of its step
STEPS, QUICK_STEPS = 8, 2  # of a run
POLICY, QUICK_POLICY = ("v2s policy", training.V2S), ("randaugment(2, 9)",) * 2  # what it is called, its text
PLAIN, ALONE, TRACED = "none", "the policy alone", "traced"
PLANE = "/device:CUSTOM:parts of a step"
_OF_RATE = {"median": "median", "q1": "q3", "q3": "q1"}  # which quartile of a rate gives which of its time


def read(folder: pathlib.Path) -> dict[str, list[float]]:
    """Returns the seconds of each part of a step, and of the whole `step`, step by step.

    Args:
      folder: of a run, or what it wrote for TensorBoard; or one `*.xplane.pb`.

    Raises:
      InputError: there is no trace, or none with these rows.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.xplane.pb"))
    seconds: dict[str, list[float]] = {}
    for file in files:
        for part, found in _parts(file).items():
            seconds.setdefault(part, []).extend(found)
    if not seconds.get("step"):
        what = "one without the parts of a step" if files else "none"
        raise InputError(f"trace: expected a profiler's trace (*.xplane.pb) in {folder}, received {what}, "
                         "try the folder of a training with --profile_steps=10,20 on a CPU")
    return seconds


def _parts(file: pathlib.Path) -> dict[str, list[float]]:
    try:
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise InputError(f"trace: expected a profiler's trace, received {file} ({error}), "
                         "try the folder of a training with --profile_steps=10,20") from None
    rows = {line.name: [(line.timestamp_ns * 1000 + event.offset_ps, event.duration_ps) for event in line.events]
            for plane in space.planes if plane.name == PLANE for line in plane.lines}
    steps = rows.pop("step", [])
    return {"step": [duration / 1e12 for _, duration in steps],
            **{part: [sum(duration for begin, duration in pieces if first <= begin < first + whole) / 1e12
                      for first, whole in steps] for part, pieces in rows.items()}}


def lines(seconds: Mapping[str, Sequence[float]]) -> str:
    """Returns what `read` found as plain text, a part a line."""
    text = [f"{'part':<12}{'ms a step':>12}{'q1':>10}{'q3':>10}{'of the step':>13}   ({len(seconds['step'])} steps)"]
    for part, found in seconds.items():
        taken = _quartiles(np.multiply(found, 1e3))
        share = float(np.median(np.divide(found, seconds["step"])))
        text.append(f"{part:<12}{taken['median']:>12.2f}{taken['q1']:>10.2f}{taken['q3']:>10.2f}{share:>13.1%}")
    return "\n".join(text)


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str, tell: Callable[[str], None],
        quick: bool = False) -> dict[str, Any]:
    """Races a step without the policy, one with it, one that is traced, and the policy alone.

    Args:
      present: the peers; none takes part.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; nothing runs where it does not occur in the network's name.
      tell: called with lines of progress.
      quick: another network, a policy that compiles sooner, and shorter runs.

    Returns:
      `rows`; `trace`, the milliseconds {median, q1, q3} a step of `augment` in the trace, of the policy alone, and of
      the difference of two steps, and the part that the trace shows of its step; `batch`.
    """
    del present
    steps = QUICK_STEPS if quick else STEPS
    network = QUICK_NETWORK if quick else NETWORK
    policy, text = QUICK_POLICY if quick else POLICY
    if not re.search(only, network):
        return {"rows": [], "trace": [], "batch": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contestants(network, policy, text, pathlib.Path(folder), steps)
        rows = race("trace", contestants, samples=samples, seconds=seconds, tell=tell)
        traced = read(pathlib.Path(folder))
    rates = {row["implementation"]: row["images_per_second"] for row in rows}
    alone, plain, augmented = rates[ALONE], rates[PLAIN], rates[policy]
    found = {
        "case": network, "policy": policy, "steps": len(traced["step"]),
        "trace_ms": _quartiles(np.multiply(traced["augment"], 1e3)),
        "part_of_step": _quartiles(np.divide(traced["augment"], traced["step"])),
        "alone_ms": {name: round(1e3 * BATCH / alone[of], 4) for name, of in _OF_RATE.items()},
        "difference_ms": {name: round(1e3 * BATCH * (1 / augmented[of] - 1 / plain[_OF_RATE[of]]), 4)
                          for name, of in _OF_RATE.items()},
    }
    return {"rows": [row for row in rows if row["implementation"] != TRACED], "trace": [found], "batch": BATCH}


def _quartiles(values: np.ndarray) -> dict[str, float]:
    q1, median, q3 = (round(float(value), 4) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "q1": q1, "q3": q3}


def _contestants(network: str, name: str, text: str, folder: pathlib.Path, steps: int) -> list[Contestant]:
    """Returns who takes turns; whoever is traced writes a folder in each turn, and its rate is that of the writing."""
    classes = len(demo.CLASS_NAMES)
    given = training.rendered(BATCH)
    plain, augmented = (training.build(network, policy=policy, classes=classes) for policy in ("", text))
    batches = training.placed([given], augmented.runtime.strategy) * steps
    policy = step.inputs(augment.parse(text), augmented.runtime, 0, num_classes=classes)

    def alone(turn: int) -> None:
        for number in range(steps):
            np.asarray(policy(given, tf.constant(steps * turn + number, tf.int64))[0])

    def train(trained: training.Training) -> Callable[[int], None]:
        def run(turn: int) -> None:
            for number, batch in enumerate(batches):
                trained.run([batch], steps * turn + number)  # each an epoch of its own: the policy draws anew
        return run

    def traced(turn: int) -> None:
        for number, batch in enumerate(Profiler((1, steps), folder / str(turn)).steps(batches)):
            augmented.run([batch], steps * turn + number)
        if turn < 2:  # the first calls, which are not timed either
            shutil.rmtree(folder / str(turn))

    runs: dict[str, Callable[[int], None]] = {
        PLAIN: train(plain), name: train(augmented), ALONE: alone, TRACED: traced}
    return [Contestant(network, who, steps * BATCH, run) for who, run in runs.items()]
