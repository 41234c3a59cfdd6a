"""`--mode=audit` through the flags: what lands on disk, and a training that leaves out what it found."""

import json
import pathlib

import keras
import numpy as np
import pytest
from PIL import Image

import main
from bloodcell import config
from bloodcell.commands import audit, evaluate, parts, train
from bloodcell.data import demo, sources
from bloodcell.errors import InputError

COPIES = list(range(20, 44, 2))  # positions of twelve equal pictures


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", "--audit_features=pixels", "--image_size=48", *arguments])
    assert parsed is not None
    config.validate(parsed)
    return parsed


@pytest.fixture(scope="module")
def rendered() -> tuple[np.ndarray, np.ndarray]:
    images, labels = demo.render(80, seed=1, part="train", size=48)
    return images.copy(), np.asarray(labels, np.int64)


@pytest.fixture(scope="module")
def data(rendered, tmp_path_factory) -> pathlib.Path:
    """80 images: twelve copies of one photograph, a pair of equal cells, and 66 others."""
    images, labels = rendered[0].copy(), rendered[1]
    images[COPIES] = np.random.default_rng(0).integers(0, 256, (48, 48, 3))
    images[60] = images[10]
    path = tmp_path_factory.mktemp("data") / "dirty.npz"
    np.savez(path, images=images, labels=labels[:, None].astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def audited(data, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "audit"
    audit.run(settings("--mode=audit", f"--data={data}", f"--workdir={folder}"))
    return folder


def test_the_folder_holds_the_audit_its_page_and_the_clean_set(data, audited, rendered):
    assert {path.name for path in audited.iterdir()} == {"audit.json", "audit.html", "clean.npz"}
    content = json.loads((audited / "audit.json").read_text())
    assert content["images"] == 80
    assert content["kept"] == 68
    assert [each["index"] for each in content["removed"]] == COPIES
    assert content["duplicates"] == [[10, 60]]
    page = (audited / "audit.html").read_text()
    assert "one of 12 identical images" in page
    with np.load(audited / "clean.npz") as clean, np.load(data) as dirty:
        kept = np.setdiff1d(np.arange(80), COPIES)
        np.testing.assert_array_equal(clean["images"], dirty["images"][kept])
        np.testing.assert_array_equal(clean["labels"], dirty["labels"][kept])
        np.testing.assert_array_equal(clean["index"], kept)


def test_the_clean_set_needs_no_second_audit(audited, capsys):
    clean = sources.load(str(audited / "clean.npz"))
    assert clean.audited
    assert clean.class_names == demo.CLASS_NAMES
    kept, _ = audit.clean(clean, settings())
    assert kept is clean
    assert capsys.readouterr().out == ""


def test_training_leaves_out_what_an_audit_removes_and_says_so(data, audited, tmp_path, capsys):
    flags = ("--model=cnn", "--weights=none", "--batch_size=16", "--stages=all(epochs=1, lr=1e-3)",
             "--progress=none", "--explain=none", f"--data={data}", f"--workdir={tmp_path / 'run'}", "--image_size=32")
    again = ("--mode=evaluate", f"--checkpoint={tmp_path / 'run'}", f"--data={data}", "--split=run", "--progress=none",
             "--explain=none")
    try:
        train.run(settings(*flags))
        printed = capsys.readouterr().out.splitlines()
        evaluate.run(settings(*again))
        assert capsys.readouterr().out.splitlines()[-1] == printed[-1]
    finally:
        keras.config.set_dtype_policy("float32")
    line = next(line for line in printed if line.startswith("clean:"))
    assert line == "clean: left out 12 images: 12 repeats; --mode=audit shows them, --clean=none keeps them"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [each["file"] for each in report["data"]["cleaned"]] == [f"dirty.npz#{index}" for index in COPIES]
    assert sum(part["images"] for part in report["data"]["parts"].values()) == 68
    assert "12 images were removed before the training" in (tmp_path / "run" / "report.html").read_text()
    used = {name: part.ids for name, part in parts.load(settings(*flags)).items()}
    by_file = parts.load(settings(*flags, f"--clean={audited / 'audit.json'}"))
    for name, ids in used.items():
        np.testing.assert_array_equal(by_file[name].ids, ids)
    every = parts.load(settings(*flags, "--clean=none"))
    assert sum(len(part) for part in every.values()) == 80


@pytest.mark.parametrize("kind", ["index", "tfrecord"])
def test_the_clean_set_may_be_an_index_or_records(data, audited, tmp_path, kind):
    audit.run(settings("--mode=audit", f"--data={data}", f"--workdir={tmp_path}", f"--audit_write={kind}",
                       "--audit_rules=repeats"))
    with np.load(audited / "clean.npz") as clean:
        images, index = clean["images"], clean["index"]
    if kind == "index":
        assert [int(line) for line in (tmp_path / "kept.txt").read_text().splitlines()[1:]] == index.tolist()
        kept, _ = audit.clean(sources.load(str(data)), settings(f"--clean={tmp_path / 'kept.txt'}"))
        np.testing.assert_array_equal(kept.images, images)
    else:
        again = sources.load(str(tmp_path / "clean-*.tfrecord"))
        np.testing.assert_array_equal(again.images[:], images)
        assert again.audited


def test_known_contaminants_are_given_by_position_or_file(data, tmp_path):
    with np.load(data) as arrays:
        Image.fromarray(arrays["images"][COPIES[0]]).save(tmp_path / "logo.png")
    for given in (str(COPIES[3]), str(tmp_path / "logo.png")):
        images = sources.load(str(data))
        found, _ = audit.examine(images, settings(f"--contaminants={given}", "--audit_rules=examples"), every_rule=True,
                                 say=lambda words: None)
        assert [each.index for each in found.removed] == COPIES


@pytest.mark.parametrize(("flag", "line"), [
    ("--audit_keep=80", "--audit_keep expected positions 0..79"),
    ("--contaminants=80", "--contaminants expected positions 0..79"),
    ("--contaminants=nowhere.png", "--contaminants expected positions or image files, received nowhere.png"),
    ("--audit_rules=exposure(dark=255, remove=True)", "remove all of them"),
])
def test_flags_that_do_not_fit_the_data_end_in_one_line(data, tmp_path, flag, line):
    with pytest.raises(InputError, match="expected") as error:
        audit.run(settings("--mode=audit", f"--data={data}", f"--workdir={tmp_path}", flag))
    assert line in str(error.value)
    assert not (tmp_path / "audit.json").exists()


def test_a_rule_that_does_not_exist_ends_the_program_with_status_1(capsys):
    assert main.main(["main.py", "--mode=audit", "--audit_rules=repeat"]) == 1
    assert "did you mean 'repeats'" in capsys.readouterr().err


def test_images_of_unequal_size_are_brought_to_one(rendered, tmp_path, capsys):
    images, labels = rendered
    for index in range(24):
        folder = tmp_path / "set" / f"class {labels[index] % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        side = 48 if index % 3 else 40
        Image.fromarray(images[index][:side, :side]).save(folder / f"{index}.png")
    audit.run(settings("--mode=audit", f"--data={tmp_path / 'set'}", f"--workdir={tmp_path / 'out'}",
                       "--audit_rules=duplicates"))
    assert "48x48" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["shape"] == [24, 48, 48, 3]
