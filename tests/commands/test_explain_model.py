"""Explanations of a run: what the pictures show is what the model does, and what cannot be had is one line."""

import importlib
import json
import shutil

import cv2
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.projector import projector_config_pb2

from bloodcell import config, models
from bloodcell.commands import classifying, explain, explaining, parts
from bloodcell.data import demo, division
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import explanation_sheets
from bloodcell.evaluate.classifier import Classifier, Member
from bloodcell.models import cnn
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies

SIZE, TRAINED = 32, 60


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A network of the same kind, which is built and traced sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "_CHANNELS", (8, 48))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training and test sets of few cells."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = demo.render(TRAINED + 40, seed=1, size=SIZE)
    for name, own in (("train", slice(0, TRAINED)), ("test", slice(TRAINED, None))):
        np.savez(folder / f"{name}.npz", images=images[own], labels=labels[own])
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run's folder, as a training with --split would leave it, with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    chosen = config.parse(["main.py", f"--data={data / 'train.npz'}", "--model=cnn", f"--image_size={SIZE}",
                           "--clean=none", "--split=fractions(0.8, 0.2)"])
    assert chosen is not None
    loaded, divided = parts.load_divided(chosen)
    folder.mkdir()
    (folder / "config.cfg").write_text(config.to_flagfile(chosen))
    division.write(folder, divided)
    names = loaded["train"].class_names
    checkpoints.save_model_file(folder, name="cnn", head="", image_size=SIZE, class_names=names)
    model = models.build("cnn", weights="none", head="", image_size=SIZE, num_classes=len(names), seed=3)
    checkpoints.Checkpoints(folder).save("best", {}, model)
    return folder


@pytest.fixture(scope="module")
def shown(run, data, tmp_path_factory):
    """The folder that got all there is to show of the run, and its explanations.json."""
    folder = tmp_path_factory.mktemp("shown")
    explain.run(everything(run, data, folder))
    return folder, json.loads((folder / "explanations.json").read_text())


@pytest.fixture(scope="module")
def classifier(run, data, tmp_path_factory) -> Classifier:
    """The run's own, as the command loads it."""
    return classifying.load(everything(run, data, tmp_path_factory.mktemp("unused")), strategies.resolve(
        strategy="none", replicas=0, precision="auto", jit="auto", seed=0)).classifier


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--mode=explain", "--progress=none", "--strategy=none", *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


def everything(run, data, folder) -> config.Config:
    return settings("--explain=model", f"--checkpoint={run}", f"--data={data / 'test.npz'}", f"--workdir={folder}")


def pixels_of(path) -> np.ndarray:
    return tf.io.decode_png(path.read_bytes(), channels=3).numpy()


def test_all_that_there_is_to_show(shown, classifier, data):
    folder, found = shown
    with np.load(data / "test.npz") as archive:
        images, labels = np.asarray(archive["images"]), np.asarray(archive["labels"])
    names, ids = found["class_names"], np.arange(len(labels))
    probabilities = tf.nn.softmax(classifier.batch(images, ids).logits[0, 0]).numpy()
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    assert "Grad-CAM has 8x8 values for 32x32 pixels" in found["coarseness"]

    order = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:explaining.MOST_MISTAKES]
    assert [each["row"] for each in found["mistakes"]] == order.tolist()
    assert found["wrong"] == np.bincount(labels[wrong], minlength=len(names)).tolist()
    for each in found["gradcam"] + found["mistakes"] + found["neighbours"]:
        row = each["row"]
        assert each["id"] == row
        assert each["file"].endswith(f"#{row}")
        assert (each["label"], each["predicted"]) == (names[labels[row]], names[predicted[row]])
        np.testing.assert_allclose(each["probabilities"], probabilities[row], atol=1e-5)
        assert each["confidence"] == max(each["probabilities"])
    for label, name in enumerate(names):
        for right in (True, False):
            own = (labels == label) & ((predicted == label) == right)
            drawn = [each for each in found["gradcam"] if each["label"] == name
                     and (each["predicted"] == name) == right]
            assert len(drawn) == min(explaining.EACH, own.sum())
    assert [each["row"] for each in found["tsne"]] == list(range(40))

    divided = parts.load(settings("--explain=segment", "--segment=threshold", f"--data={data / 'train.npz'}",
                                  f"--image_size={SIZE}", "--clean=none", "--split=fractions(0.8, 0.2)"))["train"]
    vectors = [classifier.batch(own.images, own.ids).features[0]
               for own in (divided, ImageSet(images, labels, ids, tuple(names), "", ("",) * 40))]
    learned, asked = (own / np.linalg.norm(own, axis=1, keepdims=True) for own in vectors)
    for each in found["neighbours"]:
        cosines = learned @ asked[each["row"]]
        nearest = np.argsort(-cosines, kind="stable")[:explaining.NEAREST]
        assert [other["id"] for other in each["nearest"]] == divided.ids[nearest].tolist()
        assert [other["label"] for other in each["nearest"]] == [names[i] for i in np.asarray(divided.labels)[nearest]]
        np.testing.assert_allclose([other["similarity"] for other in each["nearest"]], cosines[nearest], atol=1e-5)

    for kind, cells in (("gradcam", found["gradcam"]), ("mistakes", found["mistakes"]),
                        ("neighbours", found["neighbours"])):
        sheet = pixels_of(folder / f"{kind}.png")
        for each in cells[:1]:  # shown thrice as large, pixel by pixel
            cell = np.repeat(np.repeat(images[each["row"]], 3, axis=0), 3, axis=1)
            _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, cell, cv2.TM_SQDIFF))
            np.testing.assert_array_equal(sheet[y:y + 96, x:x + 96], cell)


