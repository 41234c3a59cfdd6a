"""The numbers of a training are watched: what is not finite stops it, the rest is added up, timed and shown."""

import json
import os
import pathlib
import signal

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError, Stopped
from bloodcell.train import loop, shown, stages, step, strategy, watch
from bloodcell.train.stopping import StopRequest
from bloodcell.train.strategy import Runtime
from bloodcell.train.watch import NotFinite, Watch

RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "off", "CPU")


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("column", "what"), [(0, "loss"), (3, "gradient")])
def test_what_is_not_finite_stops_the_run_and_leaves_its_batch(tmp_path, make_images, make_config, column, what):
    make, images = step.train_step, make_images(24)

    def breaking(*args, **kwargs):
        take, count = make(*args, **kwargs), iter(range(1, 100))
        poison = np.ones(5)
        poison[column] = np.inf

        def poisoned(batch, epoch):
            result = take(batch, epoch)
            return result * poison if next(count) == 5 else result
        poisoned.get_concrete_function = take.get_concrete_function  # type: ignore[attr-defined]
        return poisoned
    line = (rf"expected a finite {what}, received inf in epoch 2 at step 5 \(of the steps 4\.\.6 looked at together\), "
            r"whose batch is now .*not_finite\.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", breaking)
        with pytest.raises(InputError, match=line):
            loop.fit(make_config(augment="invert"), RUNTIME, images, make_images(9, seed=1), tmp_path)
    found = np.load(tmp_path / "not_finite.npz")
    expected = next(iter(Pipeline(images, batch_size=8).epoch(3, 2, skip_steps=1)))
    for name in ("image", "label", "id", "weight"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(found["augmented"], 255.0 - found["image"])
    np.testing.assert_array_equal(found["targets"], np.eye(3)[found["label"]])


def test_a_look_names_the_first_bad_step_and_changes_no_sum_by_when_it_comes():
    results = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    sums = []
    for cuts in ([7], [1, 2, 4], [3, 4]):
        looking, at = Watch(None, lambda: 0.1), 0
        for count in cuts:
            looking.look([tf.constant(row) for row in results[at:at + count]], at + count, compiled=False)
            at += count
        sums.append(looking.sums)
    assert sums[0] == sums[1] == sums[2]
    np.testing.assert_allclose(sums[0], results.sum(axis=0, dtype=np.float64), rtol=1e-12)
    results[2, 3], results[4, 0] = np.nan, np.inf
    with pytest.raises(NotFinite) as error:
        Watch(None, lambda: 0.1).look([tf.constant(row) for row in results], 107, compiled=False)
    assert (error.value.step, error.value.what, error.value.looked) == (103, "gradient", (101, 107))


def test_percentiles_of_the_step_time_weigh_a_look_by_its_steps(monkeypatch):
    moments = iter([0.0, 10.0, 13.0, 14.0])
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(moments))
    looking = Watch(None, lambda: 0.1)
    row = tf.constant([1.0, 2.0, 1.0, 3.0, 0.0])
    looking.look([row], 1, compiled=True)  # ten seconds of compiling count for nothing
    looking.look([row] * 30, 31, compiled=False)
    looking.look([row] * 2, 33, compiled=False)
    found = looking.figures(33)
    expected = np.percentile([100.0] * 30 + [500.0] * 2, [50, 90, 99])
    assert [found[f"step_ms_p{share}"] for share in (50, 90, 99)] == pytest.approx(expected, abs=0.01)
    assert (found["loss"], found["accuracy"], found["grad_norm"], found["skipped"]) == (0.5, 0.5, 3.0, 0)


