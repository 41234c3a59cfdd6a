"""Suite `input`: images in memory, on the device, and in TFRecords that are streamed, alone and under a training step.

All sides feed the same images in the same order; they differ in `--cache` and in nothing else. A training has one more
contestant: the same step on one batch again and again, a tensor already, so that nothing is left to feed. Two networks
are trained: the recipes', and the fastest there is, whose step leaves the least time for reading.
"""

import functools
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from benchmarks import streaming, training
from benchmarks.timing import Contestant, race

if TYPE_CHECKING:
    from bloodcell.data.pipeline import Pipeline

SECONDS = 60.0  # a contestant's timed runs of one case
BATCH = 64  # as the recipes have it
IMAGES = 10_000  # of the sets that are raced
LARGE = 100_000  # of the set whose memory is compared with theirs
MODELS = ("efficientnet_lite0", "mobilenet_v3_small")
POLICY = "flip | rotate(180) | zoom(0.2) | randaugment(n=2, m=4)"
PIPELINE_STEPS, TRAIN_STEPS = 100, 60  # batches of a run
TRAIN = "training"  # with the network's name behind it
REPEATED = "repeated"  # the contestant without input
PEAK = "peak memory"


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None]) -> dict[str, Any]:
    """Races the sides case by case.

    Args:
      present: the peers; none takes part.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the cases to run are those in whose names it occurs.
      tell: called with lines of progress.

    Returns:
      `rows`, those of a training with their part of the rate of `REPEATED`; `streams`, what an epoch takes in memory,
      streamed, and streamed from ten times as many images; `batch`.
    """
    del present
    rows: list[dict[str, Any]] = []
    streams: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        written: dict[tuple[int, str], str] = {}

        def pattern(count: int, encoding: str) -> str:
            if (count, encoding) not in written:
                tell(f"writing {count:,} records of {encoding}")
                written[count, encoding] = streaming.write(pathlib.Path(folder, f"{count}-{encoding}"), count, encoding)
            return written[count, encoding]

        cases: dict[str, tuple[str, Callable[[str, str], list[Contestant]]]] = {
            "pipeline, jpeg": ("jpeg", _feeding), "pipeline, png": ("png", _feeding),
            **{f"{TRAIN} {model}": ("jpeg", functools.partial(_training, model)) for model in MODELS}}
        for case, (encoding, contestants) in cases.items():
            if re.search(only, case):
                rows += race("input", contestants(case, pattern(IMAGES, encoding)), samples=samples, seconds=seconds,
                             baseline=REPEATED, tell=tell)
        if re.search(only, PEAK):
            for count, cache in ((IMAGES, "memory"), (IMAGES, "none"), (LARGE, "none")):
                streams.append(streaming.measure(pattern(count, "jpeg"), cache))
                tell(f"{PEAK}: {streams[-1]}")
    return {"rows": rows, "streams": streams, "batch": BATCH}


def _sides(pattern: str, strategy: tf.distribute.Strategy) -> dict[str, "Pipeline"]:
    """Returns the set as each side has it: with `--cache=memory`, `device` and `none`."""
    from bloodcell.data import demo, tfrecord
    from bloodcell.data.pipeline import Pipeline

    def load(cache: str) -> Pipeline:
        return Pipeline(tfrecord.load(pattern, cache=cache, class_names=demo.CLASS_NAMES), batch_size=BATCH)

    memory = load("memory")
    return {"memory": memory, "device": memory.on_devices(strategy), "tfrecord": load("none")}


def _first(pipeline: "Pipeline", steps: int) -> tuple[tf.data.Dataset, int]:
    """Returns the first batches of an epoch, again in each loop over them, and how many there are."""
    steps = min(steps, pipeline.num_batches)
    return pipeline.epoch(0, 0).take(steps), steps


def _feeding(case: str, pattern: str) -> list[Contestant]:
    def feed(batches: tf.data.Dataset) -> Callable[[int], None]:
        def run(_: int) -> None:
            for _batch in batches:
                pass
        return run

    sides = {name: _first(pipeline, PIPELINE_STEPS)
             for name, pipeline in _sides(pattern, tf.distribute.get_strategy()).items()}
    return [Contestant(case, name, steps * BATCH, feed(batches)) for name, (batches, steps) in sides.items()]


def _training(name: str, case: str, pattern: str) -> list[Contestant]:
    """One network and one compiled step, fed in turns from all sides.

    The step is traced and compiled twice, for batches with images and for those with their positions on the device. The
    first call of each contestant, which is not timed, sees to that.
    """
    from bloodcell.data import demo
    trained = training.build(name, policy=POLICY, classes=len(demo.CLASS_NAMES))

    def train(batches: Iterable[Any]) -> Callable[[int], None]:
        return lambda _: trained.run(batches)

    contestants = []
    pipelines = _sides(pattern, trained.runtime.strategy)
    for side, pipeline in pipelines.items():
        batches, steps = _first(pipeline, TRAIN_STEPS)
        given = trained.runtime.distribute(batches, pipeline.resident)
        contestants.append(Contestant(case, side, steps * BATCH, train(given)))
    batch = training.placed(pipelines["memory"].batch(0, 0), trained.runtime.strategy)
    steps = min(TRAIN_STEPS, pipelines["memory"].num_batches)
    return [*contestants, Contestant(case, REPEATED, steps * BATCH, train([batch] * steps))]

