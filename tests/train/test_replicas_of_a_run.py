"""A whole run on 1, 2 and 4 replicas, on logical CPU devices: same images and numbers, resumed on any number of them.

Logical devices are made before TensorFlow starts, hence a process of its own, one for all trainings: it has four
devices, of which a run takes as many as it has replicas. Plain networks have neither batch norm nor dropout, which are
a replica's own.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment, models
from bloodcell.config import Config
from bloodcell.errors import Stopped
from bloodcell.train import loop, step, strategy
from bloodcell.train.checkpoints import Checkpoints
from bloodcell.train.saving import Saver

REPO = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # all trainings are one fixture's
TRAIN, VAL, BATCH, EPOCHS, SIDE = 21, 13, 8, 3, 8  # the last batches have 5 images of 8: of four replicas one has none
PATIENCE = 800  # seconds; a process that takes longer hangs
SEED = 3

# How far from one replica a run may be: relative, and in images that are answered otherwise. A replica's gradients are
# rounded to the compute type before they are summed: to 8 bits of mantissa in bfloat16, to 11 in float16.
TOLERANCES = {"float32": {"rel": 2e-6, "flips": 0}, "mixed_bfloat16": {"rel": 2**-8, "flips": 1},
              "mixed_float16": {"rel": 2**-11, "flips": 1}}
SHARED = [("float32", "step", 2), ("mixed_bfloat16", "augment", 4), ("mixed_float16", "step", 2)]
CHAIN = [(1, 2), (2, 3), (4, 3), (1, None)]  # replicas, and the steps until a signal: the second of each epoch's three
OVERFLOW = 4  # the step before which the loss scale becomes too large for float16, of the second epoch
COPIED = OVERFLOW + 1  # the step after which a run's folder is copied, in the middle of that epoch


# ---- In the other process --------------------------------------------------------------------------------------------


@functools.cache
def traced(policy, rows):
    """Returns the graph of a policy for so many images; all runs share it, whose tracing would take half the time."""
    def augmented(images, ids, epoch):
        return parsed(images, ids, epoch=epoch, seed=SEED)
    parsed = augment.parse(policy)
    return tf.function(augmented, autograph=False).get_concrete_function(
        tf.TensorSpec([rows, SIDE, SIDE, 3], tf.uint8), tf.TensorSpec([rows], tf.int64), tf.TensorSpec([], tf.int64))


def shared(policy, rows):
    """Returns what stands for a policy in all runs."""
    graph = traced(str(policy), rows)

    def augmented(images, ids, *, epoch, seed, dtype):
        assert seed == SEED
        return tf.cast(graph(images, ids, epoch), dtype)
    return augmented


class Seen:
    """What the networks of a run were given, and whether its replicas were equal.

    Attributes:
      order: ids of the real images of each step.
      differing: (step, variable) where a replica's copy was another, after a step.
      compared: how many copies of how many variables were compared, in all.
    """

    def __init__(self, *, stop_after=None, overflow_at=None, copied=None):
        self.order, self.differing, self.compared = [], [], 0
        self._stop_after, self._overflow_at, self._copied = stop_after, overflow_at, copied
        self._records = {}
        self._inputs, self._train_step = step.inputs, step.train_step

    def inputs(self, policy, runtime, seed, **settings):
        """Stands for `step.inputs`; notes on the replicas, inside what is compiled, the images that come out."""
        policy = shared(policy, BATCH // runtime.replicas) if str(policy) else policy
        made = self._inputs(policy, runtime, seed, **settings)
        part, count = ("train", TRAIN) if "mixer" in settings else ("val", VAL)
        with runtime.strategy.scope():
            pixels, times = (tf.Variable(tf.zeros(shape), trainable=False, aggregation=tf.VariableAggregation.SUM,
                                         synchronization=tf.VariableSynchronization.ON_READ)
                             for shape in ([EPOCHS + 1, count, SIDE, SIDE, 3], [EPOCHS + 1, count]))
        self._records[part] = pixels, times

        def noted(batch, epoch):
            images, targets = made(batch, epoch)
            place = tf.stack([tf.fill(batch["id"].shape, epoch), batch["id"]], axis=1)
            real = batch["weight"]
            times.assign_add(tf.scatter_nd(place, real, times.shape))
            shown = tf.cast(images, tf.float32) * real[:, None, None, None]
            pixels.assign_add(tf.scatter_nd(place, shown, pixels.shape))
            return images, targets
        return noted

    def train_step(self, model, optimizer, *, runtime, **settings):
        """Stands for `step.train_step`; compares the replicas' copies of all variables after every step."""
        take = self._train_step(model, optimizer, runtime=runtime, **settings)

        def taking(batch, epoch):
            ids, real = (np.concatenate(runtime.strategy.experimental_local_results(batch[name]))
                         for name in ("id", "weight"))
            self.order.append(ids[real > 0].tolist())
            if self._copied and len(self.order) == COPIED + 1:
                self._copy(*self._copied)
            if len(self.order) == self._stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            if len(self.order) == self._overflow_at:
                with runtime.strategy.scope():
                    optimizer.dynamic_scale.assign(2.0**120)
            result = take(batch, epoch)
            if len(self.order) == self._overflow_at:
                with runtime.strategy.scope():
                    optimizer.dynamic_scale.assign(2.0**10)
            for variable in (*model.variables, *optimizer.variables):
                first, *others = runtime.strategy.experimental_local_results(variable.value)
                assert len({copy.device for copy in (first, *others)}) == runtime.replicas
                self.compared += 1 + len(others)
                if not all(np.array_equal(first, other) for other in others):
                    self.differing.append((len(self.order), variable.path))
            return result
        return taking

    def due(self, seconds):
        """Stands for `Saver.due`: makes the checkpoint that is copied."""
        return bool(self._copied) and len(self.order) == COPIED

    def _copy(self, run_dir, copy):
        """Copies the folder of a run as soon as its checkpoint after the step `COPIED` is on disk."""
        until = time.monotonic() + PATIENCE / 10
        while not (run_dir / f"checkpoints/step-{COPIED:08}.npz").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        shutil.copytree(run_dir, copy)

    def results(self):
        """Returns arrays by name: `train_images` float32 [epoch, id, H, W, 3] and `train_times` [epoch, id], ..."""
        return {f"{part}_{what}": variable.numpy() for part, both in self._records.items()
                for what, variable in zip(("images", "times"), both, strict=True)}


