"""`fit` on a tiny network: it learns, resumes with the same bits, stops where it should, and leaves its files."""

import json

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.train import checkpoints, loop, step
from bloodcell.train.state import State
from bloodcell.train.strategy import Runtime
from bloodcell.train.tensorboard import Board

pytestmark = pytest.mark.usefixtures("inputs_made_once")
RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "augment", "CPU")


class Killed(BaseException):
    """What a kill looks like from inside."""


def kill_after(epoch):
    def on_epoch(record):
        if record["epoch"] == epoch:
            raise Killed
    return on_epoch


def metrics(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def timeless(records):
    """Returns the records without what differs between two equal runs: times and memory."""
    return [{key: value for key, value in record.items()
             if key not in ("seconds", "images_per_second", "checkpoint_seconds", "traces")
             and not key.startswith("step_ms") and not key.endswith("_mib")} for record in records]


def test_two_stages_learn_and_leave_their_files(tmp_path, tiny, make_images, make_config, capsys):
    config = make_config(stages="head(epochs=1, lr=1e-2) | all(epochs=8, lr=3e-2)", schedule="cosine(warmup=0.1)",
                         augment="flip", progress="lines")
    model = loop.fit(config, RUNTIME, make_images(42), make_images(21, seed=1), tmp_path)
    records = metrics(tmp_path)
    assert [(record["stage"], record["epoch"], record["step"]) for record in records] == [
        (1, 1, 6), *((2, epoch, 6 * epoch) for epoch in range(2, 10))]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "images_per_second", "seconds"} <= records[0].keys()
    assert records[-1]["loss"] < records[0]["loss"]
    best = max(records, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
    assert best["val_accuracy"] > 0.6
    assert checkpoints.Checkpoints(tmp_path).meta("best")["state"]["best"]["epoch"] == best["epoch"]
    loaded, about = checkpoints.load_model(str(tmp_path))
    assert checkpoints.weights_sha256(loaded) == checkpoints.weights_sha256(model)
    assert about["class_names"] == ("class_0", "class_1", "class_2")
    pixels = make_images(21, seed=1)
    hits = np.argmax(model.predict(pixels.images.astype(np.float32), verbose=0), axis=1) == pixels.labels
    assert hits.mean() == pytest.approx(best["val_accuracy"])
    said = capsys.readouterr().out
    assert said.index("stage 1/2") < said.index("compiling the step...") < said.index("epoch 1/1: loss")
    assert "trainable" in said


def test_the_head_stage_moves_nothing_in_the_backbone(tmp_path, tiny, make_images, make_config):
    config = make_config(stages="head(epochs=1, lr=1e-1)")
    fresh = tiny(seed=config.seed).get_layer("backbone")
    trained = loop.fit(config, RUNTIME, make_images(16), make_images(9, seed=1), tmp_path).get_layer("backbone")
    for ours, first in zip(trained.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), first.numpy())


