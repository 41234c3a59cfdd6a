"""The training, as a page: data, model, resume, then stages of epochs of steps, and the best weights at the end.

Read `fit` from top to bottom. What a step does is in `step`, what a stage means in `stages`; the models, the data and
the augmentation come from their packages. An own loop, not `Model.fit`: it compiles per replica, resumes at any step
with the same bits, and never waits for the device between steps.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell import augment, models
from bloodcell.config import Config, profile_window
from bloodcell.data import balance, split
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError, Stopped
from bloodcell.files import write_atomically
from bloodcell.models import freezing
from bloodcell.train import (
    averaging,
    checkpoints,
    epochs,
    losses,
    metrics_log,
    optimizers,
    schedules,
    shown,
    stages,
    step,
)
from bloodcell.train.profiler import Profiler
from bloodcell.train.progress import Progress
from bloodcell.train.saving import Saver
from bloodcell.train.stages import Stage
from bloodcell.train.state import State, facts, identity, same_run
from bloodcell.train.stopping import StopRequest
from bloodcell.train.strategy import Runtime
from bloodcell.train.tensorboard import Board
from bloodcell.train.watch import NotFinite, Watch, accelerators


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
    inputs = {pair: step.inputs(augment.parse(pair[0], backend=runtime.backend), runtime, config.seed,
                                num_classes=train.num_classes, mixer=augment.parse_mix(pair[1]), views=loss.views)
              for pair in dict.fromkeys((each.augment, each.mix) for each in rules)}
    val_policy = augment.parse(config.val_augment, what="val_augment", backend=runtime.backend)
    val_inputs = step.inputs(val_policy, runtime, config.seed, num_classes=train.num_classes)
    class_weights = balance.class_weights(config.balance, train.labels, train.num_classes)
    for stage, each in zip(plan, rules, strict=True):
        _check_batch_size(each.batch_size, runtime.replicas, stage.accumulate)

    # ---- Data --------------------------------------------------------------------------------------------------------
    rows = balance.rows(train, config.balance, shares=split.shares(config.split), seed=config.seed,
                        augmenter=_augmenter(balance.policy(config.balance), runtime, config.seed))
    every_image = Pipeline(train, batch_size=config.batch_size, rows=rows).of_worker(runtime.worker, runtime.workers)
    if runtime.keeps(train, config.cache):
        every_image = every_image.on_devices(runtime.strategy)
    pipelines = [every_image.of_batch_size(each.batch_size) for each in rules]
    val_pipeline = Pipeline(val, batch_size=config.batch_size).of_worker(runtime.worker, runtime.workers)
    if runtime.keeps(val, config.cache):
        val_pipeline = val_pipeline.on_devices(runtime.strategy)
    steps = [1 if config.dry_run else pipeline.num_batches for pipeline in pipelines]
    whole = [stage.epochs * number for stage, number in zip(plan, steps, strict=True)]  # steps of each stage

    # ---- Model, new or resumed ---------------------------------------------------------------------------------------
    store = checkpoints.Checkpoints(run_dir, keep=config.keep)
    writes = runtime.chief and not config.dry_run
    if writes:
        store.make_folder()
        store.set_damaged_aside(_warn)
    own = identity(config, runtime.precision, train, val)
    # other workers look for a checkpoint when the chief has set aside what is damaged
    runtime.check_agreement({**facts(own), "--jit": runtime.jit})
    resumed = store.has("last") and not config.dry_run
    state, changed = same_run(store.meta("last"), own, run_dir, config.allow_changed) if resumed else (State(), [])
    if changed:
        _fit_into(state, plan, steps, run_dir)
        _warn(f"going on although it is allowed to differ: {', '.join(changed)}")
    runtime.check_agreement({f"the checkpoint in {run_dir}": state})
    progress = Progress(config.progress if runtime.chief else "none", sum(whole),
                        sum(whole[:state.stage]) + steps[state.stage] * state.stage_epoch + state.epoch_step)
    progress.say(f"resuming {run_dir} after {_place(state)}" if resumed else f"building {config.model}...")
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
    if writes:
        metrics_log.keep_until(run_dir, state.epoch)
        if not resumed:
            checkpoints.save_model_file(run_dir, name=config.model, head=config.head, image_size=config.image_size,
                                        class_names=train.class_names, segment=config.segment,
                                        weights=models.weights_sources(config.model, config.weights))

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest(follows=not runtime.chief))
        stack.enter_context(progress)
        board = stack.enter_context(Board(run_dir)) if writes else None
        profiler = Profiler(profile_window(config.profile_steps) if writes else None, run_dir)
        stack.callback(profiler.stop)
        saver = stack.enter_context(Saver(store, step=state.step))

        # ---- Stages --------------------------------------------------------------------------------------------------
        for index in range(state.stage, len(plan)):
            stage, by, pipeline = plan[index], rules[index], pipelines[index]
            if index == state.stage and state.stage_over:
                continue
            continuing = resumed and index == state.stage and (state.stage_epoch > 0 or state.epoch_step > 0)
            if not continuing:
                state.next_stage(index)
            freezing.apply(model, **stage.freezing())
            progress.say(shown.learning(index, len(plan), stage, model))
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

            def save(which: str = "last", optimizer: Any = optimizer) -> None:
                if writes:
                    rest = (optimizer, averaged) if which == "last" else ()
                    saver.save(which, {**own, "state": dataclasses.asdict(state)}, model, *rest)

            watch = Watch(board, functools.partial(_last_rate, rate, optimizer), accelerators(runtime.replicas))
            around = epochs.Around(state, progress, profiler, watch, saver, stop, save,
                                   config.checkpoint_seconds if writes else 0, average)

            # ---- Epochs ----------------------------------------------------------------------------------------------
            compiling = pictured = True
            for stage_epoch in range(state.stage_epoch + 1, stage.epochs + 1):
                epoch, began, waited = state.epoch + 1, time.monotonic() - state.seconds, saver.seconds_waited
                progress.where(f"stage {index + 1}/{len(plan)} {stage.part}, epoch {stage_epoch}/{stage.epochs}")
                left = steps[index] - state.epoch_step
                batches = pipeline.epoch(config.seed, epoch, skip_steps=state.epoch_step).take(left)
                try:
                    stop.check()
                    learned = epochs.train(train_step, runtime.distribute(batches, pipeline.resident),
                                           around, steps=steps[index], compiling=compiling and left > 0)
                    compiling = compiling and not left
                    if board and pictured:
                        board.images(f"augmented/stage {index + 1} {stage.part}",
                                     shown.augmented(stage_inputs, pipeline, runtime, views=loss.views,
                                                     seed=config.seed, epoch=epoch),
                                     state.step, columns=8 if loss.views == 1 else 2 * loss.views)
                        if index == 0:
                            board.graph(_traced(train_step, pipeline, runtime))
                        pictured = False

                    # ---- Validation ----------------------------------------------------------------------------------
                    progress.validating()
                    val_batches = val_pipeline.in_order().take(1) if config.dry_run else val_pipeline.in_order()
                    val_batches = runtime.distribute(val_batches, val_pipeline.resident)
                    measured, of_average = epochs.validate(eval_step, val_batches, stop), None
                    if average and average.ready:
                        with average.swapped():
                            of_average = epochs.validate(eval_step, val_batches, stop)
                        measured |= {f"average_{name}": value for name, value in of_average.items()}
                except Stopped as stopped:
                    if state.step != saver.step:
                        save()
                    saver.wait()
                    raise Stopped(stopped.number, _how_to_go_on(state, run_dir)) from None
                except NotFinite as error:
                    if not runtime.chief:  # the chief saves the batch
                        raise InputError(f"training: expected a finite {error.what}, received {error.value} at step "
                                         f"{error.step}; the first worker says what to do") from None
                    saver.wait()
                    batch = _inspected(run_dir, stage_inputs, pipeline, seed=config.seed, epoch=epoch,
                                       number=error.step - (state.step - state.epoch_step) - 1)
                    good = f"the last good state is {store.path('last')}" if store.has("last") else "none is saved yet"
                    raise InputError(
                        f"training: expected a finite {error.what}, received {error.value} in epoch {epoch} at step "
                        f"{error.step} (of the steps {error.looked[0]}..{error.looked[1]} looked at together), whose "
                        f"batch is now {batch}; {good}, try a lower lr, adamw(clipnorm=1.0), or --precision=float32"
                        ) from None
                record = {"stage": index + 1, "epoch": epoch, "step": state.step, **learned, **measured,
                          "lr": _last_rate(rate, optimizer), "traces": _traces(train_step),
                          "seconds": round(time.monotonic() - began, 3)}
                progress.say(shown.line(record, stage_epoch, stage, len(plan)))
                if config.dry_run:
                    continue

                # ---- What is remembered ------------------------------------------------------------------------------
                state.finish_epoch()
                improved, average_improved = state.remember(record, of_average)
                if plateau:
                    optimizer.learning_rate = plateau.update(record["val_loss"], record["lr"])
                    state.plateau = plateau.state()
                stopped_early = 0 < config.early_stopping <= state.waited
                state.stage_over = stopped_early or stage_epoch == stage.epochs
                if improved:
                    save("best")
                if average and average_improved:
                    with average.swapped():
                        save("average")
                record["checkpoint_seconds"] = round(saver.seconds_waited - waited, 3)
                if runtime.chief:
                    metrics_log.append(run_dir, record)
                if board:
                    board.scalars({name: value for name, value in record.items() if name not in ("stage", "epoch")},
                                  epoch)
                save()
                if on_epoch:
                    saver.wait()
                    on_epoch(record)
                if stopped_early:
                    progress.say(f"early stopping: {state.waited} epochs without a better validation result")
                    progress.skip(steps[index] * (stage.epochs - stage_epoch))
                    break

        if stop.asked:
            raise Stopped(stop.asked, _how_to_go_on(state, run_dir))

    # ---- The result --------------------------------------------------------------------------------------------------
    if writes:  # the others end here, and might read it before it is written
        store.restore("best", model)
    return model


def _check_batch_size(batch_size: int, replicas: int, accumulate: int) -> None:
    """Raises InputError where the replicas, and the parts of each one's rows, cannot share the batch."""
    parts = replicas * accumulate
    if batch_size % parts:
        sharers = f"the {replicas} replicas" + (f" times accumulate={accumulate}" if accumulate > 1 else "")
        raise InputError(f"batch_size: expected a multiple of {sharers}, received {batch_size}, "
                         f"try {-(-batch_size // parts) * parts}")


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