def train(folder, name, *, replicas, precision="float32", jit="off", model="plain", stop_after=None,
          overflow_at=None, copied=None, number=0, **flags):
    """Trains, or goes on with the training of that name; writes what was seen beside it.

    In the middle of an epoch the folder is `copied` under that name: what a kill would leave there.
    """
    from conftest import build_tiny, images_like

    def build(model, *, seed, **settings):
        keras.utils.set_random_seed(seed)
        return build_tiny(model, seed=seed, **settings)

    keras.backend.clear_session()
    runtime = strategy.resolve(strategy="auto", replicas=replicas, precision=precision, jit=jit, seed=SEED)
    assert (runtime.replicas, runtime.strategy.num_replicas_in_sync) == (replicas, replicas)
    config = Config(**{
        "model": model, "weights": "none", "stages": f"all(epochs={EPOCHS}, lr=2e-2)", "batch_size": BATCH,
        "seed": SEED, "image_size": SIDE, "augment": "brightness(0.5)", "optimizer": "adamw(clipnorm=0.1)",
        "schedule": "cosine(warmup=0.1)", "progress": "none", "balance": "class_weights", **flags})
    seen = Seen(stop_after=stop_after, overflow_at=overflow_at, copied=copied and (folder / name, folder / copied))
    with (mock.patch.object(models, "build", build), mock.patch.object(step, "inputs", seen.inputs),
          mock.patch.object(step, "train_step", seen.train_step),
          mock.patch.object(loop, "Board", return_value=contextlib.nullcontext()),
          mock.patch.object(Saver, "due", seen.due),
          contextlib.suppress(Stopped) if stop_after else contextlib.nullcontext()):
        loop.fit(config, runtime, images_like(TRAIN), images_like(VAL, seed=1), folder / name)
    notes = {"order": seen.order, "differing": seen.differing, "compared": seen.compared}
    np.savez(folder / f"{name}.{number}.npz", notes=json.dumps(notes), **seen.results())


