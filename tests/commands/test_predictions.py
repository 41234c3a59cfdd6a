"""A row for each image in its order, alike in all forms, and the same bytes whatever has interrupted the command."""

import csv
import errno
import json
import os
import pathlib
import shutil
import signal
import types

import numpy as np
import pytest
from PIL import Image

from bloodcell import config, part_file
from bloodcell.commands import classifying, predict, predictions
from bloodcell.commands.predictions import Layout
from bloodcell.data.stream import Item
from bloodcell.errors import InputError, Stopped
from bloodcell.evaluate import novelty
from bloodcell.evaluate.classifier import Outputs
from bloodcell.train import strategy

NAMES = ("red", "green", "blue")
COLUMNS = ["file", "label", "name", "p0", "p1", "p2", "confidence", "novelty", "flag"]


class Colours:
    """Stands in for a classifier: logits are an image's mean colours, and differ a little by its place in the batch."""

    def __init__(self) -> None:
        self.members = (types.SimpleNamespace(temperature=1.0),)
        self.weights = np.ones(1)
        self.class_count = 3
        self.seen: list[int] = []
        self.before = lambda: None

    def batch(self, images: np.ndarray, ids: np.ndarray) -> Outputs:
        self.before()
        self.seen += ids.tolist()
        means = images.astype(np.float32).mean(axis=(1, 2)) / 32 + np.arange(len(images))[:, None] * [1e-3, 0, 0]
        return Outputs(means[None, None].astype(np.float32), (means.astype(np.float32),), np.ones((1, 1)))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        raised = np.exp(logits[0, 0] - logits[0, 0].max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


class Blue:
    """Stands in for `novelty.Novelty`: as novel as an image is blue."""

    threshold = 0.1

    def score(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(features[:, 2], np.float64) / 8


@pytest.fixture
def model(monkeypatch, tmp_path) -> Colours:
    colours = Colours()
    about = {"image_size": 16, "class_names": NAMES, "segment": ""}
    monkeypatch.setattr(classifying, "load", lambda *_: classifying.Loaded(
        colours, (tmp_path / "run",), about, ("digest",)))  # type: ignore[arg-type]  # a stand-in
    monkeypatch.setattr(novelty, "load", lambda *_: Blue())
    monkeypatch.setattr(strategy, "resolve", lambda **_: types.SimpleNamespace(
        devices="1 CPU", precision="float32", jit="off"))
    return colours


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> pathlib.Path:
    """100 images, of which 4 cannot be read, and the first and the last ones are among these."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(6)
    for index in range(100):
        name = root / f"{index // 30}" / f"{index:03d}, \"{index % 7}\".{'png' if index % 3 else 'tif'}"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16 + index % 2, 16, 3), rng.integers(0, 256, 3), np.uint8)).save(name)
        if index in (0, 41, 42, 99):
            name.write_bytes(name.read_bytes()[:40])
    return root


def run(tree: pathlib.Path, out: pathlib.Path, *more: str) -> None:
    settings = config.parse(["main.py", "--mode=predict", "--checkpoint=runs/x", f"--data={tree}",
                             f"--predictions={out}", "--batch_size=8", *more])
    assert settings is not None
    predict.run(settings)


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("model")
def test_columns_order_and_values_are_as_documented(tree, tmp_path, capsys):
    run(tree, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        assert next(csv.reader(file)) == COLUMNS
    rows = rows_of(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.*"))
    for row in rows:
        if row["file"][2:5] in ("000", "041", "042", "099"):
            assert row["flag"].startswith("unreadable: ")
            assert not any(row[name] for name in COLUMNS[1:-1])
            continue
        with Image.open(tree / row["file"]) as image:
            means = np.asarray(image)[0, 0] / 32
        expected = np.exp(means - means.max()) / np.exp(means - means.max()).sum()
        np.testing.assert_allclose([float(row[f"p{c}"]) for c in range(3)], expected, atol=3e-3)
        assert float(row["confidence"]) == max(float(row[f"p{c}"]) for c in range(3))
        assert row["name"] == NAMES[int(row["label"])]
        assert float(row["novelty"]) == pytest.approx(means[2] / 8, abs=1e-5)
        flag = "novel" if means[2] >= 4 else "low_confidence" if float(row["confidence"]) < 0.5 else ""
        assert row["flag"] == flag
    flags = {flag: sum(row["flag"].startswith(flag) for row in rows) for flag in predictions.FLAGS}
    assert min(flags.values()) > 0
    lines = capsys.readouterr().out.splitlines()
    assert "cropped to the centred square and resized to 16x16 (bicubic)" in lines[1]
    assert "100 images" in lines[-1]
    assert "48 brought to 16x16" in lines[-1]
    assert all(f"{count} {flag}" in lines[-1] for flag, count in flags.items())
    assert "(0/000, \"0\".tif (" in lines[-1]


@pytest.mark.usefixtures("model")
def test_csv_json_lines_and_arrays_agree(tree, tmp_path):
    for ending in ("csv", "jsonl", "npz"):
        run(tree, tmp_path / f"out.{ending}", "--topk=2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "out.npz"]
    rows = rows_of(tmp_path / "out.csv")
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    arrays = np.load(tmp_path / "out.npz", allow_pickle=False)
    assert list(rows[0]) == [*COLUMNS, "top1_name", "top1_p", "top2_name", "top2_p"]
    assert list(arrays["class_names"]) == list(NAMES)
    assert (arrays["probabilities"].dtype, arrays["confidence"].dtype) == (np.float32, np.float32)
    for index, (row, each) in enumerate(zip(rows, objects, strict=True)):
        assert row["file"] == each["file"] == arrays["files"][index]
        assert row["flag"] == each["flag"] == arrays["flag"][index]
        if not row["label"]:
            assert {each[name] for name in ("label", "name", "probabilities", "confidence", "novelty")} == {None}
            assert each["top"] == []
            assert arrays["labels"][index] == -1
            assert np.isnan(arrays["probabilities"][index]).all()
            assert arrays["top_labels"][index].tolist() == [-1, -1]
            continue
        own = arrays["probabilities"][index]
        assert int(row["label"]) == each["label"] == arrays["labels"][index] == own.argmax()
        np.testing.assert_array_equal(np.asarray(each["probabilities"], np.float32), own)
        np.testing.assert_allclose([float(row[f"p{c}"]) for c in range(3)], own, atol=6e-7)
        assert float(row["novelty"]) == pytest.approx(each["novelty"], abs=6e-7)
        assert arrays["novelty"][index] == each["novelty"]
        order = sorted(range(3), key=lambda c: -own[c])[:2]
        assert [row["top1_name"], row["top2_name"]] == [top["name"] for top in each["top"]] == [NAMES[c] for c in order]
        assert arrays["top_labels"][index].tolist() == order
        np.testing.assert_array_equal(np.asarray([top["p"] for top in each["top"]], np.float32), own[order])
        np.testing.assert_array_equal(arrays["top_probabilities"][index], own[order])


@pytest.mark.parametrize(("ending", "batches"), [("csv", 0), ("csv", 1), ("csv", 6), ("csv", 11), ("jsonl", 5),
                                                 ("npz", 5)])
def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(  # noqa: PLR0917 - pytest gives them by name
        model, tree, tmp_path, ending, batches, capsys):
    run(tree, tmp_path / f"whole.{ending}")
    out, seen = tmp_path / f"out.{ending}", list(model.seen)
    out.write_text("the file of last week")
    left = batches

    def stop() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped(signal.SIGTERM)

    model.before, model.seen[:] = stop, []
    with pytest.raises(Stopped, match=r"of 100 images are in .*out.*\.part; the same command goes on"):
        run(tree, out)
    assert out.read_text() == "the file of last week"
    model.before = lambda: None
    capsys.readouterr()
    run(tree, out)
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert model.seen == seen  # each batch once, and as it was
    if batches:
        assert "going on after " in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("batches", [0, 4, 11])
def test_what_a_kill_leaves_is_gone_on_with(  # noqa: PLR0917 - pytest gives them by name
        model, tree, tmp_path, monkeypatch, batches, seconds):
    """The files as they lie there at any moment are all that a killed process leaves."""
    monkeypatch.setattr(part_file, "SYNC_SECONDS", seconds)
    left, out, after = batches, tmp_path / "out.csv", tmp_path / "after"
    after.mkdir()

    def copy() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            for path in tmp_path.glob("out.csv.part*"):
                shutil.copy(path, after)

    model.before = copy
    run(tree, out)
    assert (after / "out.csv.part.json").is_file()
    with open(after / "out.csv.part", "ab") as part:
        part.write(b"1/034, half a li")  # written, but not before the record was
    calls = len(model.seen)
    run(tree, after / "out.csv")
    assert (after / "out.csv").read_bytes() == out.read_bytes()
    assert len(model.seen) - calls == (96 - batches * 8 if seconds == 0 else 96)


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "empty json"])
def test_a_damaged_part_is_begun_again(model, tree, tmp_path, damage, capsys):
    model.before = iter_of(4)
    with pytest.raises(Stopped):
        run(tree, tmp_path / "out.csv")
    part = tmp_path / "out.csv.part"
    data = bytearray(part.read_bytes())
    if damage == "flip":
        data[500] ^= 1
    part.write_bytes(data[:-7] if damage == "cut" else data)
    if "json" in damage:
        (tmp_path / "out.csv.part.json").write_text("" if damage == "no json" else "{}")
    model.before = lambda: None
    run(tree, tmp_path / "out.csv")
    assert "is damaged: starting with the first image" in capsys.readouterr().out
    run(tree, tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def iter_of(batches: int):
    """Raises `Stopped` at the batch of that number."""
    left = batches

    def stop() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped(signal.SIGINT)

    return stop


def test_another_commands_part_is_not_touched(model, tree, tmp_path):
    model.before = iter_of(4)
    with pytest.raises(Stopped):
        run(tree, tmp_path / "out.csv")
    part = (tmp_path / "out.csv.part").read_bytes()
    for more, name in (("--batch_size=16", "batch_size"), ("--topk=1", "topk"), (f"--data={tree / '0'}", "images")):
        with pytest.raises(InputError, match=rf"out\.csv\.part holds the beginning of other work \(other {name}\)"):
            run(tree, tmp_path / "out.csv", more)
    assert (tmp_path / "out.csv.part").read_bytes() == part
    (tmp_path / "mine.csv.part").write_text("notes of somebody")
    with pytest.raises(InputError, match=r"mine\.csv\.part"):
        run(tree, tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv.part").read_text() == "notes of somebody"


def test_two_processes_do_not_write_one_file(model, tree, tmp_path):
    with part_file.PartFile(tmp_path / "out.csv", {}), pytest.raises(InputError, match="no other process"):
        run(tree, tmp_path / "out.csv")
    assert not model.seen


def test_a_full_disk_is_one_line_and_what_was_written_goes_on(model, tree, tmp_path, monkeypatch):
    run(tree, tmp_path / "whole.csv")
    write, left = os.write, 5

    def full(file: int, data: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:len(data) // 2 + 1])  # a short write is no failure

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match=r"cannot write .*out\.csv\.part: No space left on device"):
        run(tree, tmp_path / "out.csv")
    monkeypatch.setattr(os, "write", write)
    run(tree, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.usefixtures("model")
def test_outputs_that_cannot_be_written_are_one_line_before_any_work(tree, tmp_path):
    for name in ("out.txt", "out", "out.csv.gz", "no/folder/out.csv"):
        with pytest.raises(InputError, match="--predictions expected"):
            run(tree, tmp_path / name)
    with pytest.raises(InputError, match="--topk expected at most the 3 classes"):
        run(tree, tmp_path / "out.csv", "--topk=4")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("model")
def test_unreadable_images_are_an_error_where_all_are_or_more_than_the_flag_says(tree, tmp_path):
    run(tree, tmp_path / "out.csv", "--max_bad_images=4")
    with pytest.raises(InputError, match=r"but for 3 \(--max_bad_images\), received 4 among the first 100"):
        run(tree, tmp_path / "other.csv", "--max_bad_images=3")
    bad = tmp_path / "bad"
    bad.mkdir()
    for index in range(20):
        (bad / f"{index:02d}.webp").touch()
    with pytest.raises(InputError, match=r"received 20 that cannot, first 00\.webp \(the file is empty\), 01"):
        run(bad, tmp_path / "none.csv")
    assert not list(tmp_path.glob("none*"))


def test_without_a_score_of_novelty_the_entropy_stands_in_and_flags_nothing(model, tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(novelty, "load", lambda *_: None)
    run(tree, tmp_path / "out.csv")
    rows = [row for row in rows_of(tmp_path / "out.csv") if row["label"]]
    for row in rows:
        p = np.array([float(row[f"p{c}"]) for c in range(3)])
        assert float(row["novelty"]) == pytest.approx(-(p * np.log(np.maximum(p, 1e-12))).sum() / np.log(3), abs=1e-4)
        assert row["flag"] == ("low_confidence" if p.max() < 0.5 else "")
    assert "entropy" in capsys.readouterr().out


def test_the_novelty_of_several_runs_is_the_mean_of_those_that_have_one(model, monkeypatch):
    features = np.array([[0, 0, 2.0], [0, 0, 8.0]])
    outputs = Outputs(np.zeros((3, 1, 2, 3), np.float32), (features, features + 2, features), np.ones((3, 1)))
    monkeypatch.setattr(model, "batch", lambda *_: outputs)
    monkeypatch.setattr(model, "probabilities", lambda _: np.full((2, 3), 1 / 3, np.float32))
    loaded = types.SimpleNamespace(classifier=model)
    batch = types.SimpleNamespace(items=(Item("a"), Item("b")), images=None, ids=None)
    _, scores, novel = predict._judged(batch, loaded, [Blue(), Blue(), None])  # type: ignore[arg-type, list-item]  # stand-ins
    np.testing.assert_allclose(scores, [(2 / 8 + 4 / 8) / 2, (8 / 8 + 10 / 8) / 2])
    assert novel.tolist() == [False, True]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_row_is_one_line_whatever_a_file_is_called(ending):
    names = ['a,"b".png', "größe 細胞.png", "=1+1.png", " spaced "]
    text, counts = Layout(ending, NAMES).rows([Item(name) for name in names] + [Item("bad", "it, \"broke\"")],
                                              np.full((4, 3), 1 / 3, np.float32), np.zeros(4), np.zeros(4, bool))
    lines = text.decode().split("\n")
    assert len(lines) == 6
    if ending == ".csv":
        read = [row[0] for row in csv.reader(lines[:-1])]
        assert next(csv.reader(lines[4:5]))[-1] == 'unreadable: it, "broke"'
    else:
        read = [json.loads(line)["file"] for line in lines[:-1]]
    assert read == [*names, "bad"]
    assert counts == {"novel": 0, "low_confidence": 4, "unreadable": 1}


def rss() -> int:
    """Bytes of memory that the process has, in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_images(model, tmp_path):
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (16, 512, 3), np.uint8)).save(tmp_path / "x.png")
    grown: list[int] = []
    for count in (300, 300, 1500):  # the first warms up
        root = tmp_path / f"{len(grown)}"
        root.mkdir()
        for index in range(count):
            os.link(tmp_path / "x.png", root / f"{index:05d}.png")
        sizes: list[int] = []
        model.before = lambda sizes=sizes: sizes.append(rss())
        run(root, tmp_path / f"{len(grown)}.csv", "--progress=none")
        grown.append(max(sizes) - sizes[0])
        assert len(rows_of(tmp_path / f"{len(grown) - 1}.csv")) == count
    assert grown[2] < grown[1] + 8 * 2**20  # 1,500 decoded images are 37 MB
