"""Several worker processes train as one does: same batches, losses and weights; one that is lost loses nothing."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.train import cluster, strategy
from bloodcell.train.checkpoints import Checkpoints

REPO = pathlib.Path(__file__).resolve().parents[2]
EPOCHS = 6
IMAGES = 90  # 63 to train and 27 to validate: both end with a batch that is not full, of 7 and of 3 images
TRAIN, VAL, BATCH = 63, 27, 8
PATIENCE = 240  # seconds; a process that takes longer hangs


# ---- Two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % 3
    pixels = rng.integers(0, 160, (IMAGES, 16, 16, 3))
    pixels[np.arange(IMAGES), :, :, labels] += 60
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return [f"--data={path}", "--clean=none", "--split=fractions(0.7, 0.3)", "--model=cnn", "--weights=none",
            "--image_size=16", f"--batch_size={BATCH}", f"--stages=all(epochs={EPOCHS}, lr=1e-3)",
            "--augment=flip", "--optimizer=adamw(clipnorm=1.0)", "--jit=off",
            "--checkpoint_seconds=1", "--progress=none", "--explain=none"]


@contextlib.contextmanager
def started(*commands, workers=2):
    """Runs `main.py`, the command of each worker or one for all; whatever happens, none is left behind."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    base = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    processes = []
    try:
        for index in range(workers):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**base, "CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": json.dumps(task) if workers > 1 else ""}
            processes.append(subprocess.Popen(
                [sys.executable, "main.py", *commands[index % len(commands)]], cwd=REPO, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(process):
    """Waits for a process; returns its status, and the lines that it wrote to stdout and stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines(), err.splitlines()


def metrics(run_dir):
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def assert_same_run(run_dir, expected):
    ours, theirs = metrics(run_dir), metrics(expected)
    assert [line["epoch"] for line in ours] == [line["epoch"] for line in theirs] == list(range(1, EPOCHS + 1))
    for one, other in zip(ours, theirs, strict=True):
        assert one["step"] == other["step"]
        for name in ("loss", "val_loss", "grad_norm", "lr"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
        for name, images in (("accuracy", TRAIN), ("val_accuracy", VAL)):
            right = one[name] * images
            assert right == pytest.approx(round(right), abs=1e-6)  # each image was counted, and once
            assert one[name] == other[name]
    for which in ("last", "best"):
        left, right = (np.load(Checkpoints(run).path(which)) for run in (run_dir, expected))
        assert left.files == right.files
        for name in left.files:
            if name != "meta":
                np.testing.assert_allclose(left[name], right[name], rtol=0, atol=1e-4, err_msg=f"{which} {name}")


@pytest.fixture(scope="module")
def one_process(flags, tmp_path_factory):
    """The run of one process with two replicas."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    with started([*flags, "--replicas=2", f"--workdir={run_dir}"], workers=1) as (process,):
        status, _, err = ended(process)
        assert status == 0, err
    return run_dir


def test_two_workers_of_which_each_is_killed_once_end_with_the_run_of_one_process(flags, one_process, tmp_path):
    run_dir = tmp_path / "run"
    command = [*flags, f"--workdir={run_dir}"]
    for victim, finished in ((1, 1), (0, 2)):  # then the chief, who writes
        with started(command) as processes:
            until = time.monotonic() + PATIENCE
            while len(metrics(run_dir)) < finished:
                assert time.monotonic() < until
                assert all(process.poll() is None for process in processes), [ended(each) for each in processes]
                time.sleep(0.02)
            processes[victim].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            status, _, err = ended(processes[1 - victim])
            seconds = time.monotonic() - killed
        assert status == 1
        assert len(err) == 1, err
        assert err[0].startswith("error: a worker was lost")
        assert seconds < 60  # 10 without a sign of life, and the time to end
        assert finished <= len(metrics(run_dir)) < EPOCHS

    with started(command) as processes:
        (status, out, err), (status_of_other, out_of_other, err_of_other) = map(ended, processes)
    assert status == status_of_other == 0, err + err_of_other
    assert not err
    assert not err_of_other
    assert out[0].startswith("worker 0 of 2 at 127.0.0.1:")
    assert out[1].startswith("devices: 2 workers x CPU | ")
    assert "accuracy" in json.loads(out[-1])
    assert [line.partition(" at ")[0] for line in out_of_other] == ["worker 1 of 2"]  # the chief alone speaks
    assert_same_run(run_dir, one_process)


# ---- The parts -------------------------------------------------------------------------------------------------------


def test_the_rows_of_all_workers_are_the_batches_of_one(make_images):
    whole = Pipeline(make_images(44), batch_size=8)
    shared = [whole.of_worker(worker, 4) for worker in range(4)]
    for arguments in ({}, {"skip_steps": 2}):
        expected = list(whole.epoch(5, 3, **arguments))
        parts = [list(pipeline.epoch(5, 3, **arguments)) for pipeline in shared]
        assert [len(part) for part in parts] == [len(expected)] * 4
        for number, batch in enumerate(expected):
            for name, value in batch.items():
                rows = [part[number][name].numpy() for part in parts]
                assert {len(each) for each in rows} == {2}
                np.testing.assert_array_equal(np.concatenate(rows), value.numpy())
    assert whole.of_worker(1, 2).of_batch_size(4).batch_size == 4
    with pytest.raises(ValueError, match="3 equal parts"):
        whole.of_worker(0, 3).in_order()


TWO: dict[str, Any] = {"cluster": {"worker": ["one:1234", "two:1234"]}, "task": {"type": "worker", "index": 1}}


def test_tf_config_names_the_workers_and_this_one(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cluster.from_environment() is None
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    assert cluster.from_environment() == cluster.Cluster(("one:1234", "two:1234"), 1)
    with_chief = {"cluster": {"chief": ["zero:1"], **TWO["cluster"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(with_chief))
    assert cluster.from_environment() == cluster.Cluster(("zero:1", "one:1234", "two:1234"), 1)
    alone: dict[str, Any]
    for alone in ({"cluster": {"worker": ["one:1"]}, "task": {"type": "worker", "index": 0}}, {}, {"cluster": {}}):
        monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
        assert cluster.from_environment() is None


@pytest.mark.parametrize(("text", "expected"), [
    ("{", "JSON"),
    ("[1]", "'cluster' and 'task'"),
    (json.dumps({**TWO, "task": {"type": "worker", "index": 2}}), "index from 0 to 1"),
    (json.dumps({**TWO, "task": {"type": "worker", "index": "1"}}), "index from 0 to 1"),
    (json.dumps({**TWO, "task": {"type": "worker", "index": True}}), "index from 0 to 1"),
    (json.dumps({**TWO, "task": {"type": "evaluator", "index": 0}}), "type 'worker'"),
    (json.dumps({"cluster": TWO["cluster"]}), "type 'worker'"),
    (json.dumps({**TWO, "cluster": {"worker": "one:1234"}}), "list of 'host:port'"),
    (json.dumps({**TWO, "cluster": {"worker": ["one:1234", "two"]}}), "list of 'host:port'"),
    (json.dumps({**TWO, "cluster": {"worker": ["one:1234", "two:99999"]}}), "list of 'host:port'"),
    (json.dumps({**TWO, "cluster": {"worker": ["one:1234", "one:1234"]}}), "address of its own"),
    (json.dumps({**TWO, "cluster": {**TWO["cluster"], "ps": ["three:1"]}}), "'worker' (and one 'chief')"),
    (json.dumps({**TWO, "cluster": {**TWO["cluster"], "chief": ["a:1", "b:1"]}}), "one chief"),
])
def test_a_tf_config_that_cannot_be_used_is_one_line(text, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError) as caught:
        strategy.resolve(strategy="auto", replicas=0, precision="float32", jit="off", seed=0, training=True)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    alone = strategy.resolve(strategy="auto", replicas=0, precision="float32", jit="off", seed=0)  # no training
    assert (alone.workers, alone.worker, alone.chief, alone.distributed) == (1, 0, True, False)


def test_a_strategy_that_is_not_to_be_had_is_one_line(monkeypatch):
    def refused(expected, **changes):
        asked = {"strategy": "multiworker", "replicas": 0, "precision": "float32", "jit": "off", "seed": 0,
                 "training": True}
        with pytest.raises(InputError, match=expected):
            strategy.resolve(**{**asked, **changes})

    monkeypatch.delenv("TF_CONFIG", raising=False)
    refused("TF_CONFIG to name two workers")
    refused("outside of training", training=False)
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    refused("replicas: expected 0 or 2", replicas=3)

    def missing(tpu):
        raise ValueError("no such TPU: nowhere")
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", missing)
    refused("received: no such TPU; try --strategy=auto", strategy="tpu")


def test_only_the_errors_of_a_lost_worker_become_its_line():
    lost = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: recvmsg:Connection reset by peer")
    with pytest.raises(InputError, match="a worker was lost"), cluster.one_line_where_a_worker_is_lost(2):
        raise lost
    with pytest.raises(tf.errors.UnavailableError), cluster.one_line_where_a_worker_is_lost(1):
        raise lost
    with pytest.raises(tf.errors.InternalError), cluster.one_line_where_a_worker_is_lost(2):
        raise tf.errors.InternalError(None, None, "a kernel failed")


class _OfTwo:
    """Stands for the strategy of a worker whose peer is about to do `facts`."""

    def __init__(self, facts):
        self._facts = facts

    def run(self, gathered):
        return tf.constant(np.concatenate([cluster.digests(each) for each in self._facts]))

    def experimental_local_results(self, value):
        return (value,)


def test_workers_that_are_about_to_do_different_things_do_not_begin():
    facts = {"--seed": 0, "the training images": "5f3a", "the checkpoint in runs/x": None}
    cluster.check_agreement(_OfTwo([facts, dict(facts)]), facts)
    for name in facts:
        other = {**facts, name: 1}
        for mine in (facts, other):
            with pytest.raises(InputError, match=f"different {name};"):
                cluster.check_agreement(_OfTwo([facts, other]), mine)
