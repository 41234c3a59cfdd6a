"""TFRecord globs: what is read equals what was written, and each kind of bad file is one line."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data import tfrecord
from bloodcell.errors import InputError

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "pbc96"


def example(image: np.ndarray, label: int | None, text: str = "", filename: str = "") -> bytes:
    def raw(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    feature = {"image/encoded": raw(tf.io.encode_png(image).numpy())}
    if label is not None:
        feature["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    if text:
        feature["image/class/text"] = raw(text.encode())
    if filename:
        feature["image/filename"] = raw(filename.encode())
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write(path: pathlib.Path, records: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def images(n: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def error(pattern: pathlib.Path, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        tfrecord.load(str(pattern), **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_are_read_in_order_with_names_and_texts(tmp_path):
    expected = images(5)
    write(tmp_path / "train-1.tfrecord", [example(expected[i], i % 2, "ab"[i % 2], f"{i}.jpg") for i in (2, 3, 4)])
    write(tmp_path / "train-0.tfrecord", [example(expected[i], i % 2, "ab"[i % 2]) for i in (0, 1)])
    got = tfrecord.load(str(tmp_path / "train-*.tfrecord"))
    np.testing.assert_array_equal(got.images, expected)
    assert got.labels is not None
    assert got.labels.tolist() == [0, 1, 0, 1, 0]
    assert got.class_names == ("a", "b")
    assert got.files == ("train-0.tfrecord#0", "train-0.tfrecord#1", "2.jpg", "3.jpg", "4.jpg")


def test_labels_and_texts_are_optional_where_they_are_not_needed(tmp_path):
    write(tmp_path / "x.tfrecord", [example(image, None) for image in images(2)])
    assert tfrecord.load(str(tmp_path / "x.tfrecord"), labelled=False).labels is None
    write(tmp_path / "y.tfrecord", [example(image, label) for label, image in enumerate(images(2))])
    assert tfrecord.load(str(tmp_path / "y.tfrecord")).class_names == ("class_0", "class_1")


def test_no_match_is_named(tmp_path):
    assert "no match" in error(tmp_path / "train-*.tfrecord")


def test_a_missing_feature_names_feature_and_record(tmp_path):
    write(tmp_path / "x.tfrecord", [example(images(1)[0], 0), example(images(1)[0], None)])
    text = error(tmp_path / "x.tfrecord")
    assert "image/class/label" in text
    assert "record 1 of 2" in text


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not a record"])
def test_damaged_files_are_found_by_the_checksum(tmp_path, damage):
    path = tmp_path / "x.tfrecord"
    write(path, [example(image, 0) for image in images(3)])
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[:-20]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    else:
        data = bytearray(b"some text that is no record at all")
    path.write_bytes(data)
    assert "damaged" in error(path)


def test_an_image_that_cannot_be_decoded_names_its_record(tmp_path):
    record = tf.train.Example.FromString(example(images(1)[0], 0))
    record.features.feature["image/encoded"].bytes_list.value[0] = b"no image"
    write(tmp_path / "x.tfrecord", [example(images(1)[0], 0), record.SerializeToString()])
    assert "record 1 of 2" in error(tmp_path / "x.tfrecord")


def test_unequal_images_need_an_image_size(tmp_path):
    write(tmp_path / "x.tfrecord", [example(images(1)[0], 0), example(images(1, 10)[0], 0, filename="b.jpg")])
    assert "x.tfrecord#0 (8x8) and b.jpg (10x10)" in error(tmp_path / "x.tfrecord")
    assert tfrecord.load(str(tmp_path / "x.tfrecord"), image_size=8).images.shape == (2, 8, 8, 3)


def test_an_empty_class_and_conflicting_texts_are_refused(tmp_path):
    write(tmp_path / "x.tfrecord", [example(images(1)[0], label) for label in (0, 2)])
    assert "none of class 1" in error(tmp_path / "x.tfrecord")
    write(tmp_path / "x.tfrecord", [example(images(1)[0], 0, text) for text in ("a", "b")])
    assert "'a' and 'b' for label 0" in error(tmp_path / "x.tfrecord")
    write(tmp_path / "x.tfrecord", [])
    assert "received none" in error(tmp_path / "x.tfrecord")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real cells (../shared/data) are not here")
def test_the_real_validation_cells_have_the_published_counts():
    got = tfrecord.load(str(SHARED / "val-*.tfrecord"))
    assert got.images.shape == (1712, 96, 96, 3)
    assert got.labels is not None
    assert np.bincount(got.labels).tolist() == [122, 312, 155, 290, 122, 143, 333, 235]
    assert got.class_names[0] == "basophil"
    assert got.class_names[7] == "platelet"
