"""Checkpoints survive what disks and people do to them."""

import errno
import io
import json
import os

import keras
import numpy as np
import pytest

from bloodcell import files
from bloodcell.errors import InputError
from bloodcell.train import checkpoints, metrics_log, optimizers
from bloodcell.train.checkpoints import Checkpoints


def optimizer_of(model, precision="float32"):
    return optimizers.build(optimizers.parse("adamw"), learning_rate=0.01, variables=model.trainable_variables,
                            precision=precision)


def scramble(variables):
    rng = np.random.default_rng(1)
    for variable in variables:
        variable.assign(rng.integers(0, 9, variable.shape).astype(variable.dtype))


def test_every_variable_comes_back_also_seeds_and_loss_scale(tmp_path, tiny):
    model = tiny()
    optimizer = optimizer_of(model, "mixed_float16")
    scramble([*model.variables, *optimizer.variables])
    saved = [variable.numpy() for variable in [*model.variables, *optimizer.variables]]
    names = {variable.name for variable in [*model.variables, *optimizer.variables]}
    assert {"seed_generator_state", "moving_mean", "dynamic_scale", "iteration", "learning_rate"} <= names

    Checkpoints(tmp_path).save("last", {"state": {"step": 3}}, model, optimizer)
    other = tiny()
    fresh = optimizer_of(other, "mixed_float16")
    assert Checkpoints(tmp_path).restore("last", other, fresh) == {"state": {"step": 3}}
    for value, variable in zip(saved, [*other.variables, *fresh.variables], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
        assert variable.numpy().dtype == value.dtype


def test_freezing_does_not_change_the_order_of_variables(tmp_path, tiny):
    model = tiny()
    before = [variable.path for variable in model.variables]
    model.get_layer("backbone").trainable = False
    assert [variable.path for variable in model.variables] == before


def test_best_needs_no_optimizer_and_rebuilds_from_the_folder(tmp_path, tiny):
    model = tiny(num_classes=2)
    scramble(model.variables)
    checkpoints.save_model_file(tmp_path, name="tiny", head="", image_size=8, class_names=("a", "b"))
    Checkpoints(tmp_path).save("best", {}, model)
    again, about = checkpoints.load_model(str(tmp_path))
    assert about == {"name": "tiny", "head": "", "image_size": 8, "num_classes": 2, "class_names": ("a", "b"),
                     "segment": "", "weights": []}
    assert checkpoints.weights_sha256(again) == checkpoints.weights_sha256(model)


def test_digest_sees_one_changed_bit_and_not_the_automatic_names(tiny):
    model, twin = tiny(), tiny()
    digest = checkpoints.weights_sha256(model)
    assert digest == checkpoints.weights_sha256(twin)
    value = twin.weights[0].numpy()
    value.view(np.uint32)[(0,) * value.ndim] ^= 1
    twin.weights[0].assign(value)
    assert digest != checkpoints.weights_sha256(twin)


class ShortDisk(io.FileIO):
    """A disk that is full after 1000 bytes."""

    def write(self, data):
        if self.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("failure", ["replace", "fsync", "write"])
def test_a_failing_disk_leaves_the_file_before_and_no_litter(tmp_path, tiny, monkeypatch, failure):
    model, store = tiny(), Checkpoints(tmp_path)
    store.save("best", {"epoch": 1}, model)
    before = store.path("best").read_bytes()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    if failure == "write":
        monkeypatch.setattr(files, "open", lambda path, mode: ShortDisk(path, "w"), raising=False)
    else:
        monkeypatch.setattr(os, failure, refuse)
    with pytest.raises(InputError, match="No space left on device") as error:
        store.save("best", {"epoch": 2}, model)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert store.path("best").read_bytes() == before
    assert [path.name for path in store.path("best").parent.iterdir()] == ["best.npz"]


def damaged(content, how):
    if how == "cut short":
        return content[:len(content) // 2]
    if how == "a bit flipped":
        middle = content.index(b"kernel") + 300
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
    if how == "empty":
        return b""
    if how == "pickled":
        file = io.BytesIO()
        np.savez(file, meta=np.array({"a": 1}, dtype=object))
        return file.getvalue()
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("how", ["cut short", "a bit flipped", "empty", "pickled", "a lone array"])
def test_a_damaged_file_is_one_line_and_changes_nothing(tmp_path, tiny, how):
    model, store = tiny(), Checkpoints(tmp_path)
    store.save("best", {}, model)
    store.path("best").write_bytes(damaged(store.path("best").read_bytes(), how))
    scramble(model.variables)
    digest = checkpoints.weights_sha256(model)
    with pytest.raises(InputError, match="damaged") as error:
        store.restore("best", model)
    assert "\n" not in str(error.value)
    assert checkpoints.weights_sha256(model) == digest


def test_a_checkpoint_of_another_network_or_optimizer_is_refused(tmp_path, tiny):
    model, store = tiny(), Checkpoints(tmp_path)
    store.save("last", {"state": {"step": 1}}, model, optimizer_of(model))
    with pytest.raises(InputError, match=r"float32 \(6, 4\).*received float32 \(6, 3\)"):
        store.restore("last", tiny(num_classes=4))
    with pytest.raises(InputError, match="names differ"):
        store.restore("last", tiny("plain"))
    with pytest.raises(InputError, match="variables of this optimizer"):
        store.restore("last", model, keras.optimizers.SGD())


def test_missing_and_unreadable_folders_are_one_line(tmp_path, tiny):
    with pytest.raises(InputError, match="expected the folder of a run"):
        checkpoints.load_model(str(tmp_path / "nothing"))
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        checkpoints.load_model(str(tmp_path))
    checkpoints.save_model_file(tmp_path, name="tiny", head="", image_size=8, class_names=("a", "b"))
    with pytest.raises(InputError, match=r"best\.npz"):
        checkpoints.load_model(str(tmp_path))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write"):
        checkpoints.save_model_file(tmp_path / "file", name="tiny", head="", image_size=8, class_names=("a",))


def test_metrics_after_the_restored_epoch_are_dropped_not_doubled(tmp_path):
    for epoch in (1, 2, 3):
        metrics_log.append(tmp_path, {"epoch": epoch})
    with open(tmp_path / metrics_log.FILE, "a", encoding="utf-8") as file:
        file.write('{"epoch": 4, "lo')  # killed while writing
    metrics_log.keep_until(tmp_path, 2)
    metrics_log.append(tmp_path, {"epoch": 3})
    lines = (tmp_path / metrics_log.FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
