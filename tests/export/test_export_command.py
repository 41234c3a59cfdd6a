"""Exported files say what the checkpoint says, by themselves, and a file that does not is not kept."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from bloodcell import config, models
from bloodcell.commands import export, run_images
from bloodcell.commands import parts as data_parts
from bloodcell.data import demo, division, sources
from bloodcell.errors import InputError
from bloodcell.evaluate import classifier, tta
from bloodcell.export import checking, onnx_file, writing
from bloodcell.export.deployed import Deployed
from bloodcell.export.formats import FORMATS
from bloodcell.models import depthwise, fused_norm, heads
from bloodcell.train import checkpoints

HAS_ONNX = all(importlib.util.find_spec(package) for package in onnx_file.PACKAGES)
NAMES = [name for name in FORMATS if name != "onnx" or HAS_ONNX]
FLOAT32 = ["saved_model", "model.keras", "codabench", *(["model.onnx"] if HAS_ONNX else [])]

# What somebody else's program does: everything is loaded where bloodcell cannot be imported.
ELSEWHERE = """
import sys, pathlib
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bloodcell":
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
import numpy as np, tensorflow as tf, keras
folder = pathlib.Path(sys.argv[1])
images = np.load(folder.parent / "images.npy")
sys.path.insert(0, "")
import model
made = model.Model()
found = {"codabench": made.probabilities(images), "labels": made.predict(tf.constant(images, tf.float32)),
         "larger": made.predict(np.repeat(np.repeat(images[:3], 2, 1), 2, 2))}
found["model.keras"] = keras.models.load_model(folder / "model.keras").predict(images, verbose=0)
served = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
found["saved_model"] = served(images=tf.constant(images))["probabilities"].numpy()
for name in ("model_float16.tflite", "model_int8.tflite"):
    lite = tf.lite.Interpreter(str(folder / name))
    entry, out = lite.get_input_details()[0], lite.get_output_details()[0]
    assert entry["dtype"] == np.uint8 and out["dtype"] == np.float32, (entry, out)
    assert lite.get_signature_list()["serving_default"] == {"inputs": ["images"], "outputs": ["probabilities"]}
    if name == "model_int8.tflite":
        assert entry["quantization"] == (1.0, 0)
        assert [each["dtype"] for each in lite.get_tensor_details()].count(np.float32) == 1, "all but what it gives out"
    lite.resize_tensor_input(entry["index"], images.shape)
    lite.allocate_tensors()
    lite.set_tensor(entry["index"], images)
    lite.invoke()
    found[name] = lite.get_tensor(out["index"])
if (folder / "model.onnx").exists():
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["probabilities"]
    found["model.onnx"] = session.run(None, {session.get_inputs()[0].name: images})[0]
np.savez(folder.parent / "found.npz", **found)
"""


def build_small(name, *, weights, head, image_size, num_classes, seed):
    """Stands for `models.build`: a small network of the project's own layers."""
    del name, weights
    keras.utils.set_random_seed(seed)
    entry = keras.Input((image_size, image_size, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(entry)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = fused_norm.BatchNormalization()(x)
    x = keras.layers.ReLU(6.0)(depthwise.Conv2D(8, 3, padding="same", groups=8)(x))
    backbone = keras.Model(entry, x, name="backbone")
    top = heads.build(head, backbone.output, num_classes)
    image = keras.Input((image_size, image_size, 3))
    model = keras.Model(image, top(backbone(image)))
    kernel = top.get_layer("logits").kernel
    kernel.assign(20 * kernel)  # logits that are far apart
    return model


def write_run(run: pathlib.Path, seed: int, head: str = "") -> pathlib.Path:
    """Writes a run with random weights."""
    (run / "checkpoints").mkdir(parents=True)
    model = models.build("small", weights="none", head=head, image_size=32, num_classes=8, seed=seed)
    checkpoints.save_model_file(run, name="small", head=head, image_size=32, class_names=demo.CLASS_NAMES)
    checkpoints.Checkpoints(run).save("best", {}, model)
    return run


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--mode=export", *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "_SECONDS", 0.01)
        patch.setattr(models, "build", build_small)
        sixteen, eight = FORMATS["tflite"]  # of random weights and few images
        patch.setitem(FORMATS, "tflite", (sixteen, dataclasses.replace(eight, bound=checking.Bound(0.5, 0.8))))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    images, labels = demo.render(40, seed=1, part="train", size=32)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=np.asarray(labels))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "first", 0), write_run(folder / "second", 1, head="dense(16)")]


@pytest.fixture(scope="module")
def exported(runs, data) -> pathlib.Path:
    """Two runs, four views, a temperature, in every format."""
    export.run(settings(f"--checkpoint={runs[0]},{runs[1]}", f"--format={','.join(NAMES)}", "--tta=flips",
                        "--temperature=1.7", "--ensemble_weights=3,1", f"--data={data}"))
    return runs[0] / "export"


