"""The training, as a page: data, model, resume, then stages of epochs of steps, and the best weights at the end.

Read `fit` from top to bottom. What a step does is in `step`, what a stage means in `stages`; the models, the data and
the augmentation come from their packages. An own loop, not `Model.fit`: it compiles per replica, resumes at the epoch
with the same bits, and never waits for the device between steps.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell import augment, models
from bloodcell.config import Config, profile_window
from bloodcell.data import balance, split
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.models import freezing
from bloodcell.train import averaging, checkpoints, losses, metrics_log, optimizers, schedules, stages, step
from bloodcell.train.progress import Progress
from bloodcell.train.stages import Stage
from bloodcell.train.strategy import Runtime
from bloodcell.train.tensorboard import Board, Profiler

# Flags that may change between a run and its continuation: where things are written and shown, which devices compute
# (they change rounding alone), and the sources, whose content the fingerprints check. Precision is compared resolved.
FREE_FLAGS = frozenset({"mode", "workdir", "report", "predictions", "checkpoint", "recipe", "progress", "profile_steps",
                        "dry_run", "strategy", "replicas", "jit", "precision", "weights", "data", "val_data",
                        "test_data", "explain", "max_bad_images", "cache", "clean", "audit_rules", "audit_keep",
                        "audit_write", "audit_features", "contaminants", "corruptions"})
LOOK_SECONDS = 0.5  # between two looks at the device's numbers; each look waits for the device
GRID_IMAGES = 32  # augmented images shown in TensorBoard, per stage


@dataclasses.dataclass
class State:
    """Where the training stands, beside the variables: saved with every checkpoint.

    Attributes:
      stage: index of the stage, from 0.
      stage_epoch: finished epochs of that stage.
      stage_over: the stage has finished, by its epochs or by early stopping.
      epoch: finished epochs of the run; the epoch being trained has the number `epoch + 1`.
      step: finished steps of the run.
      best: epoch, val_accuracy and val_loss of the best epoch of the run.
      best_average: the same of the averaged weights, where there are some.
      stage_best: the same of this stage; early stopping counts from it.
      waited: epochs since `stage_best`.
      plateau: the plateau rule's counters.
    """

    stage: int = 0
    stage_epoch: int = 0
    stage_over: bool = False
    epoch: int = 0
    step: int = 0
    best: dict[str, float] | None = None
    best_average: dict[str, float] | None = None
    stage_best: dict[str, float] | None = None
    waited: int = 0
    plateau: dict[str, float] | None = None

    def next_stage(self, index: int) -> None:
        """Moves to the beginning of a stage."""
        self.stage, self.stage_epoch, self.stage_over = index, 0, False
        self.stage_best, self.waited, self.plateau = None, 0, None


def fit(config: Config, runtime: Runtime, train: ImageSet, val: ImageSet, run_dir: pathlib.Path, *,
        on_epoch: Callable[[dict[str, Any]], None] | None = None) -> keras.Model:
    """Trains a model through all stages, or continues the training that `run_dir` holds.

    Args:
      config: the run's flags.
      runtime: from `strategy.resolve`.
      train: labelled images to learn from.
      val: labelled images that choose the best epoch.
      run_dir: gets `model.json`, `metrics.jsonl`, `checkpoints/` and `tensorboard/`; nothing with `config.dry_run`,
        which takes one step and one validation batch per stage and returns.
      on_epoch: called after each epoch with the line of `metrics.jsonl`.

    Returns:
      The model with the weights of the best epoch: highest validation accuracy, then lowest validation loss.

    Raises:
      InputError: a bad spec, a batch that the replicas cannot share, a folder that cannot be written or that holds
        another run, or a loss that is no longer finite.
    """
    # ---- The recipe --------------------------------------------------------------------------------------------------
    plan = stages.parse(config.stages)
    if config.dry_run:
        plan = tuple(dataclasses.replace(stage, epochs=1) for stage in plan)
    rules = [stage.rules(config) for stage in plan]
    loss = losses.parse(config.loss)
    averages = averaging.parse(config.average)
    if train.labels is None or val.labels is None:
        raise ValueError("train and val: expected labelled images")
    inputs = {pair: step.inputs(augment.parse(pair[0]), runtime, config.seed, num_classes=train.num_classes,
                                mixer=augment.parse_mix(pair[1]), views=loss.views)
              for pair in dict.fromkeys((each.augment, each.mix) for each in rules)}
    val_inputs = step.inputs(augment.parse(config.val_augment, what="val_augment"), runtime, config.seed,
                             num_classes=train.num_classes)
    class_weights = balance.class_weights(config.balance, train.labels, train.num_classes)
    for stage, each in zip(plan, rules, strict=True):
        _check_batch_size(each.batch_size, runtime.replicas, stage.accumulate)

    # ---- Data --------------------------------------------------------------------------------------------------------
    rows = balance.rows(train, config.balance, shares=split.shares(config.split), seed=config.seed,
                        augmenter=_augmenter(balance.policy(config.balance), runtime, config.seed))
    every_image = Pipeline(train, batch_size=config.batch_size, rows=rows)
    pipelines = [every_image.of_batch_size(each.batch_size) for each in rules]
    val_pipeline = Pipeline(val, batch_size=config.batch_size)
    steps = [1 if config.dry_run else pipeline.num_batches for pipeline in pipelines]
    whole = [stage.epochs * number for stage, number in zip(plan, steps, strict=True)]  # steps of each stage

    # ---- Model, new or resumed ---------------------------------------------------------------------------------------
    store = checkpoints.Checkpoints(run_dir)
    identity = {"config": _config_fields(config), "precision": runtime.precision, "classes": list(train.class_names),
                "train": train.fingerprint(), "val": val.fingerprint()}
    resumed = store.has("last") and not config.dry_run
    state = State()
    if resumed:
        state = State(**_same_run(store.meta("last"), identity, run_dir)["state"])
    progress = Progress(config.progress, sum(whole), sum(whole[:state.stage]) + steps[state.stage] * state.stage_epoch)
    progress.say(f"resuming {run_dir} after epoch {state.epoch}" if resumed else f"building {config.model}...")
    with runtime.strategy.scope():
        model = models.build(config.model, weights="none" if resumed else config.weights, head=config.head,
                             image_size=config.image_size, num_classes=train.num_classes, seed=config.seed)
        average = None if averages is None else averaging.Average(
            averages, model, sum(whole), jit=runtime.jit == "step" and not runtime.distributed)
    averaged = average.variables if average else ()
    for stage in plan:  # a stage that this network cannot have is an error now, not when its turn comes
        freezing.apply(model, **stage.freezing())
    if resumed and state.stage_over:  # else the optimizer must be read as well, when its stage has made it
        store.restore("last", model, averaged=averaged)
    if not config.dry_run:
        metrics_log.keep_until(run_dir, state.epoch)
        if not resumed:
            checkpoints.save_model_file(run_dir, name=config.model, head=config.head, image_size=config.image_size,
                                        class_names=train.class_names, segment=config.segment,
                                        weights=models.weights_sources(config.model, config.weights))

    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)
        board = None if config.dry_run else stack.enter_context(Board(run_dir))
        profiler = Profiler(None if config.dry_run else profile_window(config.profile_steps), run_dir)
        stack.callback(profiler.stop)

        # ---- Stages --------------------------------------------------------------------------------------------------
        for index in range(state.stage, len(plan)):
            stage, by, pipeline = plan[index], rules[index], pipelines[index]
            if index == state.stage and state.stage_over:
                continue
            continuing = resumed and index == state.stage and state.stage_epoch > 0
            if not continuing:
                state.next_stage(index)
            freezing.apply(model, **stage.freezing())
            progress.say(_table(index, len(plan), stage, model))
            rate, plateau = schedules.build(by.schedule, peak=stage.lr, steps=whole[index])
            settings = optimizers.parse(by.optimizer)
            factors = None if stage.lr_decay == 1.0 else freezing.learning_rate_factors(model, stage.lr_decay)
            with runtime.strategy.scope():
                optimizer = optimizers.build(settings, learning_rate=rate, variables=model.trainable_variables,
                                             precision=runtime.precision, factors=factors)
            if continuing:
                store.restore("last", model, optimizer, averaged)
                if plateau and state.plateau:
                    plateau.restore(state.plateau)
            stage_inputs = inputs[by.augment, by.mix]
            train_step = step.train_step(model, optimizer, inputs=stage_inputs, loss=loss, class_weights=class_weights,
                                         runtime=runtime, clipnorm=settings.clipnorm, accumulate=stage.accumulate)
            eval_step = step.eval_step(model, inputs=val_inputs, loss=loss, runtime=runtime)

            # ---- Epochs ----------------------------------------------------------------------------------------------
            for stage_epoch in range(state.stage_epoch + 1, stage.epochs + 1):
                epoch = state.epoch + 1
                progress.where(f"stage {index + 1}/{len(plan)} {stage.part}, epoch {stage_epoch}/{stage.epochs}")
                began = time.monotonic()
                batches = runtime.strategy.experimental_distribute_dataset(
                    pipeline.epoch(config.seed, epoch).take(steps[index]))
                first = stage_epoch == 1 or continuing
                continuing = False
                learned = _train_epoch(train_step, batches, epoch, state=state, first=first, progress=progress,
                                       profiler=profiler, store=store, average=average)
                if board and first:
                    board.images(f"augmented/stage {index + 1} {stage.part}",
                                 _grid(stage_inputs, pipeline, runtime, views=loss.views, seed=config.seed,
                                       epoch=epoch), state.step, columns=8 if loss.views == 1 else 2 * loss.views)
                    if index == 0:
                        board.graph(_traced(train_step, pipeline, runtime))

                # ---- Validation --------------------------------------------------------------------------------------
                progress.validating()
                step.average_replicas(model, runtime)
                if average:
                    average.after_epoch(state.step)
                val_batches = val_pipeline.in_order().take(1) if config.dry_run else val_pipeline.in_order()
                val_batches = runtime.strategy.experimental_distribute_dataset(val_batches)
                measured = _validate(eval_step, val_batches)
                of_average = None
                if average and average.ready:
                    with average.swapped():
                        of_average = _validate(eval_step, val_batches)
                    measured |= {f"average_{name}": value for name, value in of_average.items()}
                record = {"stage": index + 1, "epoch": epoch, "step": state.step, **learned, **measured,
                          "lr": _last_rate(rate, optimizer), "seconds": round(time.monotonic() - began, 3)}
                progress.say(_line(record, stage_epoch, stage, len(plan)))
                if config.dry_run:
                    continue

                # ---- What is remembered ------------------------------------------------------------------------------
                state.epoch, state.stage_epoch = epoch, stage_epoch
                here = {"epoch": epoch, "val_accuracy": record["val_accuracy"], "val_loss": record["val_loss"]}
                improved = _better(here, state.best)
                state.best = here if improved else state.best
                average_improved = of_average is not None and _better(of_average, state.best_average)
                if of_average is not None and average_improved:
                    state.best_average = {"epoch": epoch, **of_average}
                if _better(here, state.stage_best):
                    state.stage_best, state.waited = here, 0
                else:
                    state.waited += 1
                if plateau:
                    optimizer.learning_rate = plateau.update(record["val_loss"], record["lr"])
                    state.plateau = plateau.state()
                stopped = 0 < config.early_stopping <= state.waited
                state.stage_over = stopped or stage_epoch == stage.epochs
                metrics_log.append(run_dir, record)
                meta = {**identity, "state": dataclasses.asdict(state)}
                if improved:
                    store.save("best", meta, model)
                if average and average_improved:
                    with average.swapped():
                        store.save("average", meta, model)
                store.save("last", meta, model, optimizer, averaged)
                if board:
                    board.scalars({name: value for name, value in record.items() if name not in ("stage", "epoch")},
                                  epoch)
                if on_epoch:
                    on_epoch(record)
                if stopped:
                    progress.say(f"early stopping: {state.waited} epochs without a better validation result")
                    progress.skip(steps[index] * (stage.epochs - stage_epoch))
                    break

    # ---- The result --------------------------------------------------------------------------------------------------
    if not config.dry_run:
        store.restore("best", model)
    return model


def _train_epoch(train_step: step.Step, batches: Iterable[step.Batch], epoch: int, *, state: State, first: bool,
                 progress: Progress, profiler: Profiler, store: checkpoints.Checkpoints,
                 average: averaging.Average | None) -> dict[str, float]:
    """Runs one epoch and counts `state.step`; returns loss, accuracy and images_per_second (without compiling)."""
    epoch_tensor = tf.constant(epoch, tf.int64)
    sums, waiting = np.zeros(3), []
    clock_images, clock = 0.0, time.monotonic()
    looked = clock
    if first:
        progress.compiling()
    for number, batch in enumerate(batches):
        profiler.before_step()
        result = train_step(batch, epoch_tensor)
        profiler.after_step(result)
        state.step += 1
        if average:
            average.after_step(state.step)
        waiting.append(result)
        compiled_now = first and number == 0
        if compiled_now or time.monotonic() - looked > LOOK_SECONDS:
            sums += _look(waiting, epoch, state, store)
            looked = time.monotonic()
            if compiled_now:
                clock, clock_images = looked, -sums[1]
            speed = (sums[1] + clock_images) / max(looked - clock, 1e-9)
            progress.advance(len(waiting), speed, sums[0] / sums[1])
            waiting = []
    if waiting:
        sums += _look(waiting, epoch, state, store)
    elapsed, images = time.monotonic() - clock, sums[1] + clock_images
    speed = images / max(elapsed, 1e-9)  # 0 where the only step of the epoch was the one that compiled
    progress.advance(len(waiting), speed, sums[0] / sums[1])
    return {"loss": sums[0] / sums[1], "accuracy": sums[2] / sums[1], "images_per_second": round(speed, 1)}


def _look(results: list[tf.Tensor], epoch: int, state: State, store: checkpoints.Checkpoints) -> np.ndarray:
    """Fetches the steps since the last look, waiting for the device; raises InputError where a loss is not finite."""
    values = np.asarray(tf.stack(results), np.float64)
    if not np.isfinite(values).all():
        first = state.step - len(results) + 1
        bad = first + int(np.argmin(np.isfinite(values).all(axis=1)))
        good = f"the last good state is {store.path('last')}" if store.has("last") else "no epoch was finished before"
        raise InputError(f"training: expected a finite loss, received {values[bad - first, 0]} in epoch {epoch} at "
                         f"step {bad} (of the steps {first}..{state.step} looked at together); {good}, "
                         "try a lower lr, adamw(clipnorm=1.0), or --precision=float32")
    return values.sum(axis=0)


def _validate(eval_step: step.Step, batches: Iterable[step.Batch]) -> dict[str, float]:
    # One fixed epoch number: each validation sees the same images, whatever --val_augment does to them.
    epoch = tf.constant(0, tf.int64)
    results = [eval_step(batch, epoch) for batch in batches]
    sums = np.asarray(tf.stack(results), np.float64).sum(axis=0)
    return {"val_loss": sums[0] / sums[1], "val_accuracy": sums[2] / sums[1]}


def _check_batch_size(batch_size: int, replicas: int, accumulate: int) -> None:
    """Raises InputError where the replicas, and the parts of each one's rows, cannot share the batch."""
    parts = replicas * accumulate
    if batch_size % parts:
        sharers = f"the {replicas} replicas" + (f" times accumulate={accumulate}" if accumulate > 1 else "")
        raise InputError(f"batch_size: expected a multiple of {sharers}, received {batch_size}, "
                         f"try {-(-batch_size // parts) * parts}")


