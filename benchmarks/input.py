"""Suite `input`: images from memory, from the device and from streamed TFRecords, beside other libraries' pipelines.

Cases, in this order:

- `pipeline`: images read, decoded and batched, augmented by nobody; ours and the peers that offer that.
- `whole job`: what stands between a set and a network's input, augmentation included. The peers augment in their
  pipelines, image by image (`peers.feeds`), ours in the compiled program that the training step begins with.
- `training`: one network's step, fed from our sides in turns, and one contestant more: the same step on the same
  batches, tensors already, so that nothing is left to feed.

Our sides feed the same images in the same order; they differ in `--cache` and in nothing else. Two networks are
trained: the recipes', and the fastest there is, whose step leaves the least time for reading. Against the rate of each
on tensors, the demand, every source is held. What feeds at less than 100% of it slows that training; what feeds at more
may still do so on a CPU, where both want the same cores, which the rows of `training` show. The demand is that of a
step that augments, a little less than what a pipeline that augments for it would have to meet.
"""

import dataclasses
import functools
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from benchmarks import QUICK_NETWORK, progress, streaming, training
from benchmarks.peers import feeds
from benchmarks.peers.feeds import sources
from benchmarks.timing import Contestant, race

if TYPE_CHECKING:
    from bloodcell.data.pipeline import Pipeline

SECONDS = 60.0  # a contestant's timed runs of one case
BATCH = 64  # as the recipes have it
IMAGES, QUICK_IMAGES = 10_000, 1_024  # of the sets that are raced
QUICK_CELLS = 64  # rendered for them
LARGE = 100_000  # of the set whose memory is compared with theirs
POLICY = "flip | rotate(180) | zoom(0.2) | randaugment(n=2, m=4)"
PIPELINE_STEPS = 100  # batches of a run
TRAIN_STEPS = {"efficientnet_lite0": 6, "mobilenet_v3_small": 12}  # of a run of each network: takes seconds
QUICK_STEPS = 2  # of any run, at most
PIPELINE, JOB, TRAIN = "pipeline", "whole job", "training"  # what the names of cases begin with
JPEG, PNG, ARRAYS = "jpeg", "png", "arrays"
SIDES = ("memory", "device", "tfrecord")
QUICK_SIDES = ("memory", "tfrecord")  # one way to give the step its images: it compiles once
TENSORS = "tensors"  # the contestant without input
PEAK = "peak memory"