def test_tensorboard_gets_the_pictures_and_a_projector(shown, data):
    folder, found = shown[0] / "tensorboard", shown[1]
    text_format = importlib.import_module("google.protobuf.text_format")  # which has no type information
    stated = text_format.Parse((folder / "projector_config.pbtxt").read_text(), projector_config_pb2.ProjectorConfig())
    entry = stated.embeddings[0]
    vectors = np.loadtxt(folder / entry.tensor_path, delimiter="\t")
    header, *rows = [line.split("\t") for line in (folder / entry.metadata_path).read_text().splitlines()]
    assert vectors.shape == tuple(entry.tensor_shape) == (40, 40)
    assert header == ["label", "predicted", "result", "confidence", "file"]
    assert [[row[0], row[1], row[4]] for row in rows] == [[each["label"], each["predicted"], each["file"]]
                                                          for each in found["tsne"]]
    assert all(row[2] == ("right" if row[0] == row[1] else "wrong") for row in rows)
    sprite = pixels_of(folder / entry.sprite.image_path)
    assert list(entry.sprite.single_image_dim) == [SIZE, SIZE]
    with np.load(data / "test.npz") as archive:  # 7 a row
        np.testing.assert_array_equal(sprite[SIZE:2 * SIZE, 2 * SIZE:3 * SIZE], np.asarray(archive["images"])[9])
    tags = set()
    for path in folder.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert tags == {"explain/gradcam", "explain/tsne", "explain/mistakes", "explain/neighbours"}