@pytest.mark.parametrize(("schedule", "policy"), [("cosine", "flip"), ("plateau(patience=1)", "")])
def test_a_run_killed_three_times_has_the_same_bits(tmp_path, tiny, make_images, make_config, *, schedule, policy):
    # The network has dropout and batch norm; the stops lie inside a stage, at its end, and inside the second.
    config = make_config(stages="all(epochs=2, lr=2e-2) | head(epochs=2, lr=1e-2)", schedule=schedule, augment=policy,
                         optimizer="adamw(weight_decay=0.01)")
    train, val = make_images(20), make_images(12, seed=1)
    whole = loop.fit(config, RUNTIME, train, val, tmp_path / "whole")
    for stop in (1, 2, 3):
        with pytest.raises(Killed):
            loop.fit(config, RUNTIME, train, val, tmp_path / "cut", on_epoch=kill_after(stop))
    seen: list[dict[str, int]] = []
    resumed = loop.fit(config, RUNTIME, train, val, tmp_path / "cut", on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == [4]
    assert timeless(metrics(tmp_path / "cut")) == timeless(metrics(tmp_path / "whole"))
    assert checkpoints.weights_sha256(resumed) == checkpoints.weights_sha256(whole)
    ours, cut = (np.load(checkpoints.Checkpoints(tmp_path / run).path("last")) for run in ("whole", "cut"))
    assert ours.files == cut.files
    assert all(np.array_equal(ours[name], cut[name]) for name in ours.files if name != "meta")


@pytest.mark.parametrize("average", ["ema(0.9)", "swa(start=0.3)"])
def test_stages_with_rules_of_their_own_go_on_with_the_same_bits(tmp_path, tiny, make_images, make_config, average):
    config = make_config(average=average, augment="flip", stages=(
        "all(epochs=2, lr=2e-2, batch_size=4, optimizer='ranger(sync_period=3)', schedule='restarts(first=0.25)', "
        "lr_decay=0.5, accumulate=2) | top(layers=2, epochs=2, lr=1e-2, optimizer='sgd(momentum=0.9)', "
        "freeze_bn=True)"))
    train, val = make_images(20), make_images(12, seed=1)
    whole = loop.fit(config, RUNTIME, train, val, tmp_path / "whole")
    assert [record["step"] for record in metrics(tmp_path / "whole")] == [5, 10, 13, 16]
    for stop in (1, 2, 3):
        with pytest.raises(Killed):
            loop.fit(config, RUNTIME, train, val, tmp_path / "cut", on_epoch=kill_after(stop))
    resumed = loop.fit(config, RUNTIME, train, val, tmp_path / "cut")
    assert timeless(metrics(tmp_path / "cut")) == timeless(metrics(tmp_path / "whole"))
    assert checkpoints.weights_sha256(resumed) == checkpoints.weights_sha256(whole)
    for name in ("last", "best", "average"):
        ours, cut = (np.load(checkpoints.Checkpoints(tmp_path / run).path(name)) for run in ("whole", "cut"))
        assert ours.files == cut.files
        assert all(np.array_equal(ours[key], cut[key]) for key in ours.files if key != "meta"), name


def test_averaged_weights_are_the_mean_of_the_epochs_and_are_validated_and_saved(tmp_path, tiny, make_images,
                                                                                 make_config):
    ends = []
    model = loop.fit(make_config(stages="all(epochs=4, lr=2e-2)", average="swa(start=0.5)"), RUNTIME, make_images(20),
                     make_images(12, seed=1), tmp_path,
                     on_epoch=lambda _: ends.append(dict(np.load(checkpoints.Checkpoints(tmp_path).path("last")))))
    records = metrics(tmp_path)
    assert ["average_val_loss" in record for record in records] == [False, True, True, True]
    store = checkpoints.Checkpoints(tmp_path)
    best = max(records[1:], key=lambda record: (record["average_val_accuracy"], -record["average_val_loss"]))
    assert store.meta("average")["state"]["best_average"] == {
        "epoch": best["epoch"], "val_loss": best["average_val_loss"], "val_accuracy": best["average_val_accuracy"]}
    averaged = np.load(tmp_path / "checkpoints" / "average.npz")
    for name in (name for name in averaged.files if name.endswith(("kernel", "bias", "gamma", "beta", "variance"))):
        expected = np.mean([end[name] for end in ends[1:best["epoch"]]], axis=0)
        np.testing.assert_allclose(averaged[name], expected, rtol=1e-5, atol=1e-6)
    loaded, _ = checkpoints.load_model(str(tmp_path), which="average")
    assert checkpoints.weights_sha256(loaded) != checkpoints.weights_sha256(model)


def test_a_finished_run_returns_its_best_weights_at_once(tmp_path, tiny, make_images, make_config):
    run = make_config(), RUNTIME, make_images(16), make_images(9, seed=1), tmp_path
    first = loop.fit(*run)
    before = metrics(tmp_path)
    again = loop.fit(*run, on_epoch=kill_after(1))
    assert checkpoints.weights_sha256(first) == checkpoints.weights_sha256(again)
    assert metrics(tmp_path) == before


def test_another_run_in_the_same_folder_is_refused_by_name(tmp_path, tiny, make_images, make_config):
    train, val = make_images(16), make_images(9, seed=1)
    loop.fit(make_config(), RUNTIME, train, val, tmp_path)
    with pytest.raises(InputError, match=r"--batch_size \(was 8, is 4\), --seed \(was 3, is 4\)") as error:
        loop.fit(make_config(batch_size=4, seed=4), RUNTIME, train, val, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="the training images differ"):
        loop.fit(make_config(), RUNTIME, make_images(17), val, tmp_path)
    loop.fit(make_config(progress="lines", report="r.json", workdir="elsewhere"), RUNTIME, train, val, tmp_path)


def test_early_stopping_ends_the_stage_and_goes_on_with_the_next(tmp_path, tiny, make_images, make_config):
    # A learning rate of nearly 0 never improves after its first epoch; ties keep the first.
    config = make_config(stages="all(epochs=9, lr=1e-9) | all(epochs=9, lr=1e-9)", early_stopping=2)
    loop.fit(config, RUNTIME, make_images(8), make_images(9, seed=1), tmp_path)
    records = metrics(tmp_path)
    for stage in (1, 2):
        own = [(record["val_accuracy"], -record["val_loss"]) for record in records if record["stage"] == stage]
        first_best = own.index(max(own))
        assert len(own) == min(first_best + 3, 9)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path, tiny, make_images, make_config, monkeypatch):
    make = step.train_step

    def breaking(*args, **kwargs):
        take, count = make(*args, **kwargs), iter(range(100))
        return lambda batch, epoch: take(batch, epoch) * (np.nan if next(count) == 4 else 1.0)
    monkeypatch.setattr(step, "train_step", breaking)
    monkeypatch.setattr(Board, "graph", lambda *_: None)
    monkeypatch.setattr(loop, "_traced", lambda *_: None)
    with pytest.raises(InputError, match=(r"finite loss.*epoch 2 at step 5 \(of the steps 4\.\.6.*not_finite\.npz; "
                                          r"the last good state is .*step-00000003\.npz")) as error:
        loop.fit(make_config(), RUNTIME, make_images(24), make_images(9, seed=1), tmp_path)
    assert "\n" not in str(error.value)
    assert checkpoints.Checkpoints(tmp_path).meta("last")["state"]["epoch"] == 1