def _traces(train_step: Any) -> int:
    """Returns how often the step was traced, and hence compiled, by this process: once, if all is well."""
    count = getattr(train_step, "experimental_get_tracing_count", None)
    return count() if count else 0


def _traced(train_step: Any, pipeline: Pipeline, runtime: Runtime) -> Any:
    batch = next(iter(runtime.distribute(pipeline.in_order().take(1), pipeline.resident)))
    return train_step.get_concrete_function(batch, tf.constant(0, tf.int64))


def _fit_into(state: State, plan: Sequence[Stage], steps: Sequence[int], run_dir: pathlib.Path) -> None:
    """Makes a state that was saved under other flags one of this plan."""
    if state.stage >= len(plan):
        raise InputError(f"stages: expected at least the {state.stage + 1} that {run_dir} has begun, received "
                         f"{len(plan)}; try a new --workdir")
    state.epoch_step = min(state.epoch_step, steps[state.stage])
    if state.stage_epoch != plan[state.stage].epochs:
        state.stage_over = state.stage_epoch > plan[state.stage].epochs


def _place(state: State) -> str:
    return f"{state.epoch_step:,} steps of epoch {state.epoch + 1}" if state.epoch_step else f"epoch {state.epoch}"


def _how_to_go_on(state: State, run_dir: pathlib.Path) -> str:
    if not state.step:
        return "no step was taken yet; the same command begins again"
    again = shlex.join(["python", "main.py", f"--flagfile={run_dir / 'config.cfg'}", f"--workdir={run_dir}"])
    return f"everything is saved, after {_place(state)}; the same command goes on from there, or {again}"


def _inspected(run_dir: pathlib.Path, inputs: step.Inputs, pipeline: Pipeline, number: int, *, seed: int,
               epoch: int) -> pathlib.Path:
    """Writes the batch of that number of an epoch, from 0, as the data gave it and as the network saw it."""
    batch = pipeline.of_worker(0, 1).batch(seed, epoch, number)  # the whole of it
    images, targets = inputs(batch, tf.constant(epoch, tf.int64))
    arrays = {**{name: value.numpy() for name, value in batch.items()},
              "augmented": tf.cast(images, tf.float32).numpy(), "targets": targets.numpy()}
    path = run_dir / "not_finite.npz"
    write_atomically(path, lambda file: np.savez(file, **arrays))
    return path


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