@pytest.mark.usefixtures("tiny")
def test_steps_that_loss_scaling_skips_are_counted_and_leave_the_norm_alone(tmp_path, make_images, make_config):
    runtime = strategy.resolve(strategy="none", replicas=0, precision="mixed_float16", jit="off", seed=0)
    train = make_images(24)
    config = make_config(model="plain", stages="all(epochs=2, lr=1e-2)", loss="jsd(weight=1000)", augment="invert")
    loop.fit(config, runtime, train, make_images(9, seed=1), tmp_path)
    skipped = [record["skipped"] for record in metrics(tmp_path)]
    assert 1 <= skipped[0] <= 3
    assert all(np.isfinite(record["grad_norm"]) for record in metrics(tmp_path))
    scale = np.load(sorted(tmp_path.glob("checkpoints/step-*.npz"))[-1])
    halved = next(scale[name] for name in scale.files if name.endswith("dynamic_scale"))
    assert float(halved) == 2.0**15 / 2**sum(skipped)


@pytest.mark.usefixtures("tiny")
def test_the_gradients_norm_is_that_of_the_whole_batch_before_clipping(tmp_path, make_images, make_config, tiny):
    images = make_images(8)
    config = make_config(model="plain", stages="all(epochs=1, lr=1e-9)", optimizer="sgd(clipnorm=0.001)")
    loop.fit(config, RUNTIME, images, make_images(9, seed=1), tmp_path)
    model = tiny("plain", seed=3)
    with tf.GradientTape() as tape:
        log_p = tf.nn.log_softmax(model(tf.constant(images.images, tf.float32)))
        loss = -tf.reduce_mean(tf.gather(log_p, images.labels, batch_dims=1))
    grads = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    norm = np.sqrt(sum(np.sum(np.square(grad.numpy())) for grad in grads))
    assert norm > 0.01
    assert metrics(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.usefixtures("tiny")
def test_tensorboard_gets_curves_over_the_steps_and_a_run_is_traced_once(tmp_path, make_images, make_config,
                                                                         monkeypatch):
    monkeypatch.setattr(watch, "BOARD_SECONDS", -1.0)
    monkeypatch.setattr("bloodcell.train.epochs.LOOK_SECONDS", -1.0)
    loop.fit(make_config(schedule="cosine"), RUNTIME, make_images(20), make_images(9, seed=1), tmp_path)
    points: dict[str, list[int]] = {}
    for file in (tmp_path / "tensorboard").glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                points.setdefault(value.tag, []).append(event.step)
    for tag in ("loss", "accuracy", "learning_rate", "gradient_norm", "skipped"):
        assert points[f"steps/{tag}"] == [1, 2, 3, 4, 5, 6], tag
    assert points["memory/host_mib"] == [1, 2, 3, 4, 5, 6]
    assert points["steps/step_ms"][-1] == 6
    assert [record["traces"] for record in metrics(tmp_path)] == [1, 1]


def test_memory_is_what_the_system_says():
    said = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    kib = next(int(line.split()[1]) for line in said.splitlines() if line.startswith("VmRSS:"))
    assert watch.host_memory() == pytest.approx(1024 * kib, rel=0.02)


def test_the_first_signal_asks_and_the_second_stops_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == signal.SIGINT
        assert capfd.readouterr().err == "SIGINT: stopping after this step, once more stops at once\n"
        with pytest.raises(Stopped, match="SIGINT") as error:
            stop.check()
        assert error.value.status == 130
        with pytest.raises(Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
    with StopRequest() as stop, pytest.raises(Stopped), stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_summary_adds_up_each_stage_and_all():
    names = ("stage", "epoch", "step", "val_accuracy", "seconds", "images_per_second")
    history = [{**dict(zip(names, values, strict=True)), "val_loss": 1.0, "step_ms_p50": 10.0, "step_ms_p99": 30.0}
               for values in ((1, 1, 100, 0.5, 60.0, 200.0), (2, 2, 150, 0.8, 3000.0, 100.0),
                              (2, 3, 200, 0.7, 600.0, 120.0))]
    lines = shown.summary(history, stages.parse("head(epochs=1, lr=1e-3) | all(epochs=2, lr=1e-4)")).splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "1 head 1 100 0.5000 1 200 10 / 30 ms 1:00",
        "2 all 2 100 0.8000 2 110 10 / 30 ms 1:00:00",
        "all 3 200 0.8000 2 120 10 / 30 ms 1:01:00"]