def test_dry_run_takes_one_step_a_stage_and_writes_nothing(tmp_path, tiny, make_images, make_config, capsys):
    config = make_config(stages="head(epochs=5, lr=1e-2) | all(epochs=5, lr=1e-2)", dry_run=True, progress="lines",
                         profile_steps="1,2")
    loop.fit(config, RUNTIME, make_images(24), make_images(24, seed=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out.count("epoch 1/1: loss") == 2


def test_a_batch_the_replicas_cannot_share_is_one_line(tmp_path, tiny, make_images, make_config):
    runtime = Runtime(tf.distribute.get_strategy(), 3, "float32", "off", "CPU")
    with pytest.raises(InputError, match="multiple of the 3 replicas, received 8, try 9"):
        loop.fit(make_config(), runtime, make_images(8), make_images(9), tmp_path)


def test_tensorboard_gets_scalars_images_graph_and_a_profile(tmp_path, tiny, make_images, make_config):
    loop.fit(make_config(profile_steps="2,4"), RUNTIME, make_images(24), make_images(9, seed=1), tmp_path)
    with Board(tmp_path) as board:
        board.png("confusion", tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy(), 2)
    traces = list((tmp_path / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000

    tags: dict[str, list[int]] = {}
    graphs = 0
    for file in (tmp_path / "tensorboard").glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            graphs += bool(event.graph_def)
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    assert graphs == 1
    assert tags["val_accuracy"] == tags["loss"] == tags["images_per_second"] == tags["lr"] == [1, 2]
    assert {"val_loss", "augmented/stage 1 all", "confusion"} <= tags.keys()


def test_one_profile_longer_than_the_training_is_still_written(tmp_path, tiny, make_images, make_config):
    loop.fit(make_config(stages="all(epochs=1, lr=1e-3)", profile_steps="2,900"), RUNTIME, make_images(24),
             make_images(9, seed=1), tmp_path)
    assert list((tmp_path / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))


def test_a_grid_shows_every_image_in_its_place(tmp_path):
    images = np.arange(3, dtype=np.float32)[:, None, None, None] * np.full((3, 2, 2, 3), 100.0)
    with Board(tmp_path) as board:
        board.images("grid", images, 0, columns=2)
    events = [event for file in (tmp_path / "tensorboard").iterdir()
              for event in tf.compat.v1.train.summary_iterator(str(file))]
    png = events[-1].summary.value[0].tensor.string_val[2]
    expected = np.kron(np.array([[0, 100], [200, 0]]), np.ones((2, 2)))
    np.testing.assert_array_equal(tf.io.decode_png(png).numpy()[..., 0], expected)


def test_best_is_by_accuracy_and_then_by_loss():
    def bests(*pairs):
        state = State()
        return [state.remember({"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss}, None)[0]
                for epoch, (accuracy, loss) in enumerate(pairs)]
    assert bests((0.8, 1.0), (0.9, 5.0)) == [True, True]
    assert bests((0.9, 0.6), (0.9, 0.5)) == [True, True]
    assert bests((0.9, 0.6), (0.9, 0.6)) == [True, False]
    assert bests((0.9, 0.6), (0.9, float("nan"))) == [True, False]
    assert bests((0.1, 9.0)) == [True]
