"""Folders and archives made to harm, or merely broken: one line, nothing lost unsaid, no big memory, no waiting.

`corpus/` holds small files that once went wrong or nearly did; its README says what each is.
"""

import io
import os
import pathlib
import pickle
import struct
import subprocess
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

import main
from bloodcell.commands import common
from bloodcell.data import folder, npz, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.data.decode import decode, header
from bloodcell.errors import InputError, shown

CORPUS = pathlib.Path(__file__).parent / "corpus"


def save(path: pathlib.Path, seed: int = 0, size: int = 8) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


def line(load) -> str:
    """The line of the error that `load` raises; memory stays small on the way."""
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    assert "try" in text
    assert len(text) < 1500
    return text


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: pathlib.Path) -> tuple[pathlib.Path, list[np.ndarray]]:
    """Two classes of two good images each, and three that cannot be used between them."""
    good = [save(tmp_path / name, seed) for seed, name in enumerate(["a/0.png", "a/4.png", "b/1.png", "b/9.png"])]
    (tmp_path / "a/1.png").write_bytes((tmp_path / "a/0.png").read_bytes()[:60])
    (tmp_path / "a/2.jpg").write_bytes(b"not an image")
    (tmp_path / "b/3.bmp").write_bytes(b"")
    return tmp_path, good


@pytest.mark.parametrize("image_size", [None, 8])
def test_bad_images_within_the_limit_are_left_out_and_named(mixed, image_size):
    path, good = mixed
    got = sources.load(str(path), max_bad_images=3, image_size=image_size)
    np.testing.assert_array_equal(got.images, np.stack(good))
    assert got.labels is not None
    assert got.labels.tolist() == [0, 0, 1, 1]
    assert got.files == ("a/0.png", "a/4.png", "b/1.png", "b/9.png")
    np.testing.assert_array_equal(got.ids, np.arange(4))
    assert [name for name, _ in got.left_out] == ["a/1.png", "a/2.jpg", "b/3.bmp"]
    assert dict(got.left_out)["b/3.bmp"] == "the file is empty"
    assert got.subset(np.array([1])).left_out == got.left_out


def test_bad_images_beyond_the_limit_are_counted_and_the_first_named(mixed):
    text = line(lambda: folder.load(mixed[0], max_bad_images=2))
    assert "but for 2 (--max_bad_images), received 3 of 7" in text
    assert "first a/1.png (the file ends early), a/2.jpg (it is no jpg, png or bmp), b/3.bmp" in text
    assert "--max_bad_images=3" in text
    assert "3 of 7" in line(lambda: folder.load(mixed[0]))


def test_a_class_that_loses_all_its_images_and_a_set_that_does_are_errors(mixed):
    path, _ = mixed
    (path / "c").mkdir()
    (path / "c/x.png").write_bytes(b"")
    assert "none of class 'c' that can be used" in line(lambda: folder.load(path, max_bad_images=9))
    assert folder.load(path, max_bad_images=9, class_names=("a", "b", "c")).num_classes == 3
    text = line(lambda: folder.load(path / "c", labelled=False, max_bad_images=9))
    assert "1 of 1" in text
    assert "max_bad_images=1" not in text


def test_a_run_says_what_it_left_out(mixed, capsys):
    got = folder.load(mixed[0], max_bad_images=3)
    parts = {"train": got.subset(np.array([0, 2, 3])), "val": got.subset(np.array([1]))}
    common.print_left_out(parts)
    said = capsys.readouterr().out
    assert said.startswith(f"left out: 3 of 7 images of {mixed[0]}, which cannot be used: a/1.png (the file ends")
    assert said.count("\n") == 1
    entries = common.left_out_entries(parts)
    assert [entry["file"] for entry in entries] == ["a/1.png", "a/2.jpg", "b/3.bmp"]


def test_pipes_devices_folders_and_broken_links_named_as_images_do_not_hang(tmp_path):
    expected = save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "again").symlink_to(tmp_path)  # a loop of folders
    save(tmp_path / "folder.png" / "in.png")
    got = sources.load(str(tmp_path), labelled=False, max_bad_images=4)
    assert got.files == ("folder.png/in.png", "good.png")
    np.testing.assert_array_equal(got.images[1], expected)
    assert {name: reason for name, reason in got.left_out if "regular" in reason}.keys() == {"endless.png", "pipe.png"}
    assert {name for name, _ in got.left_out} == {"endless.png", "gone.png", "loop.png", "pipe.png"}