@pytest.fixture(scope="module")
def expected(runs, exported) -> np.ndarray:
    """What the classifier says of random images, which nobody has calibrated or compared on."""
    images = np.random.default_rng(3).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.save(exported.parent / "images.npy", images)
    found = classifier.Classifier(
        [classifier.Member(str(run), checkpoints.load_model(str(run))[0], 1.7) for run in runs],
        views=tta.parse("flips"), weights=[3, 1])
    return found.probabilities(found.batch(images, np.arange(9)).logits)


@pytest.fixture(scope="module")
def elsewhere(exported, expected):
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(exported)], cwd=exported / "codabench",
                          capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(exported.parent / "found.npz")


@pytest.mark.parametrize("name", FLOAT32)
def test_views_temperature_and_mean_are_inside_and_the_numbers_are_the_classifiers(elsewhere, expected, name):
    assert elsewhere[name].dtype == np.float32
    np.testing.assert_allclose(elsewhere[name], expected, atol=2e-5)


@pytest.mark.parametrize(("name", "most"), [("model_float16.tflite", 0.02), ("model_int8.tflite", 0.25)])
def test_fewer_bits_stay_near(elsewhere, expected, name, most):
    np.testing.assert_allclose(elsewhere[name], expected, atol=most)
    np.testing.assert_allclose(elsewhere[name].sum(axis=1), 1, atol=0.03)


def test_the_codabench_model_gives_a_label_an_image_also_of_float_tensors_and_of_larger_images(elsewhere, expected):
    assert elsewhere["labels"].dtype == np.int64
    np.testing.assert_array_equal(elsewhere["labels"], expected.argmax(axis=1))
    assert elsewhere["larger"].shape == (3,)