def _better(here: dict[str, float], best: dict[str, float] | None) -> bool:
    # A NaN validation loss never wins a tie, and the first epoch always wins.
    return best is None or (here["val_accuracy"], -here["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def _config_fields(config: Config) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_FLAGS}


def _same_run(meta: dict[str, Any], identity: dict[str, Any], run_dir: pathlib.Path) -> dict[str, Any]:
    """Returns `meta` where it belongs to this very run; else raises InputError naming what differs."""
    names = {"precision": "--precision", "classes": "the classes", "train": "the training images",
             "val": "the validation images"}
    differing = [text for key, text in names.items() if meta.get(key) != identity[key]]
    old, new = meta.get("config", {}), identity["config"]
    differing += [f"--{key} (was {old.get(key)!r})" for key in new if old.get(key) != new[key]]
    if differing:
        raise InputError(f"workdir: expected the run that {run_dir} holds, received another: {', '.join(differing)} "
                         "differ, try the first flags again or a new --workdir")
    return meta


def _last_rate(rate: float | schedules.Schedule, optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the last step taken."""
    if isinstance(rate, schedules.Schedule):
        return float(rate(optimizer.iterations.numpy() - 1))
    return float(optimizer.learning_rate)


def _augmenter(policy: str, runtime: Runtime, seed: int) -> balance.Augmenter:
    """Returns what makes images of others once, before the first epoch."""
    parsed = augment.parse(policy, what="balance: policy")
    apply = tf.function(parsed, jit_compile=runtime.jit != "off", autograph=False)
    moment, key = tf.constant(0, tf.int64), tf.constant(seed, tf.int64)

    def made(images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return apply(images, ids, epoch=moment, seed=key).numpy().astype(np.uint8)

    return made


def _grid(inputs: step.Inputs, pipeline: Pipeline, runtime: Runtime, *, views: int, seed: int,
          epoch: int) -> np.ndarray:
    """Returns the epoch's first images as the step sees them, float32 [at most 32, H, W, 3] in grey levels.

    The views of an image stand side by side.
    """
    batch = next(iter(pipeline.epoch(seed, epoch)))
    rows = pipeline.batch_size // runtime.replicas  # a replica's share: its program is compiled already
    if runtime.jit == "step":  # there the augmentation is part of the step's program, and has none of its own
        inputs = tf.function(inputs, jit_compile=True, autograph=False)
    images, _ = inputs({name: value[:rows] for name, value in batch.items()}, tf.constant(epoch, tf.int64))
    shown = tf.cast(images, tf.float32).numpy().reshape(views, rows, *images.shape[1:]).swapaxes(0, 1)
    return shown[:GRID_IMAGES // views].reshape(-1, *images.shape[1:])


def _traced(train_step: Any, pipeline: Pipeline, runtime: Runtime) -> Any:
    batch = next(iter(runtime.strategy.experimental_distribute_dataset(pipeline.in_order().take(1))))
    return train_step.get_concrete_function(batch, tf.constant(0, tf.int64))


def _table(index: int, count: int, stage: Stage, model: keras.Model) -> str:
    rows = freezing.table(model)
    width = max(22, *(len(row[0]) for row in rows)) + 2
    lines = [f"stage {index + 1}/{count}: {stage}", f"  {'part':<{width}}{'layers':>8}{'trainable':>14}{'frozen':>14}"]
    lines += [f"  {part:<{width}}{layers:>8,}{learns:>14,}{frozen:>14,}" for part, layers, learns, frozen in rows]
    return "\n".join(lines)


def _line(record: dict[str, Any], stage_epoch: int, stage: Stage, count: int) -> str:
    averaged = f"of the average {record['average_val_accuracy']:.4f}  " if "average_val_accuracy" in record else ""
    return (f"stage {record['stage']}/{count} {stage.part}, epoch {stage_epoch}/{stage.epochs}: "
            f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.4f}  val_loss {record['val_loss']:.4f}  "
            f"val_accuracy {record['val_accuracy']:.4f}  {averaged}lr {record['lr']:.2e}  "
            f"{record['images_per_second']:,.0f} images/s  {record['seconds']:.1f} s")