@dataclasses.dataclass(frozen=True)
class _Sets:
    """The sets that are raced, written when they are first asked for.

    Attributes:
      folder: where.
      images: of each set.
      cells: rendered for it; 0 for as many as usual.
      present: the feeders that take part.
      steps: batches of a run, at most.
      trained: the sides that feed a training.
    """

    folder: pathlib.Path
    images: int
    cells: int
    present: Mapping[str, feeds.Implementation]
    steps: int
    tell: Callable[[str], None]
    trained: tuple[str, ...] = SIDES
    _written: dict[tuple[int, str], str] = dataclasses.field(default_factory=dict)
    _sources: dict[str, feeds.Source] = dataclasses.field(default_factory=dict)

    def pattern(self, encoding: str, count: int = 0) -> str:
        """Returns the glob of the shards of so many images, by default of `images`."""
        key = count or self.images, encoding
        if key not in self._written:
            self.tell(f"writing {key[0]:,} records of {encoding}")
            self._written[key] = streaming.write(self.folder / f"{key[0]}-{encoding}", *key, cells=self.cells)
        return self._written[key]

    def source(self, kind: str) -> feeds.Source:
        """Returns the same images for the peers: as encoded files, or with ARRAYS in memory."""
        if kind not in self._sources:
            from bloodcell.data import demo, tfrecord
            if kind == ARRAYS:
                held = tfrecord.load(self.pattern(JPEG), cache="memory", class_names=demo.CLASS_NAMES)
                self._sources[kind] = feeds.Source(np.asarray(held.labels), images=np.asarray(held.images))
            else:
                files = self.folder / f"files-{kind}" if "torch" in self.present else None
                self._sources[kind] = sources.encoded(tfrecord.shards_of(self.pattern(kind)), files)
        return self._sources[kind]


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None], quick: bool = False) -> dict[str, Any]:
    """Races the sides case by case.

    Args:
      present: the peers of the other suites; those of this one are `feeds.FEEDERS`.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the cases to run are those in whose names it occurs.
      tell: called with lines of progress.
      quick: fewer images, shorter runs, one case of each kind, and no figures of memory.

    Returns:
      `rows`, those of a training with their part of the rate of `TENSORS`; `demand`, what part of each training's
      demand each source feeds; `streams`, what an epoch takes in memory, streamed, and streamed from ten times as many
      images; `peers` and `missing`, of the feeders, as the other suites have theirs; `batch`.
    """
    del present
    ready, missing = feeds.available()
    for name, why in missing.items():
        tell(f"{name}: {why}; the case goes on without it")
    rows: list[dict[str, Any]] = []
    streams: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        sets = (_Sets(place, QUICK_IMAGES, QUICK_CELLS, ready, QUICK_STEPS, tell, QUICK_SIDES) if quick else
                _Sets(place, IMAGES, 0, ready, PIPELINE_STEPS, tell))
        cases: dict[str, Callable[[str, _Sets], list[Contestant]]] = {
            f"{PIPELINE}, {JPEG}": functools.partial(_feeding, JPEG),
            f"{PIPELINE}, {PNG}": functools.partial(_feeding, PNG),
            f"{JOB}, {JPEG}": functools.partial(_whole_job, JPEG),
            f"{JOB}, {ARRAYS}": functools.partial(_whole_job, ARRAYS),
            **{f"{TRAIN} {model}": functools.partial(_training, model)
               for model in ((QUICK_NETWORK,) if quick else TRAIN_STEPS)}}
        left_out = (f"{PIPELINE}, {PNG}", f"{JOB}, {ARRAYS}") if quick else ()
        named = [case for case in cases if re.search(only, case) and case not in left_out]
        measures_memory = re.search(only, PEAK) and not quick
        for case in progress.each([*named, *([PEAK] if measures_memory else [])], tell):
            if case != PEAK:
                rows += race("input", cases[case](case, sets), samples=samples, seconds=seconds, baseline=TENSORS,
                             tell=tell)
                continue
            for count, cache in ((IMAGES, "memory"), (IMAGES, "none"), (LARGE, "none")):
                streams.append(streaming.measure(sets.pattern(JPEG, count), cache))
                tell(f"{PEAK}: {streams[-1]}")
    return {"rows": rows, "demand": demand(rows), "streams": streams, "batch": BATCH, "peers": feeds.about(ready),
            "missing": missing}