def curves(folder):
    for precision in TOLERANCES:
        train(folder, f"{precision}-off-1", replicas=1, precision=precision)
    for precision, jit, replicas in SHARED:
        train(folder, f"{precision}-{jit}-{replicas}", replicas=replicas, precision=precision, jit=jit)


def resumed(folder):
    train(folder, "undisturbed", replicas=1, average="ema(0.9)")
    for number, (replicas, stop_after) in enumerate(CHAIN):
        train(folder, "moved", number=number, replicas=replicas, stop_after=stop_after, average="ema(0.9)")
    own: dict[str, Any] = {"model": "tiny", "augment": ""}
    train(folder, "four", replicas=4, **own)
    own |= {"replicas": 2, "precision": "mixed_float16", "jit": "step", "average": "ema(0.9)"}
    train(folder, "whole", overflow_at=OVERFLOW, copied="cut", **own)
    train(folder, "cut", **own)


def work(folder):
    strategy.resolve(strategy="auto", replicas=4, precision="float32", jit="off", seed=0)  # makes the devices, for all
    curves(pathlib.Path(folder))
    resumed(pathlib.Path(folder))


# ---- What came of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the folder of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1",
                   "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests/train")])}
    done = subprocess.run([sys.executable, "-c", "import sys, test_replicas_of_a_run as this; this.work(sys.argv[1])",
                           str(folder)], cwd=REPO, env=environment, check=False, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def seen(folder, name):
    """Returns what all processes of a run have seen together: arrays added up, notes one after the other."""
    paths = sorted(folder.glob(f"{name}.*.npz"))
    parts = [dict(np.load(path)) for path in paths]
    notes = [json.loads(str(part.pop("notes"))) for part in parts]
    return {**{what: sum(part[what] for part in parts) for what in parts[0]},
            **{what: [each for note in notes for each in note[what]] for what in ("order", "differing")},
            "compared": sum(note["compared"] for note in notes)}


def assert_same_images(ours, theirs):
    """Every image was there once in every epoch, at its turn, and looked the same."""
    assert ours["order"] == theirs["order"]
    assert [len(ids) for ids in ours["order"]] == [8, 8, 5] * EPOCHS
    np.testing.assert_array_equal(ours["train_times"], np.repeat([[0.0], [1.0]], [1, EPOCHS], axis=0)
                                  * np.ones(TRAIN))
    np.testing.assert_array_equal(ours["train_images"], theirs["train_images"])  # whole grey levels, to the last one
    epochs = ours["train_images"][1:]
    assert len({image.tobytes() for image in epochs.reshape(-1, SIDE * SIDE * 3)}) == EPOCHS * TRAIN


def assert_validated_once(ours, validations):
    """Every image was there once in each validation: 13 images of 16 rows, all of the fixed epoch 0."""
    expected = np.zeros((EPOCHS + 1, VAL))
    expected[0] = validations
    np.testing.assert_array_equal(ours["val_times"], expected)


def assert_same_curves(ours, theirs, *, rel, flips):
    """Losses and norms agree; what is counted does too, but for `flips` images whose two best logits are that close."""
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [3, 6, 9]
    for one, other in zip(ours, theirs, strict=True):
        assert one["skipped"] == other["skipped"] == 0
        for name in [name for name in other if name.endswith("loss") or name in ("grad_norm", "lr")]:
            assert one[name] == pytest.approx(other[name], rel=rel), name
        for name in [name for name in other if name.endswith("accuracy")]:
            count = VAL if "val" in name else TRAIN
            assert one[name] * count == pytest.approx(round(one[name] * count), abs=1e-6)
            assert abs(one[name] - other[name]) * count <= flips + 1e-6, name


def assert_same_weights(ours, theirs, *, atol):
    for which in ("last", "best", "average"):
        has = [Checkpoints(run).has(which) for run in (ours, theirs)]
        assert has[0] == has[1]
        if has[0]:
            left, right = (np.load(Checkpoints(run).path(which)) for run in (ours, theirs))
            assert left.files == right.files
            for name in left.files:
                if name != "meta":
                    np.testing.assert_allclose(left[name], right[name], rtol=0, atol=atol, err_msg=f"{which} {name}")


@pytest.mark.parametrize(("precision", "jit", "replicas"), SHARED)
def test_replicas_change_neither_images_nor_curves(runs, precision, jit, replicas):
    name, alone = f"{precision}-{jit}-{replicas}", f"{precision}-off-1"
    ours, theirs = seen(runs, name), seen(runs, alone)
    assert_same_images(ours, theirs)
    assert_same_curves(metrics(runs / name), metrics(runs / alone), **TOLERANCES[precision])
    assert not ours["differing"]
    if precision == "float32":
        assert_same_weights(runs / name, runs / alone, atol=2e-6)


@pytest.mark.parametrize(("precision", "jit", "replicas"), SHARED)
def test_validation_over_replicas_counts_every_image_once(runs, precision, jit, replicas):
    name = f"{precision}-{jit}-{replicas}"
    ours = seen(runs, name)
    assert_validated_once(ours, EPOCHS)
    if precision == "float32":  # the best epoch's figures, from its weights and Keras's own prediction
        from conftest import build_tiny, images_like
        store, images = Checkpoints(runs / name), images_like(VAL, seed=1)
        model = build_tiny("plain")
        best = store.restore("best", model)["state"]["best"]
        logits = np.float64(model.predict(images.images.astype(np.float32), verbose=0))
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        targets = np.eye(3)[images.labels] * 0.9 + 0.1 / 3
        assert best["val_loss"] == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)
        assert best["val_accuracy"] == (logits.argmax(axis=1) == images.labels).mean()