def test_the_same_command_writes_the_same_and_a_workdir_gets_it(shown, run, data, tmp_path):
    explain.run(everything(run, data, tmp_path))
    written = [{path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
               for folder in (shown[0], tmp_path)]
    assert written[0] == written[1]
    assert set(written[0]) == {"gradcam.png", "tsne.png", "mistakes.png", "neighbours.png", "explanations.json"}
    assert not (run / "explanations.json").exists()


def test_runs_together_on_the_last_part_of_the_split(copied, data, tmp_path, capsys):
    second = shutil.copytree(copied, tmp_path / "second")
    explain.run(settings("--explain=gradcam", f"--checkpoint={copied},{second}", "--split=run",
                         f"--data={data / 'train.npz'}", "--tta=flips"))
    found = json.loads((copied / "explanations.json").read_text())
    assert found["tsne"] is None
    assert not (copied / "tsne.png").exists()
    assert f"{sum(found['wrong'])} of {found['images']} images are taken for another class" in capsys.readouterr().out
    assert "the mean of 2 networks' maps" in found["coarseness"]
    assert found["images"] == len(division.read(copied).parts["val"].ids)
    assert {each["id"] for each in found["gradcam"]} <= set(division.read(copied).parts["val"].ids.tolist())


def test_training_data_that_is_gone_is_a_line_and_the_rest_is_shown(copied, data, tmp_path, capsys):
    moved = (copied / "config.cfg").read_text().replace(str(data / "train.npz"), str(tmp_path / "gone.npz"))
    (copied / "config.cfg").write_text(moved)
    arguments = [f"--checkpoint={copied}", f"--data={data / 'test.npz'}"]
    explain.run(settings("--explain=mistakes,neighbours", *arguments))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no nearest training images: ")]
    assert len(lines) == 1
    assert "the run's training data cannot be read (" in lines[0]
    found = json.loads((copied / "explanations.json").read_text())
    assert found["neighbours"] is None
    assert found["remarks"] == lines
    assert found["mistakes"]
    assert not (copied / "neighbours.png").exists()
    explain.run(settings("--explain=neighbours", *arguments, f"--train_data={data / 'train.npz'}"))
    assert (copied / "neighbours.png").is_file()


def test_training_images_are_those_of_the_run_or_none(copied, data):
    found = explaining.training_of(copied)
    assert isinstance(found, explaining.Training)
    part = division.read(copied).parts["train"]
    np.testing.assert_array_equal(found.images.ids, part.ids)
    assert found.images.fingerprint() == part.fingerprint
    assert "does not hold the images that" in str(explaining.training_of(copied, data=str(data / "test.npz")))
    (copied / "config.cfg").unlink()
    assert "does not say what it was trained on" in str(explaining.training_of(copied))
    assert "cannot be read (" in str(explaining.training_of(data))


def test_a_model_without_mistakes_and_a_class_without_images(classifier, data):
    with np.load(data / "test.npz") as archive:
        pixels = archive["images"]
    outputs = classifier.batch(pixels, np.arange(len(pixels)))
    named = classifier.probabilities(outputs.logits).argmax(axis=1).astype(np.int64)
    images = ImageSet(pixels, named, np.arange(len(pixels)), demo.CLASS_NAMES, "cells", ("",) * len(pixels))
    found = explaining.explanations(classifier, images, outputs, train=explaining.Training(images, outputs.features))
    assert found.wrong.sum() == 0
    assert found.neighbours is not None
    np.testing.assert_array_equal(found.neighbours.ids[:, 0], found.neighbours.cells.ids)  # itself
    np.testing.assert_allclose(found.neighbours.similarity[:, 0], 1, atol=1e-5)
    drawn = explaining.pictures(found)
    assert len(drawn) == 4
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())


def test_heat_for_the_true_class_beside_that_for_the_class_named():
    model = models.build("cnn", weights="none", head="", image_size=SIZE, num_classes=2, seed=0)
    logits = model.get_layer("head").get_layer("logits")
    kernel, _ = logits.get_weights()
    logits.set_weights([np.stack([np.abs(kernel[:, 0]), -np.abs(kernel[:, 0])], axis=1), np.zeros(2)])
    made, pixels = Classifier([Member("a", model)]), demo.render(4, seed=0, size=SIZE)[0]
    images = ImageSet(pixels, np.array([0, 1, 0, 1]), np.arange(4), ("a", "b"), "cells", ("",) * 4)
    found = explaining.explanations(made, images, made.batch(pixels, images.ids), kinds=("mistakes",))
    assert found.mistakes is not None
    assert sorted(found.mistakes.rows.tolist()) == [1, 3]
    assert (found.mistakes.heat.max(axis=(1, 2)) == 1).all()
    assert not found.mistakes.heat_of_label.any()


def test_heat_colours_what_it_covers():
    image, heat = np.full((2, 2, 3), 200, np.uint8), np.array([[0.0, 0.5], [1.0, 1.0]], np.float32)
    drawn = explanation_sheets.overlay(image, heat).astype(int)
    assert drawn[1, 0, 0] > drawn[1, 0, 2]  # red
    assert drawn[0, 0, 2] > drawn[0, 0, 0]  # blue
    assert np.abs(drawn[0, 0] - 200).max() < np.abs(drawn[1, 0] - 200).max()


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--explain=gradcams"], "received 'gradcams'; did you mean 'gradcam'?"),
    (["--explain=gradcam,augment"], "received 'augment'; try it alone"),
    (["--explain=tsne"], "--explain=tsne expected --checkpoint=RUN_FOLDER, received none"),
    (["--explain=model"], "--explain=model expected --checkpoint=RUN_FOLDER, received none"),
])
def test_what_cannot_be_explained_is_one_line(arguments, expected):
    with pytest.raises(InputError) as caught:
        settings(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_come_in_one_order():
    assert config.explained("neighbours, gradcam") == ("gradcam", "neighbours")
    assert config.explained("model") == config.OF_MODEL
    assert config.explained("augment") == ()
