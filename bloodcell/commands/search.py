"""`--mode=search`: read the images once, train trial after trial, and write what came of it after each.

Read `run` from top to bottom. Spaces, methods, the study and its page live in `bloodcell.search`; here is their order.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import signal
import sys
import time
from typing import Any

import tensorflow as tf

from bloodcell import __version__
from bloodcell.commands import audit, common, parts, search_processes, segmenting
from bloodcell.config import Config, to_flagfile
from bloodcell.data import similarity, sources, split
from bloodcell.data.dataset import ImageSet
from bloodcell.data.segment import Segmenter
from bloodcell.errors import InputError, Stopped
from bloodcell.files import write_atomically
from bloodcell.models import MissingWeights
from bloodcell.search import board, methods, objective, page, places, space, table
from bloodcell.search.study import Study, Trial
from bloodcell.train import checkpoints, loop, stages, state
from bloodcell.train import strategy as strategies

MOST_FAILURES = 5  # trials that fail before any is complete
_WAIT_SECONDS = 2.0  # between two looks at trials of other processes
_PAGE_SECONDS = 60.0  # between two pages, while trials go on


def run(config: Config) -> None:
    """Searches, or goes on with the search that the folder holds; ends by printing one line of JSON.

    The folder gets `study.db`, `trials.csv`, `study.html`, `best.cfg` (a flagfile that trains with the best values),
    `trials/NNNN/` with `config.cfg` and `metrics.jsonl` (the best one's also with its checkpoint), and `tensorboard/`
    for the HParams tab. With `config.dry_run` nothing is written.

    Raises:
      InputError: data, flags or folders that cannot be used, or trials that all fail.
    """
    common.check_output(config.report, "--report")
    if config.dry_run:
        _dry_run(config)
        return
    if any((config.run_dir / name).exists() for name in (checkpoints.MODEL_FILE, checkpoints.FOLDER)):
        raise InputError(f"--workdir expected a folder for a search, received {config.run_dir}, which holds a "
                         "training; try --workdir=runs/search")
    study = _opened(config)
    print(f"search: {study.space}\n{config.search}: {study.trials:,} trials, {study.done():,} of them done; "
          f"{config.run_dir}", flush=True)
    try:
        if config.search_workers > 1:
            _share(config, study)
        elif study.done() < study.trials:
            _work(config, study)
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        raise Stopped(number, f"{study.done():,} of {study.trials:,} trials are done and kept; the same command goes "
                              "on") from None
    finally:
        _write(config, study, whole=True)
    _conclude(config, study)


def _opened(config: Config) -> Study:
    """Returns the study of `--workdir`, new or begun."""
    method = methods.parse(config.search)
    searched = space.parse(config.search_space)
    fixed = {f"--{name}": value for name, value in dataclasses.asdict(places.as_training(config)).items()
             if name not in state.FREE_FLAGS and name not in searched.names}
    fixed["--search (folds)"] = method.folds
    return Study(config.run_dir, searched, method, methods.parse_pruning(config.search_pruning), seed=config.seed,
                 identity=fixed)


# ---------------------------------------------------------------------------------------------------------------------
# One process, or several
# ---------------------------------------------------------------------------------------------------------------------


def _work(config: Config, study: Study, *, first: bool = True) -> None:
    """Trains trials until all are done; `first`: of the processes on this machine, the one that speaks for all."""
    runtime = _runtime(config)
    images = Images(config)
    with contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO()):
        images.of(config)
        common.print_header(runtime, config.data, images.shown, cache=config.cache, learned=tuple(images.shown))
    study.check({f"the {name} images": each.fingerprint() for name, each in images.shown.items()})
    lines, said, written = table.Lines(study.space), False, time.monotonic()
    if first:
        print(lines.header(), flush=True)
    while True:
        trial = study.claim()
        if trial is None:
            if study.done() >= study.trials:
                return
            if first and not said:
                print("waiting for trials of other processes", flush=True)
                said = True
            time.sleep(_WAIT_SECONDS)
            continue
        try:
            objective.run(trial, functools.partial(_prepared, config, trial, images), runtime, say=_status(config))
        except MissingWeights as error:
            if config.data != "demo" or config.weights == "none":
                raise
            print(f"warning: {' '.join(str(error).split())}; the demo goes on from random weights", file=sys.stderr,
                  flush=True)
            config = dataclasses.replace(config, weights="none")
            continue
        _after(config, study, trial, lines)
        if time.monotonic() - written > _PAGE_SECONDS:
            _write(config, study, whole=True)
            written = time.monotonic()


def _prepared(config: Config, trial: Trial, images: "Images") -> tuple[Config, tuple[objective.Parts, ...]]:
    """Returns a trial's flags, and what it trains on."""
    own = dataclasses.replace(places.apply(places.as_training(config), trial.point), workdir=str(trial.folder), keep=1,
                              checkpoint_seconds=0, report="", profile_steps="",
                              progress="none" if config.progress == "auto" else config.progress)
    loaded = images.of(own)
    if loaded.segmenter:
        loaded.segmenter.save(trial.folder)
    return own, loaded.folds


def _after(config: Config, study: Study, trial: Trial, lines: table.Lines) -> None:
    """Shows and writes what a trial brought; raises InputError where trials do nothing but fail."""
    rows = study.rows()
    row = rows[trial.number]
    _status(config)("")
    print(lines.line(row, study.best()) + (f"  (trial {trial.again} again, which was killed)"
                                           if trial.again is not None else ""), flush=True)
    _write(config, study, whole=False)
    board.write_trial(config.run_dir, study.space, row, trial.folder)
    failed = [each for each in rows if each.state == "failed"]
    if len(failed) >= MOST_FAILURES and not any(each.state == "complete" for each in rows):
        raise InputError(_all_failed(study))


def _share(config: Config, study: Study) -> None:
    """Has several processes of this machine work on the study."""
    line, codes = search_processes.run(config, gpus=len(tf.config.list_physical_devices("GPU")))
    if study.done() < study.trials:
        raise InputError(line or f"expected {study.trials:,} trials, received {study.done():,} from processes that "
                                 f"ended with {', '.join(map(str, codes))}; try the same command, which goes on, or "
                                 "fewer --search_workers")


def take_part(config: Config, *, first: bool) -> None:
    """What each of several processes does; `first`: the one that speaks for all."""
    _work(config, _opened(config), first=first)


def _runtime(config: Config) -> strategies.Runtime:
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    return common.resolve(config)


def _status(config: Config) -> Any:
    """Returns what shows a trial's progress on a line that the next text overwrites, where there is a terminal."""
    if config.progress != "auto" or config.search_workers > 1 or not sys.stdout.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What a trial trains on: each fold's parts, made when asked for, and what segmented them where that is one."""

    folds: tuple[objective.Parts, ...]
    segmenter: Segmenter | None


class Images:
    """The images of all trials, read once for each size and segmentation that they have; the test part is left alone.

    Attributes:
      shown: the sets by name, of the newest that were read.
    """

    def __init__(self, config: Config):
        self._method = methods.parse(config.search)
        self._loaded: dict[tuple[int, str], Loaded] = {}
        self.shown: dict[str, ImageSet] = {}

    def of(self, config: Config) -> Loaded:
        """Returns what a trial with these flags trains on; raises InputError where it cannot be used."""
        key = config.image_size, config.segment
        if key not in self._loaded:
            self._loaded[key] = self._parts(config) if self._method.folds is None else self._folds(
                config, self._method.folds)
        return self._loaded[key]

    def _parts(self, config: Config) -> Loaded:
        found = parts.load(config)
        self.shown = {name: found[name] for name in ("train", "val")}
        done, segmentation = segmenting.in_training(self.shown, config)
        return Loaded((lambda: (done["train"], done["val"]),), segmentation.segmenter if segmentation else None)

    def _folds(self, config: Config, count: int) -> Loaded:
        images, pictures = audit.clean(sources.load(
            config.data, part="train", image_size=config.image_size, seed=config.seed,
            max_bad_images=config.max_bad_images, cache=config.cache), config)
        known = similarity.groups(images) if pictures is None else pictures
        self.shown = {"training": images}

        def fold(number: int) -> tuple[ImageSet, ImageSet]:
            divided = split.split(images, f"kfold({count}, fold={number})", config.seed, pictures=known)
            with contextlib.redirect_stdout(io.StringIO()):  # a line for each part of each fold of each trial
                done, _ = segmenting.in_training({"train": divided.train, "val": divided.val}, config)
            return done["train"], done["val"]

        return Loaded(tuple(functools.partial(fold, number) for number in range(count)), None)


# ---------------------------------------------------------------------------------------------------------------------
# What is written and said
# ---------------------------------------------------------------------------------------------------------------------


def _dry_run(config: Config) -> None:
    """Trains one batch of each stage with the space's first values, and writes nothing."""
    searched = space.parse(config.search_space)
    runtime, images = _runtime(config), Images(config)
    point = searched.corners()[0]
    first = dataclasses.replace(places.apply(places.as_training(config), point), dry_run=True)
    loaded = images.of(first)
    common.print_header(runtime, config.data, images.shown, cache=config.cache, learned=tuple(images.shown))
    plan = " | ".join(str(stage) for stage in stages.parse(first.stages))
    said = ", ".join(f"{name}={value!r}" for name, value in point.items())
    print(f"dry run of the search {searched} by {config.search}, with {said}: {first.model}, {plan}; one batch of "
          f"{first.batch_size} per stage, nothing is written (a real run would write {config.run_dir})", flush=True)
    loop.fit(first, runtime, *loaded.folds[0](), pathlib.Path(config.run_dir))
    print("dry run: done", flush=True)


def _write(config: Config, study: Study, *, whole: bool) -> None:
    """Writes trials.csv and best.cfg, and with `whole` the page and TensorBoard's description of the space."""
    with study.alone():  # or an older best.cfg might replace a newer one
        rows, best = study.rows(), study.best()
        if not rows:
            return
        write_atomically(config.run_dir / "trials.csv", table.csv_text(rows, study.space.names).encode())
        if best is not None:
            text = _flagfile(config, study, sum(row.state in ("complete", "pruned", "failed") for row in rows))
            write_atomically(config.run_dir / "best.cfg", text.encode())
    if whole:
        board.write_space(config.run_dir, study.space)
        settings = {"method": config.search, "pruning": config.search_pruning, "data": config.data,
                    "validation under": config.val_augment or "no augmentation", "seed": str(config.seed),
                    "bloodcell": __version__}
        text = page.page(rows, study.space, study.importances(), folder=str(config.run_dir), settings=settings)
        write_atomically(config.run_dir / "study.html", text.encode())


def _flagfile(config: Config, study: Study, count: int) -> str:
    """Returns a flagfile of the best trial, its figure above it."""
    best = study.best()
    assert best is not None
    own = places.apply(places.as_training(config), best.point)
    where = f"the mean of {len(best.folds)} folds" if best.folds else "its validation part"
    under = f" under --val_augment={config.val_augment}" if config.val_augment else ""
    return (f"# The best of {count} trials (bloodcell {__version__}): trial {best.number}, balanced accuracy "
            f"{best.value:.4f} on {where}{under}.\n"
            f"#   {table.said(best, study.space.names)}\n"
            f"#   python main.py --flagfile={config.run_dir / 'best.cfg'} --workdir={config.run_dir}-best\n"
            f"{to_flagfile(own)}")


def _conclude(config: Config, study: Study) -> None:
    rows, best = study.rows(), study.best()
    if best is None:
        raise InputError(_all_failed(study))
    counts = {name: sum(row.state == name for row in rows) for name in ("complete", "pruned", "failed")}
    print(f"best: trial {best.number}, balanced accuracy {best.value:.4f}: {table.said(best, study.space.names)}\n"
          f"flagfile: {config.run_dir / 'best.cfg'}; page: {config.run_dir / 'study.html'}; TensorBoard: "
          f"--logdir={config.run_dir / board.FOLDER}")
    line = json.dumps({"trials": sum(counts.values()), **counts, "best_trial": best.number,
                       "balanced_accuracy": best.value, "folds": list(best.folds), "values": best.point},
                      allow_nan=False)
    if config.report:
        write_atomically(pathlib.Path(config.report), (line + "\n").encode())
    print(line, flush=True)


def _all_failed(study: Study) -> str:
    failed = [row for row in study.rows() if row.state == "failed"]
    return (f"--search_space expected values that can be trained, received {len(failed)} trials that failed, the last: "
            f"{failed[-1].line if failed else 'none'}; try other ranges, and a new --workdir")