def demand(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each source and each training, `part` {median, q1, q3} of the training's demand that it feeds.

    The demand is the rate of `TENSORS`. Sources and trainings were not timed in the same turns, so the quartiles are
    the widest that theirs allow.
    """
    wanted = {row["case"]: row["images_per_second"] for row in rows if row["implementation"] == TENSORS}
    return [{"case": row["case"], "implementation": row["implementation"], "training": case.removeprefix(f"{TRAIN} "),
             "part": {name: round(row["images_per_second"][name] / rate[other], 3)
                      for name, other in (("median", "median"), ("q1", "q3"), ("q3", "q1"))}}
            for row in rows if not row["case"].startswith(TRAIN) for case, rate in wanted.items()]


def _sides(pattern: str, strategy: tf.distribute.Strategy) -> dict[str, "Pipeline"]:
    """Returns the set as each side has it: with `--cache=memory`, `device` and `none`."""
    from bloodcell.data import demo, tfrecord
    from bloodcell.data.pipeline import Pipeline

    def load(cache: str) -> Pipeline:
        return Pipeline(tfrecord.load(pattern, cache=cache, class_names=demo.CLASS_NAMES), batch_size=BATCH)

    memory = load("memory")
    return dict(zip(SIDES, (memory, memory.on_devices(strategy), load("none")), strict=True))


def _first(pipeline: "Pipeline", steps: int) -> tuple[tf.data.Dataset, int]:
    """Returns the first batches of an epoch, again in each loop over them, and how many there are."""
    steps = min(steps, pipeline.num_batches)
    return pipeline.epoch(0, 0).take(steps), steps


def _feeding(encoding: str, case: str, sets: _Sets) -> list[Contestant]:
    """Our sides, and the peers without augmentation: of those in `tf.data`, one stands for all."""
    def feed(batches: tf.data.Dataset) -> Callable[[int], None]:
        def run(_: int) -> None:
            for _batch in batches:
                pass
        return run

    sides = {name: _first(pipeline, min(PIPELINE_STEPS, sets.steps))
             for name, pipeline in _sides(sets.pattern(encoding), tf.distribute.get_strategy()).items()}
    return [*(Contestant(case, name, steps * BATCH, feed(batches)) for name, (batches, steps) in sides.items()),
            *_peers(case, sets, encoding, ("plain", "dali", "torch"), augment=False)]


def _whole_job(kind: str, case: str, sets: _Sets) -> list[Contestant]:
    """Ours ends on the device that trains, the peers in host memory, where they leave it to the training to go on."""
    from bloodcell import augment
    from bloodcell.data import demo
    from bloodcell.train import step, strategy
    runtime = strategy.resolve(strategy="none", replicas=0, precision="auto", jit="augment", seed=0)
    inputs = step.inputs(augment.parse(POLICY), runtime, 0, num_classes=len(demo.CLASS_NAMES))
    epoch = tf.constant(0, tf.int64)

    def deliver(batches: Iterable[Any]) -> Callable[[int], None]:
        def run(_: int) -> None:
            last = None
            for batch in batches:
                last, _targets = inputs(batch, epoch)
            if last is not None:
                last[0, 0, 0].numpy()  # a device does one after the other: all are there then
        return run

    contestants = []
    sides = _sides(sets.pattern(JPEG if kind == ARRAYS else kind), runtime.strategy)
    for side in SIDES[:2] if kind == ARRAYS else SIDES[2:]:
        batches, steps = _first(sides[side], min(PIPELINE_STEPS, sets.steps))
        given = runtime.distribute(batches, sides[side].resident)
        contestants.append(Contestant(case, side, steps * BATCH, deliver(given)))
    return [*contestants, *_peers(case, sets, kind, [feeder.name for feeder in feeds.FEEDERS], augment=True)]


def _peers(case: str, sets: _Sets, kind: str, names: Sequence[str], *, augment: bool) -> list[Contestant]:
    return [feeds.contestant(
        case, feeder, sets.present[feeder.name].start(sets.source(kind), batch=BATCH,
                                                      augment=augment and feeder.augments),
        batch=BATCH, steps=min(feeder.steps if augment else PIPELINE_STEPS, sets.steps))
        for feeder in feeds.FEEDERS if feeder.name in names and feeder.name in sets.present]


def _training(name: str, case: str, sets: _Sets) -> list[Contestant]:
    """One network and one compiled step, fed in turns from all sides.

    The step is traced and compiled twice, for batches with images and for those with their positions on the device. The
    first call of each contestant, which is not timed, sees to that.
    """
    from bloodcell.data import demo
    trained = training.build(name, policy=POLICY, classes=len(demo.CLASS_NAMES))

    def train(batches: Iterable[Any]) -> Callable[[int], None]:
        return lambda turn: trained.run(batches, turn)

    contestants = []
    most = min(TRAIN_STEPS.get(name, sets.steps), sets.steps)
    pipelines = _sides(sets.pattern(JPEG), trained.runtime.strategy)
    for side in sets.trained:
        batches, steps = _first(pipelines[side], most)
        given = trained.runtime.distribute(batches, pipelines[side].resident)
        contestants.append(Contestant(case, side, steps * BATCH, train(given)))
    batches, steps = _first(pipelines["memory"], most)
    ready = training.placed(batches, trained.runtime.strategy)
    return [*contestants, Contestant(case, TENSORS, steps * BATCH, train(ready))]
