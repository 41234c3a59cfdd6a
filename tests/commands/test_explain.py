"""The sheet of a policy shows training's own images, every class, each pixel; and counts what the policy draws."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment, config
from bloodcell.commands import explain, explaining_policy, parts
from bloodcell.data import demo
from bloodcell.errors import InputError
from bloodcell.evaluate import contact_sheet

POLICY = "flip | oneof(rotate(90), cutout(0.4))@0.5"


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--mode=explain", "--explain=augment", f"--augment={POLICY}", "--image_size=32",
                           *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images, labels = demo.render(48, seed=1, size=40)
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    np.savez(path, images=images, labels=labels)
    return path


def explained(*arguments: str) -> dict[str, Any]:
    """Explains a policy; returns what the sheet was asked to show, and the command's printed "lines"."""
    asked: dict[str, Any] = {}

    def record(images, **rest):
        asked.update(rest, images=images)
        return contact_sheet.contact_sheet_png(images, **rest)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(explaining_policy, "contact_sheet_png", record)
        explain.run(settings(*arguments))
    return {**asked, "lines": printed.getvalue().splitlines()}


@pytest.fixture(scope="module")
def shown(data, tmp_path_factory):
    """A folder with the sheet of seed 3, and what it shows."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, explained(f"--data={data}", "--seed=3", f"--workdir={folder}")


def test_the_columns_are_the_training_images_of_epochs_1_to_8(data, shown):
    learned, drawn = parts.load(settings(f"--data={data}", "--seed=3"))["train"], shown[1]
    everything = augment.parse(POLICY)
    versions = [learned.images[:], *(
        everything(tf.constant(learned.images[:]), tf.constant(learned.ids), epoch=epoch, seed=3).numpy()
        for epoch in range(1, 9))]
    assert drawn["images"].shape[:2] == (8, 9)
    for row, picture in enumerate(drawn["images"]):
        index = next(i for i, image in enumerate(learned.images) if np.array_equal(image, picture[0]))
        assert drawn["rows"][row] == learned.class_names[np.asarray(learned.labels)[index]]
        np.testing.assert_array_equal(picture, [images[index] for images in versions])


def test_the_demo_set_is_the_one_that_training_has(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PART_SIZES", {"train": 70, "val": 8, "test": 8})
    chosen = ("--seed=2", "--augment=flip", f"--workdir={tmp_path}")
    images, ids = explaining_policy.training_images(settings(*chosen))
    learned = parts.load(settings(*chosen))["train"]
    np.testing.assert_array_equal(ids, learned.ids)
    np.testing.assert_array_equal(images.images, learned.images[:len(images)])
    np.testing.assert_array_equal(images.labels, np.asarray(learned.labels)[:len(images)])
    assert explained(*chosen)["rows"] == list(demo.CLASS_NAMES)


def test_a_seed_gives_one_file_and_another_seed_another(data, shown, tmp_path):
    sheets = [(shown[0] / "explain_augment.png").read_bytes()]
    for seed in (3, 1):
        lines = explained(f"--data={data}", f"--seed={seed}", f"--workdir={tmp_path / 'run'}")["lines"]
        sheets.append((tmp_path / "run" / "explain_augment.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["explain_augment.png"]
    assert lines[-1] == f"wrote {tmp_path / 'run' / 'explain_augment.png'}"
    assert [line.split()[0] for line in lines[-5:-1]] == ["flip", "rotate", "cutout", "no"]


def test_shares_count_an_image_once_whatever_the_axes_before_it():
    class Fixed:
        def draw(self, ids, *, epoch, seed):
            on = np.zeros((3, 2, 4), bool)
            on[0, 1, 0] = on[2, 0, 0] = on[1, 1, 2] = epoch % 2 == 1
            first = {"on": np.array([True, True, False, False]), "degrees": np.array([5.0, 7.0, 99.0, 99.0])}
            return {"2.oneof/3/1.augmix/rotate": {"on": on, "degrees": 10.0 * on}, "1.rotate": first,
                    "2.oneof/3/1.augmix/weights": {"alpha": np.ones((3, 4))}}

    bars = explaining_policy.shares(Fixed(), np.arange(4), seed=0)  # type: ignore[arg-type]  # only draw is asked for
    assert bars == [contact_sheet.Bar("rotate", "", 0.5, "degrees 5..7"),
                    contact_sheet.Bar("rotate", "oneof 3 > augmix", 0.25, "degrees 10"),
                    contact_sheet.Bar("no op at all", "", 0.375)]


def test_shares_of_a_policy_are_its_probabilities(monkeypatch):
    bars = {bar.name: bar for bar in explaining_policy.shares(augment.parse(POLICY), np.arange(2000), seed=0)}
    assert bars["flip"].share == 1
    assert bars["rotate"].share == pytest.approx(0.25, abs=0.02)
    assert bars["rotate"].remark == "degrees -90..90"
    assert bars["cutout"].remark == "size 0.40"
    assert bars["no op at all"].share == 0
    monkeypatch.setattr(explaining_policy, "EPOCHS", 1)
    for name in augment.COMBINATORS:
        policy = augment.parse(augment.COMBINATORS[name].example)
        for bar in explaining_policy.shares(policy, np.arange(100), seed=0):
            assert 0 <= bar.share <= 1


@pytest.mark.parametrize("counts", [[5], [1, 30], [3, 3, 3], [2] * 40])
def test_every_class_has_a_row_and_few_classes_have_several(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = explaining_policy.rows_of_every_class(labels)
    assert len(set(chosen.tolist())) == len(chosen)
    assert len(chosen) == min(max(8, len(counts)), 24, len(labels))
    assert len(np.unique(labels[chosen])) == min(len(counts), 24)
    assert (np.diff(labels[chosen]) >= 0).all()


@pytest.mark.parametrize(("shape", "shown"), [((96, 96), (96, 96)), ((28, 28), (112, 112)), ((192, 192), (144, 144)),
                                              ((16, 130), (96, 130))])
def test_the_sheet_holds_each_image_and_its_pixels(shape, shown):
    images = np.random.default_rng(1).integers(0, 256, (2, 3, *shape, 3), dtype=np.uint8)
    png = contact_sheet.contact_sheet_png(
        images, rows=["a_b", "$c"], columns=["original", "1", "2"], title="t", code="flip | " * 40 + "flip",
        lines=["a line"], table_title="table", bars=[contact_sheet.Bar("flip", "oneof 2 > " * 9, 0.5, "x" * 99)] * 9)
    sheet = tf.io.decode_png(png, channels=3).numpy()
    height, width = shown
    if shape[0] <= 96:
        expected = np.repeat(np.repeat(images[1, 2], height // shape[0], axis=0), width // shape[1], axis=1)
    else:
        thirds = np.repeat(np.repeat(images[1, 2].astype(float), 3, axis=0), 3, axis=1)  # 192 * 3 = 144 * 4
        expected = thirds.reshape(144, 4, 144, 4, 3).mean(axis=(1, 3))
    x = 24 + 150 + 2 * (width + 4) + 8
    column = sheet[:, x:x + width].astype(float)
    apart = [np.abs(column[y:y + height] - expected).max() for y in range(len(sheet) - height)]
    assert min(apart) <= (0 if shape[0] <= 96 else 0.5001)


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--explain="], "--mode=explain expected --explain=augment or segment or model, or some of gradcam, tsne, "
     "mistakes, neighbours, received none"),
    (["--explain=colour"], "neighbours, received 'colour'"),
    (["--augment="], "--explain=augment expected --augment=POLICY, received none"),
    (["--augment=flp"], "did you mean 'flip'?"),
])
def test_what_cannot_be_explained_is_one_line(arguments, expected):
    with pytest.raises(InputError) as caught:
        settings(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [["--augment=flip"], ["--explain=segment", "--segment=threshold"]])
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_read(tmp_path, what):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"--workdir expected a folder .*, received \S*/file/run \(Not a directory\)"):
        explain.run(settings("--data=there_is_none.npz", *what, f"--workdir={tmp_path / 'file' / 'run'}"))
    assert (tmp_path / "file").read_text() == "in the way"
