"""`.npz` files: what is read equals what was written, and each kind of bad file is one line."""

import io
import pathlib
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest

from bloodcell.data import npz
from bloodcell.data.dataset import CELL_NAMES
from bloodcell.errors import InputError


def pictures(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def error(path: pathlib.Path, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        npz.load(path, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert "try" in text
    assert str(path) in text
    return text


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cells.npz"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", ">i4", "int64", "uint64"])
@pytest.mark.parametrize("column", [False, True])
def test_course_file_is_read_with_labels_of_any_integer_dtype(path, dtype, column):
    images, labels = pictures(16), np.arange(16) % 8
    np.savez(path, images=images, labels=labels.astype(dtype)[:, None] if column else labels.astype(dtype))
    got = npz.load(path)
    np.testing.assert_array_equal(got.images, images)
    np.testing.assert_array_equal(got.labels, labels)
    assert got.labels is not None
    assert got.labels.dtype == np.int64
    assert got.class_names == CELL_NAMES
    np.testing.assert_array_equal(got.ids, np.arange(16))
    assert got.files[3] == "cells.npz#3"
    assert npz.parts(path) == ()


def test_compressed_and_fortran_order_files_are_read_alike(path):
    images, labels = pictures(6), np.arange(6) % 3
    np.savez_compressed(path, images=np.asfortranarray(images), labels=labels)
    got = npz.load(path)
    np.testing.assert_array_equal(got.images, images)
    assert np.asarray(got.images).flags.c_contiguous
    assert got.class_names == ("class_0", "class_1", "class_2")


def test_medmnist_parts_share_the_classes_of_the_training_part(path):
    arrays: dict[str, Any] = {}
    for seed, (part, n) in enumerate({"train": 16, "val": 3, "test": 5}.items()):
        arrays[f"{part}_images"] = pictures(n, seed=seed)
        arrays[f"{part}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    np.savez(path, **arrays)
    assert npz.parts(path) == ("train", "val", "test")
    for part in npz.parts(path):
        got = npz.load(path, part=part)
        np.testing.assert_array_equal(got.images, arrays[f"{part}_images"])
        np.testing.assert_array_equal(got.labels, arrays[f"{part}_labels"][:, 0])
        assert got.class_names == CELL_NAMES


def test_a_label_beyond_the_training_classes_is_named(path):
    np.savez(path, train_images=pictures(4), train_labels=np.array([0, 1, 2, 0]), val_images=pictures(2),
             val_labels=np.array([0, 3]))
    assert "expected labels 0..2 (3 classes), received 3 at index 1" in error(path, part="val")


def test_a_label_at_the_number_of_known_classes_is_refused(path):
    np.savez(path, images=pictures(2), labels=np.array([0, 8]))
    assert "expected labels 0..7" in error(path, class_names=CELL_NAMES)


def test_known_classes_may_be_without_images(path):
    np.savez(path, images=pictures(2), labels=np.array([0, 7]))
    assert npz.load(path, class_names=CELL_NAMES).num_classes == 8


def test_unlabelled_reading_needs_only_the_images(path):
    np.savez(path, images=pictures(3))
    got = npz.load(path, labelled=False)
    assert got.labels is None
    assert len(got) == 3


def test_missing_file_is_named(path):
    assert "does not exist" in error(path)


def test_empty_file_is_named(path):
    path.write_bytes(b"")
    assert "empty" in error(path)


def test_a_folder_of_that_name_is_named(path):
    path.mkdir()
    assert "received a folder" in error(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_file_is_one_line(path, keep):
    np.savez(path, images=pictures(50), labels=np.arange(50) % 8)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    assert "cannot be read" in error(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bytes_are_found_by_the_checksum(path, save):
    save(path, images=pictures(50), labels=np.arange(50) % 8)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:middle + 4] = bytes(255 - byte for byte in data[middle:middle + 4])
    path.write_bytes(data)
    assert "cannot be read" in error(path)


def test_pickled_arrays_are_never_loaded(path):
    np.savez(path, images=np.array([pictures(1)[0], "text"], object), labels=np.arange(2))
    assert "pickled" in error(path)
    np.savez(path, images=pictures(2), labels=np.array([0, None], object))
    assert "pickled" in error(path)


def test_a_pickle_and_a_bare_npy_under_the_name_are_refused(path):
    path.write_bytes(b"\x80\x04\x95" + b"x" * 100)
    assert "cannot be read" in error(path)
    buffer = io.BytesIO()
    np.save(buffer, pictures(2))
    path.write_bytes(buffer.getvalue())
    assert ".npy" in error(path)


def test_wrong_keys_are_listed(path):
    np.savez(path, x=pictures(2), y=np.arange(2))
    text = error(path)
    assert "received x, y" in text
    assert "images and labels" in text


def test_a_part_that_is_not_there_is_named(path):
    np.savez(path, train_images=pictures(2), train_labels=np.arange(2))
    assert "no val_images" in error(path, part="val")
    assert npz.parts(path) == ("train",)


@pytest.mark.parametrize(("images", "said"), [
    (np.zeros((4, 8, 8, 3), np.float32), "float32"),
    (np.zeros((4, 8, 8, 3), np.int64), "int64"),
    (np.zeros((4, 8, 8, 4), np.uint8), "images[..., :3]"),
    (np.zeros((4, 8, 8), np.uint8), "grey"),
    (np.zeros((8, 8), np.uint8), "grey"),
    (np.zeros((4, 8, 8, 1), np.uint8), "grey"),
    (np.zeros((4, 3, 8, 8), np.uint8), "transpose"),
    (np.zeros((0, 8, 8, 3), np.uint8), "received none"),
    (np.zeros((4, 0, 8, 3), np.uint8), "pixels a side"),
    (np.zeros((4, 1, 5000, 3), np.uint8), "pixels a side"),
])
def test_images_that_are_not_colour_bytes_are_refused(path, images, said):
    np.savez(path, images=images, labels=np.arange(len(images)) % 2)
    assert said in error(path)


@pytest.mark.parametrize(("labels", "said"), [
    (np.arange(3), "one label for each of 4 images, received 3"),
    (np.array([0.0, 1.0, 0.0, 1.0]), "labels.astype('int64')"),
    (np.array([True, False, True, False]), "whole numbers"),
    (np.array(["a", "b", "a", "b"]), "whole numbers"),
    (np.eye(4, dtype=np.uint8), "argmax"),
    (np.array(3), "[N] or [N,1]"),
    (np.array([0, 1, -1, 0]), "received -1 at index 2"),
    (np.array([0, 1, 3, 1]), "none of class 2"),
    (np.array([1, 2, 1, 2]), "none of class 0"),
    (np.array([0, 1, 7, 2]), "class 3 (immature_granulocyte)"),
    (np.array([0, 1, 2**62, 2]), "none of class 3"),
    (np.array([0, 1, 2**64 - 1, 2], np.uint64), "none of class 3"),
])
def test_labels_that_number_no_classes_are_refused(path, labels, said):
    np.savez(path, images=pictures(4), labels=labels)
    assert said in error(path)


def _with_header(path: pathlib.Path, header: bytes, body: bytes, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", header + body)
        buffer = io.BytesIO()
        np.save(buffer, np.arange(2))
        archive.writestr("labels.npy", buffer.getvalue())


def _npy(shape: str, version: int = 1) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", ["(1000000, 1000, 1000, 3)", "(3, 8, 8, 3)", "(-2, 8, 8, 3)", f"({2**70}, 8, 8, 3)"])
def test_a_header_that_lies_about_its_size_takes_no_memory(path, shape, compression):
    _with_header(path, _npy(shape), b"\0" * (2 * 8 * 8 * 3), compression)
    tracemalloc.start()
    text = error(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "claims" in text or "pixels" in text
    assert peak < 10e6


def test_a_header_that_claims_gigabytes_of_header_takes_no_memory(path):
    _with_header(path, b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1), b" " * 10_000_000, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    error(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_set_larger_than_the_free_memory_is_refused_before_reading(path, monkeypatch):
    monkeypatch.setattr("bloodcell.data.dataset._free_memory", lambda: 1000)
    np.savez(path, images=pictures(10), labels=np.arange(10) % 2)
    assert "free memory" in error(path)


def test_loading_takes_one_copy_of_the_images(path):
    images = np.zeros((300, 96, 96, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(300) % 8)
    tracemalloc.start()
    npz.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * images.nbytes
