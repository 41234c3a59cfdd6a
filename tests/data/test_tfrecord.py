"""TFRecord globs: what is read equals what was written, and each kind of bad file is one line."""

import os
import pathlib
import struct
import zlib

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


DAMAGE = {  # of the second of four records; what is left, and what is said of what is not
    "content": ([0, 2, 3], ["#1 (it is damaged: its checksum is wrong)"]),
    "content's checksum": ([0, 2, 3], ["#1 (it is damaged: its checksum is wrong)"]),
    "length": ([0], ["#1 (the shard is damaged: this record's length is wrong, and the", "about 3 images", "#2", "#3"]),
    "length's checksum": ([0], ["#1 (the shard is damaged: this record's length is wrong", "#2", "#3"]),
    "cut in the content": ([0], ["#1 (the shard is damaged: it ends inside this record)"]),
    "cut in the length": ([0], ["#1 (the shard is damaged: it ends inside this record)"]),
    "cut in the checksum": ([0], ["#1 (the shard is damaged: it ends inside this record)"]),
    "a length of 2**60": ([0], ["#1 (the shard is damaged: it ends inside this record)"]),
    "no Example": ([0, 2, 3], ["#1 (it is no tf.train.Example)"]),
    "an empty record": ([0, 2, 3], ["#1 (it has no image/encoded)"]),
    "label of floats": ([0, 2, 3], ["#1 (its image/class/label holds floats, not whole numbers)"]),
    "two labels": ([0, 2, 3], ["#1 (its image/class/label holds 2 values, not one)"]),
    "image of numbers": ([0, 2, 3], ["#1 (its image/encoded holds whole numbers, not bytes)"]),
    "filename of numbers": ([0, 2, 3], ["#1 (its image/filename holds whole numbers, not bytes)"]),
    "no label": ([0, 2, 3], ["#1 (it has no image/class/label)"]),
    "no image": ([0, 2, 3], ["#1 (it is no jpg, png or bmp)"]),
    "half an image": ([0, 2, 3], ["#1 (the file ends early)"]),
    "100,000 pixels a side": ([0, 2, 3], ["#1 (its header says 100000x100000 pixels, of 1 to 4096 a side)"]),
    "a lying header": ([0, 2, 3], ["#1 (it holds more than the 200 bytes of pixels that its header says)"]),
}


