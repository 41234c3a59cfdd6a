"""A run that is killed, at whatever point, and started again ends with the bits of one that was not."""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from faults import Disk, Killed

from bloodcell.data import demo
from bloodcell.errors import InputError, Stopped
from bloodcell.train import checkpoints, loop, step
from bloodcell.train.checkpoints import Checkpoints
from bloodcell.train.saving import Saver
from bloodcell.train.strategy import Runtime

REPO = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("inputs_made_once")
RUNTIME = Runtime(tf.distribute.get_strategy(), 1, "float32", "off", "CPU")
STAGES = "head(epochs=1, lr=1e-2) | all(epochs=3, lr=2e-2, schedule='plateau(patience=1)', augment='rotate(90)')"
SHORT = {"stages": "all(epochs=3, lr=1e-2)", "average": "swa(start=0.5)"}
OF_THE_MOMENT = {"seconds", "images_per_second", "checkpoint_seconds", "step_ms_p50", "step_ms_p90", "step_ms_p99",
                 "host_mib", "traces"}


def metrics(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in OF_THE_MOMENT} for line in lines]


def assert_same_bits(one, other):
    assert metrics(one) == metrics(other)
    for which in checkpoints.WHICH:
        ours, theirs = (Checkpoints(run) for run in (one, other))
        assert ours.has(which) == theirs.has(which)
        if ours.has(which):
            left, right = np.load(ours.path(which)), np.load(theirs.path(which))
            assert left.files == right.files
            assert all(left[name].tobytes() == right[name].tobytes() for name in left.files if name != "meta"), which


def with_graph(function, step_function):
    """Lets a function that stands for a step be drawn as that step's graph."""
    function.get_concrete_function = getattr(step_function, "get_concrete_function", None)
    return function


@pytest.fixture
def fit(tiny, make_images):
    """Returns a function, (config, folder, ...) -> `loop.fit`: six steps an epoch, the last of them padded."""
    train, val = make_images(44), make_images(12, seed=1)
    return lambda config, folder, **more: loop.fit(config, RUNTIME, train, val, folder, **more)


@pytest.fixture
def undisturbed(fit, made, make_config, tmp_path_factory, monkeypatch):
    """Returns the folder of a `SHORT` run that nothing has disturbed, and the counts of `Disk`; made once."""
    if "undisturbed" not in made:
        folder = tmp_path_factory.mktemp("undisturbed")
        with monkeypatch.context() as patch:
            disk = Disk(patch)
            fit(make_config(**SHORT), folder)
        made["undisturbed"] = folder, disk.counts
    return made["undisturbed"]


@pytest.fixture
def every_step(monkeypatch):
    """Makes a checkpoint after every step."""
    monkeypatch.setattr(Saver, "due", lambda self, seconds: seconds > 0 and not self.busy())


@pytest.mark.usefixtures("every_step")
def test_a_run_killed_at_a_dozen_random_points_ends_with_the_same_bits(tmp_path, fit, make_config, monkeypatch):
    config = make_config(stages=STAGES, augment="flip", optimizer="adamw(weight_decay=0.01)", average="swa(start=0.3)")
    fit(config, tmp_path / "whole")
    chance, run_dir, kills, make = random.Random(7), tmp_path / "cut", [], step.train_step
    while True:
        kind = chance.choice(["write", "write", "fsync", "replace", "unlink", "before a step", "after a step"])
        number = chance.randint(1, 700 if kind == "write" else 8)
        with monkeypatch.context() as patch:
            disk = Disk(patch, kind, number)

            def deadly(*args, disk=disk, kind=kind, number=number, **kwargs):
                take, count = make(*args, **kwargs), iter(range(1, 1000))

                def counted(batch, epoch):
                    now = kind.endswith("a step") and next(count) == number
                    if now and kind.startswith("before"):
                        disk.fail()
                    result = take(batch, epoch)
                    if now:
                        disk.fail()
                    return result
                return with_graph(counted, take)
            patch.setattr(step, "train_step", deadly)
            try:
                fit(config, run_dir)
                break
            except Killed:
                kills.append((kind, number))
        keras.backend.clear_session()
    assert len(kills) >= 12
    assert {"write", "fsync", "replace", "unlink", "before a step", "after a step"} == {kind for kind, _ in kills}
    assert_same_bits(tmp_path / "whole", run_dir)
    assert not list((run_dir / "checkpoints").glob(".*"))  # what a kill left behind is gone