def test_a_run_moved_between_numbers_of_replicas_in_the_middle_of_epochs_is_the_undisturbed_one(runs):
    assert len(list(runs.glob("moved.*.npz"))) == len(CHAIN)
    ours = seen(runs, "moved")
    assert_same_images(ours, seen(runs, "undisturbed"))
    assert_validated_once(ours, 2 * EPOCHS)  # the average, too
    assert not ours["differing"]
    moved, undisturbed = metrics(runs / "moved"), metrics(runs / "undisturbed")
    assert "average_val_loss" in undisturbed[-1]
    assert_same_curves(moved, undisturbed, **TOLERANCES["float32"])
    assert_same_weights(runs / "moved", runs / "undisturbed", atol=2e-6)


def test_two_replicas_with_statistics_of_their_own_killed_in_an_epoch_go_on_with_the_same_bits(runs):
    # One copy of the variables is the whole state: batch norm's moving statistics, dropout's seed, the loss scale.
    ours, theirs = seen(runs, "cut"), seen(runs, "whole")
    assert ours["order"] == theirs["order"][COPIED:]
    assert len(ours["order"]) == 3 * EPOCHS - COPIED
    assert_same_weights(runs / "cut", runs / "whole", atol=0)
    for one, other in zip(metrics(runs / "cut"), metrics(runs / "whole"), strict=True):
        for name in ("loss", "accuracy", "grad_norm", "skipped", "val_loss", "average_val_loss", "val_accuracy"):
            assert one[name] == other[name], name


@pytest.mark.parametrize(("name", "replicas", "skipped"), [("four", 4, 0), ("whole", 2, 1)])
def test_replicas_with_batch_norm_and_dropout_are_equal_after_every_step(runs, name, replicas, skipped):
    ours = seen(runs, name)
    assert ours["differing"] == []
    assert len(ours["order"]) == 3 * EPOCHS
    assert ours["compared"] >= 3 * EPOCHS * replicas * 20
    assert sum(line["skipped"] for line in metrics(runs / name)) == skipped
    with np.load(Checkpoints(runs / name).path("last")) as arrays:
        mean, = (arrays[key] for key in arrays.files if key.startswith("model/") and key.endswith("moving_mean"))
    assert np.abs(mean).max() > 1e-4  # the statistics have moved