def masked_crc32c(data: bytes) -> int:
    """From the polynomial, bit by bit; masked by a rotation and a constant, as the format says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def changed(record: bytes, kind: str) -> bytes:
    """A record whose content is not what it should be, under checksums that are right."""
    if kind in ("no Example", "an empty record"):
        return b"\xff" * 40 if kind == "no Example" else b""
    whole = tf.train.Example.FromString(record)
    feature = whole.features.feature
    image = feature["image/encoded"].bytes_list.value[0]
    if kind == "label of floats":
        feature["image/class/label"].float_list.value.append(1.0)
    elif kind == "two labels":
        feature["image/class/label"].int64_list.value.append(1)
    elif kind in ("image of numbers", "filename of numbers"):
        feature["image/encoded" if kind.startswith("image") else "image/filename"].int64_list.value.append(7)
    elif kind == "no label":
        del feature["image/class/label"]
    else:
        def sized(pixels: int) -> bytes:  # a PNG's header of another size, under the right checksum
            head = b"IHDR" + struct.pack(">II", pixels, pixels) + image[24:29]
            return image[:12] + head + struct.pack(">I", zlib.crc32(head)) + image[33:]
        feature["image/encoded"].bytes_list.value[0] = {
            "no image": b"no image", "half an image": image[:len(image) // 2], "a lying header": sized(8),
            "100,000 pixels a side": sized(100_000)}[kind]
    return whole.SerializeToString()


def damaged(path: pathlib.Path, kind: str) -> np.ndarray:
    """Writes four records of 10x10 pixels, the second one damaged; returns their images."""
    pictures = images(4, 10)
    records = [example(image, 0) for image in pictures]
    known = {"content": 40, "content's checksum": 12 + len(records[1]), "length": 0, "length's checksum": 9}
    cuts = {"cut in the content": 40, "cut in the length": 5, "cut in the checksum": 14 + len(records[1])}
    start = 16 + len(records[0])
    if kind not in {*known, *cuts, "a length of 2**60"}:
        records[1] = changed(records[1], kind)
    write(path, records)
    data = bytearray(path.read_bytes())
    if kind in known:
        data[start + known[kind]] ^= 255
    elif kind in cuts:
        del data[start + cuts[kind]:]
    elif kind == "a length of 2**60":
        length = struct.pack("<Q", 2**60)
        data[start:start + 12] = length + struct.pack("<I", masked_crc32c(length))
    path.write_bytes(data)
    return pictures


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_what_cannot_be_used_is_left_out_counted_and_named_and_nothing_else(tmp_path, kind, cache):
    path = tmp_path / "x.tfrecord"
    pictures = damaged(path, kind)
    left, said = DAMAGE[kind]
    text = error(path, cache=cache)
    missing = 4 - len(left) if "cut" not in kind and "2**60" not in kind else 1
    assert f"received {missing} of {len(left) + missing} that cannot be used, first x.tfrecord{said[0]}" in text
    assert f"--max_bad_images={missing}" in text
    if missing > 1:
        assert "but for 2 (--max_bad_images)" in error(path, cache=cache, max_bad_images=2)
    got = tfrecord.load(str(path), cache=cache, max_bad_images=missing)
    np.testing.assert_array_equal(got.images[:], pictures[left])
    assert got.ids.tolist() == left
    assert got.files == tuple(f"x.tfrecord#{index}" for index in left)
    assert len(got.left_out) == missing
    listed = ", ".join(f"{name} ({reason})" for name, reason in got.left_out)
    for part in said:
        assert part in listed


def test_a_damaged_record_among_many_costs_no_other(tmp_path):
    """Records are read and decoded in chunks: damage in one leaves the rest of its chunk, in order."""
    pictures = images(200)
    records = [example(image, 0, filename=f"{index}.png") for index, image in enumerate(pictures)]
    for index in (70, 71, 150):
        records[index] = changed(records[index], "half an image")
    write(tmp_path / "x.tfrecord", records)
    data = bytearray((tmp_path / "x.tfrecord").read_bytes())
    offsets = np.cumsum([0, *(16 + len(record) for record in records)])
    for index in (3, 130, 199):
        data[offsets[index] + 30] ^= 1
    (tmp_path / "x.tfrecord").write_bytes(data)
    good = [index for index in range(200) if index not in (3, 70, 71, 130, 150, 199)]
    got = tfrecord.load(str(tmp_path / "x.tfrecord"), max_bad_images=6)
    np.testing.assert_array_equal(got.images, pictures[good])
    assert got.ids.tolist() == good
    assert sorted(name for name, _ in got.left_out) == [
        "150.png", "70.png", "71.png", "x.tfrecord#130", "x.tfrecord#199", "x.tfrecord#3"]
    assert "first" in error(tmp_path / "x.tfrecord", max_bad_images=5)


def test_what_is_no_record_at_all_and_no_file_is_one_line(tmp_path):
    (tmp_path / "x.tfrecord").write_bytes(b"some text that is no record at all")
    assert "received 1 of 1 that cannot be used" in error(tmp_path / "x.tfrecord", max_bad_images=9)
    (tmp_path / "folder.tfrecord").mkdir()
    assert "a folder" in error(tmp_path / "folder.tfrecord")
    os.mkfifo(tmp_path / "pipe.tfrecord")
    assert "a pipe" in error(tmp_path / "pipe.tfrecord")


def test_names_in_records_cannot_break_a_line(tmp_path):
    write(tmp_path / "x.tfrecord", [example(images(1)[0], 0, "a", "up\nand\x1b[31mred")])
    got = tfrecord.load(str(tmp_path / "x.tfrecord"))
    assert got.files == ("up\\nand\\x1b[31mred",)


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