def test_names_that_are_no_utf8_or_hold_line_breaks_are_shown_escaped(tmp_path):
    (tmp_path / "cells").mkdir()
    for name in (b"caf\xe9.png", b"two\nlines.png", b"\x1b[31mred.png", "größe 細胞.png".encode()):
        save(tmp_path / "good.png")
        os.rename(tmp_path / "good.png", os.fsencode(tmp_path / "cells") + b"/" + name)
    got = sources.load(str(tmp_path))
    assert set(got.files) == {r"cells/caf\xe9.png", r"cells/two\nlines.png", r"cells/\x1b[31mred.png",
                              "cells/größe 細胞.png"}
    "\n".join(got.files).encode()
    assert shown("plain name\u3000細胞") == "plain name\u3000細胞"


@pytest.mark.parametrize("source", [
    "x" * 300, "x/" * 3000, "x" * 300 + ".npz", "~nobody_is_called_this/x", "~nobody_is_called_this/x.npz", "a\0b",
    "a\0b.npz", "a\nb", "\udce9"])
def test_sources_whose_names_no_system_takes_are_one_line(source):
    line(lambda: sources.load(source))


def test_a_tree_deeper_than_pythons_stack_is_one_line(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    assert "folder" in line(lambda: folder.load(tmp_path, labelled=False))
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    save(tmp_path / "a/x.png")
    save(tmp_path / "a/locked/y.png")
    scan = os.scandir

    def refuse(path):  # permissions do not bind root, as whom tests may run
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    text = line(lambda: folder.load(tmp_path))
    assert "locked" in text
    assert "Permission denied" in text


@pytest.mark.parametrize("image_size", [16, None])
def test_large_images_take_the_memory_of_a_few_at_a_time(tmp_path, monkeypatch, image_size):
    for index in range(100):
        (tmp_path / f"{index:03}.png").touch()

    def large(path):
        return np.zeros((16, 16, 3) if path.name == "000.png" else (2000, 2000, 3), np.uint8)  # 12 MB

    monkeypatch.setattr(folder, "decode_file", large)
    tracemalloc.start()
    if image_size:
        folder.load(tmp_path, labelled=False, image_size=16)
    else:
        with pytest.raises(InputError, match=r"000.png \(16x16\) and 001.png \(2000x2000\)"):
            folder.load(tmp_path, labelled=False)
    assert tracemalloc.get_traced_memory()[1] < 150e6  # of eight threads; all at once are 1,200
    tracemalloc.stop()


# ---- Archives --------------------------------------------------------------------------------------------------------


def array(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


LABELS = array(np.arange(2))
IMAGES = array(np.zeros((2, 8, 8, 3), np.uint8))


def write(path: pathlib.Path, entries: list[tuple[str, bytes]],
          compression: int = zipfile.ZIP_DEFLATED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def npy_header(text: str, version: int = 1) -> bytes:
    packed = struct.pack("<H" if version == 1 else "<I", len(text.encode()))
    return b"\x93NUMPY" + bytes([version, 0]) + packed + text.encode()


def test_a_bomb_of_a_third_of_a_gigabyte_in_300_kilobytes_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    shape = (11_000, 100, 100, 3)
    head = npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", array(np.arange(11_000) % 2))
        with archive.open("images.npy", "w") as file:
            file.write(head)
            for _ in range(330):
                file.write(bytes(1_000_000))
    assert path.stat().st_size < 500_000
    assert "which no pictures are" in line(lambda: npz.load(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_limit_are_refused(tmp_path, compression):
    path = write(tmp_path / "x.npz", [("images.npy", IMAGES), ("labels.npy", LABELS)], compression)
    assert "another compression" in line(lambda: npz.load(path))


def test_an_archive_of_very_many_entries_is_refused_unread(tmp_path):
    path = write(tmp_path / "x.npz", [(f"{index}.npy", b"") for index in range(30_000)], zipfile.ZIP_STORED)
    tracemalloc.start()
    with pytest.raises(InputError, match="its directory says"):
        npz.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_64_bit_directory_that_lies_is_one_line(tmp_path):
    path = write(tmp_path / "x.npz", [("images.npy", IMAGES), ("labels.npy", LABELS)])
    data = path.read_bytes()
    end = data[-22:]
    for size in (2**20 + 1, 2**40, 2**64 - 1, 100, 0):
        record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 2, 2, size, len(data))
        locator = struct.pack("<IIQI", 0x07064B50, 0, len(data) - 22, 1)
        path.write_bytes(data[:-22] + record + locator + end)
        line(lambda: npz.load(path))


@pytest.mark.parametrize("name", [
    "../../evil.npy", "/tmp/evil.npy", "C:\\evil.npy", "a/b.npy", "\x1b[31m.npy", "n" * 9000])
def test_names_that_lead_elsewhere_are_never_followed(tmp_path, name):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path = write(inside / "x.npz", [("images.npy", IMAGES), ("labels.npy", LABELS), (name, b"harm")])
    assert len(npz.load(path)) == 2
    only = write(inside / "y.npz", [(name, IMAGES), ("labels.npy", LABELS)])
    assert "\x1b" not in line(lambda: npz.load(only))
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == [
        "a/b/x.npz", "a/b/y.npz"]


class _Harm:
    """Unpickled, it would make a file."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self._path,))


def test_pickles_are_never_run(tmp_path):
    mark = tmp_path / "harmed"
    harm = np.empty(2, object)
    harm[:] = _Harm(mark)
    np.savez(tmp_path / "x.npz", images=harm, labels=harm)
    assert "never loaded" in line(lambda: npz.load(tmp_path / "x.npz"))
    write(tmp_path / "y.npz", [("images.npy", pickle.dumps(_Harm(mark))), ("labels.npy", LABELS)])
    line(lambda: npz.load(tmp_path / "y.npz"))
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Harm(mark)))  # the harm is real
    assert mark.exists()


@pytest.mark.parametrize("text", [
    "(" * 9000, "-" * 9000 + "1", "{'descr': " + "[" * 4000 + "]" * 4000 + "}", "__import__('os').system('true')",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 4000 + ")}", "9" * 9000 + "**" * 40,
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8, 3), 'more': 1}", "{}", "", " " * 9000, "\0" * 100,
    "{'descr': '|q9', 'fortran_order': False, 'shape': (2, 8, 8, 3)}",
    "{'descr': '\n(', 'fortran_order': False, 'shape': (2, 8, 8, 3)}",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|u1', 'descr': '|u1', 'shape': (2, 8, 8, 3)}",
])
@pytest.mark.parametrize("version", [1, 2, 3, 255])
def test_malicious_headers_are_one_line(tmp_path, text, version):
    path = write(tmp_path / "x.npz", [("images.npy", npy_header(text, version) + bytes(384)), ("labels.npy", LABELS)])
    line(lambda: npz.load(path))


def test_an_array_under_two_entries_of_one_name_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write(tmp_path / "x.npz", [("images.npy", IMAGES), ("images.npy", IMAGES), ("labels.npy", LABELS)])
    assert "received images 2 times" in line(lambda: npz.load(path))


def test_encrypted_appended_and_prepended_archives_are_one_line(tmp_path):
    path = write(tmp_path / "x.npz", [("images.npy", IMAGES), ("labels.npy", LABELS)])
    data = path.read_bytes()
    path.write_bytes(data + b"garbage")
    assert "does not end as a zip does" in line(lambda: npz.load(path))
    locked = bytearray(data)
    for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        locked[at] |= 1
    path.write_bytes(locked)
    assert "encrypted" in line(lambda: npz.load(path))
    path.write_bytes(b"garbage" + data)  # zip allows it, as in self-extracting programs; NumPy does not
    assert "cannot be read" in line(lambda: npz.load(path))


def test_a_pipe_named_as_an_archive_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    assert "a pipe or a device" in line(lambda: npz.load(tmp_path / "x.npz"))
    (tmp_path / "y.npz").symlink_to("/dev/zero")
    assert "a pipe or a device" in line(lambda: npz.load(tmp_path / "y.npz"))


@pytest.mark.parametrize("labels", [
    np.array([np.nan, 1]), np.array([np.inf, 0]), np.array([-1, 0]), np.array([2**63 - 1, 0]), np.array([0, 5]),
    np.array([b"a" * 9999, b"b"]), np.array(["2020", "2021"], "M8[D]"), np.array([1j, 0]), np.zeros((2, 2), np.int64),
])
def test_labels_that_are_no_classes_are_one_line(tmp_path, labels):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=labels)
    line(lambda: npz.load(tmp_path / "x.npz"))


# ---- The command line, and the corpus --------------------------------------------------------------------------------


def test_the_command_line_ends_in_one_line_and_status_1(mixed, tmp_path, capsys):
    write(tmp_path / "x.npz", [("images.npy", npy_header("(" * 9000)), ("labels.npy", LABELS)])
    for source in (mixed[0], tmp_path / "x.npz"):
        assert main.main(["main.py", f"--data={source}", "--weights=none", f"--workdir={tmp_path / 'run'}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*_*")), ids=lambda path: path.name)
def test_the_corpus_gives_images_or_a_reason(path):
    expected = path.name.split("_")[0]
    if path.suffix == ".npz":
        loaded: ImageSet | str | None = None
        try:
            loaded = npz.load(path)
        except InputError as error:
            loaded = str(error)
        assert isinstance(loaded, ImageSet) == (expected == "good")
        return
    result = decode(path.read_bytes())
    assert isinstance(result, np.ndarray) == (expected == "good")
    if isinstance(result, np.ndarray):
        assert header(path.read_bytes())[1:] == result.shape[:2]


def test_the_corpus_is_small_and_each_file_is_explained():
    files = [path for path in CORPUS.iterdir() if path.suffix != ".md"]
    explained = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert len(files) >= 24
    for path in files:
        assert path.stat().st_size < 2048
        assert f"`{path.name}`" in explained