def test_the_zip_is_the_folder_and_has_no_folder_around_it(exported):
    with zipfile.ZipFile(exported / "codabench.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    folder = exported / "codabench"
    assert {"model.py", "metadata", "saved_model/saved_model.pb"} <= packed.keys()
    assert packed == {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
                      if path.is_file() and "__pycache__" not in path.parts}


def test_the_page_beside_says_sizes_digests_and_how_near(exported, runs):
    about = json.loads((exported / "export.json").read_text())
    assert set(about) == {artefact.name for name in NAMES for artefact in FORMATS[name]}
    assert {path.name for path in exported.iterdir()} == {*about, "codabench.zip", "export.json", ".lock"}
    entry = about["model.keras"]
    assert entry["bytes"] == (exported / "model.keras").stat().st_size
    assert list(entry["files"]) == ["model.keras"]
    assert len(entry["files"]["model.keras"]) == 64
    assert entry["max_difference"] <= 1e-4
    assert entry["compared_on"]["images"] == 20
    assert entry["milliseconds"].keys() == {"1", "64"}
    assert [run["weight"] for run in entry["runs"]] == [0.75, 0.25]
    assert [run["temperature"] for run in entry["runs"]] == [1.7, 1.7]
    assert {"codabench/model.py", "codabench.zip"} <= set(about["codabench"]["files"])


def deployed(views: str, **rest) -> Deployed:
    model = models.build("small", weights="none", head="", image_size=32, num_classes=8, seed=0)
    found = classifier.Classifier([classifier.Member("a", model)], views=tta.parse(views))
    return Deployed(found, 32, demo.CLASS_NAMES, **rest)


@pytest.fixture(scope="module")
def few(data):
    return np.load(data)["images"][:12]


def test_a_file_out_of_its_bound_is_not_kept_and_the_older_one_stays(tmp_path, few):
    one = deployed("")
    wrong = dataclasses.replace(FORMATS["savedmodel"][0], bound=checking.Bound(1e-4, 1.0))
    expected = one.probabilities(few)
    assert writing.put(wrong, one, tmp_path, few, expected)["agreement"] == 1
    before = (tmp_path / "saved_model" / "saved_model.pb").read_bytes()
    with pytest.raises(InputError, match=r"probabilities differ by up to 0\.\d+ \(at most 0\.0001\)") as error:
        writing.put(wrong, one, tmp_path, few, expected[:, ::-1])
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    assert (tmp_path / "saved_model" / "saved_model.pb").read_bytes() == before
    writing.put(wrong, one, tmp_path, few, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_one_format_that_fails_keeps_none_of_the_others(runs, data, tmp_path, monkeypatch):
    wrong = dataclasses.replace(FORMATS["savedmodel"][0], bound=checking.Bound(-1.0, 1.0))
    monkeypatch.setitem(FORMATS, "savedmodel", (wrong,))
    with pytest.raises(InputError, match=r"saved_model: expected .* not kept"):
        export.run(settings(f"--checkpoint={runs[1]}", "--format=savedmodel,keras", f"--data={data}",
                            f"--workdir={tmp_path}"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.keras", "export.json", ".lock"}


def test_drawn_views_go_into_a_savedmodel_and_into_nothing_of_keras(tmp_path, few):
    one = deployed("weak(1, policy='brightness(0.5)')")
    expected = one.probabilities(few)
    assert np.abs(expected - deployed("").probabilities(few)).max() > 1e-4
    writing.put(FORMATS["savedmodel"][0], one, tmp_path, few, expected)
    for name in ("keras", "tflite"):
        with pytest.raises(InputError, match="received views by a policy"):
            writing.put(FORMATS[name][0], one, tmp_path, few, expected)


@pytest.mark.parametrize("views", ["rotations", "dihedral"])
def test_every_pose_of_a_view_is_inside(few, views):
    one = deployed(views)
    np.testing.assert_allclose(one.model().predict(few, verbose=0), one.probabilities(few), atol=1e-5)


@pytest.mark.parametrize(("arguments", "line"), [
    (["--format=kera"], "--format: unknown name 'kera'; did you mean 'keras'?"),
    (["--format=,"], "--format expected names of formats, received none"),
    (["--val_augment=flip"], "received --val_augment too"),
])
def test_flags_that_cannot_work_are_one_line(runs, arguments, line):
    with pytest.raises(InputError, match=line.replace("?", r"\?")):
        settings(f"--checkpoint={runs[0]}", *arguments)


def test_no_checkpoint_is_one_line():
    with pytest.raises(InputError, match="--mode=export expected --checkpoint"):
        settings()


def test_missing_packages_are_one_line_that_names_the_extra(runs, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "tf2onnx" else find(name, *rest))
    with pytest.raises(InputError, match=r"none named tf2onnx; try pip install 'bloodcell\[onnx\]'"):
        export.run(settings(f"--checkpoint={runs[0]}", "--format=onnx"))


def test_a_run_with_segmentation_is_refused(tmp_path):
    run = write_run(tmp_path / "run", 0)
    about = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**about, "segment": "threshold"}))
    with pytest.raises(InputError, match="expected runs without --segment"):
        export.run(settings(f"--checkpoint={run}"))
    assert not (run / "export").exists()


def test_the_runs_own_parts_are_found_by_its_folder(tmp_path, data):
    run = write_run(tmp_path / "run", 0)
    about = checkpoints.about(run)
    with pytest.raises(InputError, match="the flags of the run, received nothing"):
        run_images.of_run(run, about)
    flags = config.parse(["main.py", f"--data={data}", "--split=fractions(0.5, 0.25, 0.25)", "--image_size=32",
                          "--clean=none"])
    assert flags is not None
    (run / "config.cfg").write_text(config.to_flagfile(flags))
    parts, divided = data_parts.load_divided(flags)
    division.write(run, divided)
    found = run_images.of_run(run, about)
    assert set(found) == {"train", "val"}
    for name, images in found.items():
        np.testing.assert_array_equal(images.images, parts[name].images)
        np.testing.assert_array_equal(images.labels, parts[name].labels)
    np.savez(data.parent / "fewer.npz", images=np.asarray(parts["val"].images), labels=np.asarray(parts["val"].labels))
    (run / "config.cfg").write_text(config.to_flagfile(dataclasses.replace(flags, data=str(data.parent / "fewer.npz"))))
    with pytest.raises(InputError, match="received others"):
        run_images.of_run(run, about)
    with pytest.raises(InputError, match=r"to calibrate .* received others; try --data=FILE"):
        export.run(settings(f"--checkpoint={run}", "--format=tflite"))


def test_a_run_whose_images_are_gone_is_compared_on_rendered_ones_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(demo.PART_SIZES, "val", 8)
    run = write_run(tmp_path / "run", 0)
    export.run(settings(f"--checkpoint={run}", "--format=keras"))
    said = capsys.readouterr().out
    assert "the flags of the run, received nothing there); rendered ones take their place" in said
    assert "compared with the checkpoint on 8 images: demo (rendered)" in said
    assert (run / "export" / "model.keras").is_file()


def test_images_are_drawn_evenly_from_the_classes_that_have_them(data):
    images = sources.load(str(data), image_size=32)
    labels = np.repeat([0, 1, 6], [2, 9, 9])
    rare = dataclasses.replace(images.subset(np.arange(20)), labels=labels)
    chosen = run_images.balanced(rare, 12)
    assert len(np.unique(chosen)) == 12
    assert np.bincount(labels[chosen], minlength=7)[[0, 1, 6]].tolist() == [2, 5, 5]
    assert len(run_images.balanced(rare, 500)) == 20


def test_the_names_of_the_flag_are_the_formats():
    assert tuple(FORMATS) == config.FORMATS