def test_whatever_operation_of_the_disk_is_the_last_a_whole_checkpoint_is_there(tmp_path, tiny, monkeypatch):
    model = tiny("plain")
    values = {}

    def save_two(folder, disk=None):
        store = Checkpoints(folder, keep=1)
        for number in (1, 2):
            model.variables[0].assign(tf.fill(model.variables[0].shape, float(number)))
            store.save("last", {"state": {"step": number}}, model)
            values[number] = model.variables[0].numpy()

    with monkeypatch.context() as patch:
        disk = Disk(patch)
        save_two(tmp_path / "counted")
        counts = dict(disk.counts)
    assert counts["replace"] == 2
    assert counts["unlink"] >= 1
    tried = 0
    for kind, count in counts.items():
        for number in range(1, count + 1):
            folder = tmp_path / f"{kind}-{number}"
            with monkeypatch.context() as patch:
                Disk(patch, kind, number)
                with pytest.raises(Killed):
                    save_two(folder)
            store, said = Checkpoints(folder, keep=1), list[str]()
            store.set_damaged_aside(said.append)
            assert not said  # a file bears its name only when it is whole
            if store.has("last"):
                found = store.restore("last", model)["state"]["step"]
                np.testing.assert_array_equal(model.variables[0].numpy(), values[found])
            first_ends = {"write": counts["write"] // 2, "fsync": counts["fsync"] // 2, "replace": 1, "unlink": 1}[kind]
            assert store.has("last") or number <= first_ends
            assert not list(folder.glob("checkpoints/.*"))
            tried += 1
    assert tried == sum(counts.values()) > 20


@pytest.mark.parametrize("kind", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, fit, undisturbed, make_config, *,
                                                                        monkeypatch, kind):
    config = make_config(**SHORT)
    whole, counts = undisturbed
    with monkeypatch.context() as patch:
        Disk(patch, kind, counts[kind] * 3 // 4, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(InputError, match="No space left on device") as error:
            fit(config, tmp_path / "cut")
    assert "\n" not in str(error.value)
    assert Checkpoints(tmp_path / "cut").has("last")
    fit(config, tmp_path / "cut")
    assert_same_bits(whole, tmp_path / "cut")


@pytest.mark.usefixtures("every_step")
def test_a_damaged_newest_checkpoint_is_set_aside_aloud_and_the_one_before_gives_the_same_bits(
        tmp_path, fit, make_config, capsys):
    config = make_config(stages="all(epochs=3, lr=1e-2)", keep=3)
    fit(config, tmp_path / "whole")

    def stop(record):
        if record["epoch"] == 2:
            raise Killed
    with pytest.raises(Killed):
        fit(config, tmp_path / "cut", on_epoch=stop)
    newest = Checkpoints(tmp_path / "cut").newest()
    assert len(newest) == 3
    content = bytearray(newest[0].read_bytes())
    content[content.index(b"kernel") + 300] ^= 1
    newest[0].write_bytes(content)
    newest[1].write_bytes(b"")
    capsys.readouterr()
    fit(config, tmp_path / "cut")
    said = capsys.readouterr().err
    for path in newest[:2]:
        assert f"warning: the checkpoint {path} is damaged" in said
        assert path.with_name(f"{path.name}.damaged").exists()
    assert f"going on from {newest[2].name}" in said
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    for path in Checkpoints(tmp_path / "cut").newest():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"expected an intact one of step-.*received damaged files"):
        fit(config, tmp_path / "cut")


@pytest.mark.parametrize(("moment", "number"), [
    ("a step", signal.SIGINT), ("the first step", signal.SIGTERM), ("validation", signal.SIGTERM),
    ("the last validation", signal.SIGINT)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, fit, undisturbed, make_config, *, monkeypatch, moment,
                                              number):
    config = make_config(**SHORT)
    whole, _ = undisturbed
    make, check = step.train_step, step.eval_step
    calls = iter(range(1, 1000))
    at = {"a step": 9, "the first step": 1, "validation": 4, "the last validation": 10}[moment]

    def hit(function):
        def calling(batch, epoch):
            if next(calls) == at:
                os.kill(os.getpid(), number)
            return function(batch, epoch)
        return with_graph(calling, function)
    with monkeypatch.context() as patch:
        if "step" in moment:
            patch.setattr(step, "train_step", lambda *args, **kwargs: hit(make(*args, **kwargs)))
        else:
            patch.setattr(step, "eval_step", lambda *args, **kwargs: hit(check(*args, **kwargs)))
        before = signal.getsignal(number)
        with pytest.raises(Stopped) as stopped:
            fit(config, tmp_path / "cut")
        assert signal.getsignal(number) is before
    assert stopped.value.status == 128 + number
    expected = {"a step": "saved, after 3 steps of epoch 2;", "the first step": "no step was taken yet",
                "validation": "6 steps of epoch 2;", "the last validation": "6 steps of epoch 3;"}[moment]
    assert expected in str(stopped.value)
    assert "the same command" in str(stopped.value)
    fit(config, tmp_path / "cut")
    assert_same_bits(whole, tmp_path / "cut")


def test_a_folder_that_is_deleted_while_the_run_is_at_work_is_one_line(tmp_path, fit, make_config):
    def delete(record):
        shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match=r"to stay while the run goes on|cannot write .*No such file") as error:
        fit(make_config(stages="all(epochs=9, lr=1e-2)"), tmp_path / "run", on_epoch=delete)
    assert "\n" not in str(error.value)
    assert not Checkpoints(tmp_path / "run").has("last")


def test_another_number_of_kept_checkpoints_is_kept(tmp_path, tiny):
    model, store = tiny("plain"), Checkpoints(tmp_path, keep=3)
    for number in (1, 2, 30, 400, 123456789):
        store.save("last", {"state": {"step": number}}, model)
    assert [path.name for path in store.newest()] == ["step-123456789.npz", "step-00000400.npz", "step-00000030.npz"]
    assert store.path("last").name == "step-123456789.npz"


def test_a_checkpoint_holds_the_moment_it_was_asked_for(tmp_path, tiny, monkeypatch):
    model, store = tiny("plain"), Checkpoints(tmp_path)
    write = Checkpoints.write

    def slowly(self, which, arrays):
        time.sleep(0.2)
        write(self, which, arrays)
    monkeypatch.setattr(Checkpoints, "write", slowly)
    store.make_folder()
    first = [variable.numpy().copy() for variable in model.variables]
    began = time.monotonic()
    with Saver(store, step=0) as saver:
        saver.save("last", {"state": {"step": 1}}, model)
        for variable in model.variables:
            variable.assign_add(tf.ones_like(variable))
        assert saver.busy()
        assert time.monotonic() - began < 0.2  # nobody has waited for the disk
    assert not saver.busy()
    store.restore("last", model)
    for variable, value in zip(model.variables, first, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.usefixtures("tiny")
def test_what_has_changed_is_said_field_by_field_and_can_be_allowed(tmp_path, make_images, make_config, capsys,
                                                                    monkeypatch):
    train, val = make_images(16), make_images(9, seed=1)
    loop.fit(make_config(stages="all(epochs=2, lr=1e-2)"), RUNTIME, train, val, tmp_path)
    monkeypatch.setattr("bloodcell.train.state.code_sha256", lambda: "another")
    monkeypatch.setattr(tf, "__version__", "9.9")
    longer = make_config(stages="all(epochs=3, lr=1e-2)")
    with pytest.raises(InputError, match=(
            r"--stages \(was 'all\(epochs=2, lr=1e-2\)', is 'all\(epochs=3, lr=1e-2\)'\), bloodcell's code differs, "
            r"TensorFlow \(was 2\.\d+\.\d+, is 9\.9\); try .*--allow_changed=stages,code,tensorflow")):
        loop.fit(longer, RUNTIME, train, val, tmp_path)
    assert len(metrics(tmp_path)) == 2
    for allowed in ("stages,code,tensorflow", "all"):
        loop.fit(make_config(stages=longer.stages, allow_changed=allowed), RUNTIME, train, val, tmp_path)
        assert len(metrics(tmp_path)) == 3
    assert "going on although it is allowed to differ: --stages" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"the classes differ; try the first flags, data and code again, or a new"):
        loop.fit(make_config(allow_changed="all"), RUNTIME, make_images(16, classes=2), val, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The program itself
# ---------------------------------------------------------------------------------------------------------------------


def start(run_dir, data):
    flags = ("--model=cnn", "--weights=none", f"--data={data}", "--clean=none", "--split=fractions(0.8, 0.1, 0.1)",
             "--image_size=16", "--batch_size=8", "--jit=off", "--stages=all(epochs=8, lr=1e-3)", "--augment=flip",
             "--checkpoint_seconds=1", "--progress=none", "--explain=none", "--deterministic", f"--workdir={run_dir}")
    return subprocess.Popen([sys.executable, "main.py", *flags], cwd=REPO, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def reported(run_dir):
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["weights_sha256"]


@pytest.mark.timeout(300)
def test_the_program_killed_and_stopped_ends_with_the_bits_of_another_run(tmp_path):
    images, labels = demo.render(240, seed=1, part="train", size=16)
    np.savez(tmp_path / "cells.npz", images=images, labels=labels)
    whole = start(tmp_path / "whole", tmp_path / "cells.npz")
    chance, run_dir = random.Random(3), tmp_path / "cut"
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = set(run_dir.glob("checkpoints/step-*.npz"))
        process = start(run_dir, tmp_path / "cells.npz")
        patience = time.monotonic() + 120
        while set(run_dir.glob("checkpoints/step-*.npz")) <= before and time.monotonic() < patience:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number], err
    assert err.splitlines()[-1].startswith("stopped by SIGTERM: everything is saved, after ")
    assert "Traceback" not in err
    command = re.findall(r"python (main\.py .*)$", err.splitlines()[-1])[0]
    other = subprocess.run([sys.executable, *command.split(), "--progress=none"], cwd=REPO, check=False,
                           capture_output=True, text=True, timeout=200)
    assert other.returncode == 0, other.stderr
    assert whole.wait(timeout=200) == 0
    assert reported(run_dir) == reported(tmp_path / "whole")
    assert_same_bits(run_dir, tmp_path / "whole")


def test_two_processes_do_not_share_a_folder(tmp_path):
    from bloodcell import files
    with files.locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", (
            "import pathlib, sys; from bloodcell import files\nwith files.locked(pathlib.Path(sys.argv[1])): pass"),
            str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False, timeout=60)
    assert "expected a folder that no other process works in" in done.stderr
    with files.locked(tmp_path):  # free again
        pass
