"""`--mode=train`: load the data, train (or resume), measure the best weights, write the run's folder.

Read `run` from top to bottom. Each act lives in its own package; here is their order, and what the run leaves behind.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell import __version__, augment
from bloodcell.commands import (
    classifying,
    common,
    corrupting,
    explaining,
    measuring,
    novelty_fitting,
    reporting,
    segmenting,
)
from bloodcell.commands import parts as data_parts
from bloodcell.config import Config, to_flagfile
from bloodcell.data import balance, division, split
from bloodcell.data.dataset import ImageSet
from bloodcell.evaluate import metrics, plots, report, temperature
from bloodcell.files import check_folder, locked, make_folder, write_atomically
from bloodcell.models import MissingWeights
from bloodcell.train import checkpoints, cluster, loop, metrics_log, shown, stages
from bloodcell.train import strategy as strategies
from bloodcell.train.tensorboard import Board

GRID_IMAGES = 16  # augmented images shown in the report


def run(config: Config) -> None:
    """Trains and ends by printing one line of JSON with the figures of the best weights.

    The run's folder gets `config.cfg`, `metrics.jsonl`, `report.json`, `report.html`, `confusion.png`,
    `reliability.png`, `augmented.png`, `model.json`, `split.json`, `novelty.npz`, `checkpoints/` and
    `tensorboard/`; with `config.dry_run` nothing is written.

    Raises:
      InputError: data, flags or folders that cannot be used.
    """
    # ---- With what, and where ------------------------------------------------------------------------------------
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    runtime, why = common.with_backend(common.resolve(config, training=True), config)
    with contextlib.ExitStack() as stack:
        if not runtime.chief:  # the chief speaks for all
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(cluster.one_line_where_a_worker_is_lost(runtime.workers))
        _run(config, runtime, why)


def _run(config: Config, runtime: strategies.Runtime, why: str) -> None:
    run_dir = config.run_dir
    writes = runtime.chief and not config.dry_run
    if writes:
        check_folder(run_dir)
    parts, divided = data_parts.load_divided(config)
    resumed = checkpoints.Checkpoints(run_dir).has("last")
    parts, segmentation = segmenting.in_training(parts, config, resumed=resumed and not config.dry_run)
    if writes:  # after the data, so that a mistyped --data leaves no empty folder
        make_folder(run_dir)
        common.check_output(config.report, "--report")
    with locked(run_dir) if writes else contextlib.nullcontext():
        _train(config, runtime, parts, divided, segmentation, resumed=resumed, why=why)


def _train(config: Config, runtime: strategies.Runtime, parts: dict[str, ImageSet], divided: division.Division,
           segmentation: segmenting.Segmentation | None, *, resumed: bool, why: str) -> None:
    run_dir = config.run_dir
    balanced = _balanced(parts["train"], config)
    common.print_header(runtime, config.data, parts, cache=config.cache, learned=("train", "val"),
                        augmented=True)
    if why:
        print(f"augmentation by XLA: {why}", flush=True)
    if balanced:
        print(f"training rows an epoch: {_rows_line(balanced)}", flush=True)
    if config.dry_run:
        plan = " | ".join(str(stage) for stage in stages.parse(config.stages))
        print(f"dry run: {config.model}, {plan}; one batch of "
              f"{config.batch_size} per stage, nothing is written (a real run would write {run_dir})", flush=True)
    elif resumed:
        division.check(run_dir, divided)
    elif runtime.chief:
        _write_flags(config, run_dir)
        division.write(run_dir, divided)
        if segmentation:
            segmentation.segmenter.save(run_dir)

    # ---- Training ------------------------------------------------------------------------------------------------
    try:
        model = loop.fit(config, runtime, parts["train"], parts["val"], run_dir)
    except MissingWeights as error:
        if config.data != "demo" or runtime.workers > 1:  # another worker may have them
            raise
        reason = " ".join(str(error).split())
        print(f"warning: {reason}; the demo goes on from random weights", file=sys.stderr, flush=True)
        config = dataclasses.replace(config, weights="none")
        if not config.dry_run:
            _write_flags(config, run_dir)
        model = loop.fit(config, runtime, parts["train"], parts["val"], run_dir)
    if config.dry_run:
        print("dry run: done", flush=True)
        return
    if not runtime.chief:
        return

    # ---- The figures of the best weights -------------------------------------------------------------------------
    measured = "test" if "test" in parts else "val"
    averaged = _averaged(model, parts, measured, config, runtime)
    loaded = classifying.of_training(model, "best", parts["val"], config, runtime)
    novelty = novelty_fitting.fit(loaded, "best", train=parts["train"], val=parts["val"], config=config,
                                  runtime=runtime)
    result = measuring.measure(loaded.classifier, parts[measured], config)
    figures = result.figures
    if config.corruptions and segmentation:
        print("corruptions: not measured here, where only segmented images are left; try --mode=evaluate", flush=True)
    elif config.corruptions:
        figures["corruptions"] = corrupting.measure(loaded, parts[measured], config, runtime, clean=figures)
    history = _history(run_dir)
    saved = {"mib": round(checkpoints.Checkpoints(run_dir).size() / 2**20, 1),
             "seconds": round(sum(line["checkpoint_seconds"] for line in history), 3),
             "share": round(sum(line["checkpoint_seconds"] for line in history)
                            / sum(line["seconds"] for line in history), 5)}
    if config.progress != "none":
        print(shown.summary(history, stages.parse(config.stages)))
        print(f"checkpoints: {saved['mib']:,.1f} MiB in {run_dir / checkpoints.FOLDER}; training stood still for them "
              f"for {saved['seconds']:.1f} s, {saved['share']:.1%} of its time", flush=True)
    content = {**figures, "options": result.options, "averaged": averaged, "part": measured, "recipe": config.recipe,
               "novelty": novelty.facts() if novelty else None,
               "config": dataclasses.asdict(config),
               "data": {"origin": config.data, "parts": {name: reporting.summary(part) for name, part in parts.items()},
                        "split": divided.spec, "training_rows": balanced,
                        "left_out": common.left_out_entries(parts),
                        "cleaned": [{"file": name, "reason": reason} for name, reason in parts["train"].cleaned]},
               "devices": runtime.devices, "precision": runtime.precision, "jit": runtime.jit,
               "images_per_second": statistics.median(line["images_per_second"] for line in history),
               "checkpoints": saved, "peak_memory_mib": reporting.peak_memory_mib(),
               "weights_sha256": loaded.weights_sha256[0], "first_weights": loaded.about["weights"],
               "temperature": reporting.temperatures(loaded),
               "temperature_fitted_on": "" if temperature.parse(config.temperature).value else "val",
               "versions": reporting.versions()}
    grid, titles = _augmented(parts["train"], config)
    explanations = reporting.explained(loaded.classifier, parts[measured], result, config, train=parts["train"])
    report.write(run_dir, content, history=history, grid=grid, grid_titles=titles,
                 segmentation=segmentation.png() if segmentation else None,
                 classified=reporting.classified(parts[measured], result),
                 corrupted=reporting.corrupted(loaded, result), explanations=explanations)
    with Board(run_dir) as board:
        board.png(f"confusion/{measured}", plots.confusion_png(figures["confusion"], parts["train"].class_names),
                  history[-1]["step"])
        board.png(f"reliability/{measured}", plots.reliability_png(figures["calibration"], figures["ece"]),
                  history[-1]["step"])
        if explanations is not None:
            explaining.to_board(board, explanations, explaining.pictures(explanations), history[-1]["step"])
    if result.options and config.progress != "none":
        print(measuring.options_table(result.options), flush=True)
    print(f"report: {run_dir / 'report.html'}", flush=True)
    if averaged:
        print(f"averaged weights ({config.average}): accuracy {averaged['accuracy']:.4f}, the best epoch's "
              f"{figures['accuracy']:.4f}; --which=average uses them", flush=True)
    common.print_result(figures, config.report)


def _write_flags(config: Config, run_dir: pathlib.Path) -> None:
    text = (f"# Reproduces this run (bloodcell {__version__}):\n"
            f"#   python main.py --flagfile={run_dir / 'config.cfg'} --workdir={run_dir}-again\n{to_flagfile(config)}")
    write_atomically(run_dir / "config.cfg", text.encode())


def _averaged(model: keras.Model, parts: dict[str, ImageSet], measured: str, config: Config,
              runtime: strategies.Runtime) -> dict[str, Any] | None:
    """Returns the figures of the best averaged weights, or None where the run has none; the model stays as it is."""
    store = checkpoints.Checkpoints(config.run_dir)
    if not store.has("average"):
        return None
    store.restore("average", model)
    loaded = classifying.of_training(model, "average", parts["val"], config, runtime)
    novelty_fitting.fit(loaded, "average", train=parts["train"], val=parts["val"], config=config, runtime=runtime)
    figures = measuring.measure(loaded.classifier, parts[measured], config).figures
    store.restore("best", model)
    return {name: figures[name] for name in metrics.PRINTED}


def _history(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    lines = (run_dir / metrics_log.FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _balanced(train: ImageSet, config: Config) -> dict[str, Any] | None:
    """Returns how many rows an epoch has of each class, and before; None where it shows each image once."""
    rows = balance.rows(train, config.balance, shares=split.shares(config.split), seed=config.seed)
    labels = np.asarray(train.labels)
    before = np.bincount(labels, minlength=train.num_classes)
    after = rows.per_class(labels, train.num_classes)
    if np.array_equal(before, after):
        return None
    by_class = {name: {"before": int(one), "after": int(other)}
                for name, one, other in zip(train.class_names, before, after, strict=True)}
    return {"before": int(before.sum()), "after": int(after.sum()),
            "made": 0 if rows.extra is None else len(rows.extra.labels), "per_class": by_class}


def _rows_line(balanced: dict[str, Any]) -> str:
    each = ", ".join(f"{name} {rows['before']:,} -> {rows['after']:,}" if rows["before"] != rows["after"]
                     else f"{name} {rows['after']:,}" for name, rows in balanced["per_class"].items())
    made = f", {balanced['made']:,} of them made" if balanced["made"] else ""
    return f"{balanced['before']:,} -> {balanced['after']:,}{made}: {each}"


def _augmented(train: ImageSet, config: Config) -> tuple[np.ndarray, list[str]]:
    """Returns training images as the first epoch sees them, each class in turn, and their labels for people.

    Mixed images find their partners among those shown.
    """
    labels = np.asarray(train.labels)
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen = [rows[turn] for turn in range(GRID_IMAGES) for rows in by_class if turn < len(rows)][:GRID_IMAGES]
    few = train.subset(np.asarray(chosen))
    by = stages.parse(config.stages)[0].rules(config)
    ids = tf.constant(few.ids)
    images = augment.parse(by.augment)(tf.constant(few.images[:]), ids, epoch=1, seed=config.seed)
    images, parts = augment.parse_mix(by.mix)(images, tf.one_hot(labels[chosen], train.num_classes), ids,
                                           tf.ones(len(few)), epoch=1, seed=config.seed)
    return images.numpy(), [_label(row, train.class_names) for row in parts.numpy()]


def _label(parts: np.ndarray, names: Sequence[str]) -> str:
    """Returns a class's name, or two with their shares of a mixed image."""
    most = [index for index in np.argsort(-parts) if parts[index] >= 0.005]
    return names[most[0]] if len(most) == 1 else "\n".join(f"{parts[index]:.0%} {names[index]}" for index in most)
