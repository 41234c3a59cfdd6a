"""Images come one after the other in the source's order, as the sources give them all at once, and memory stays."""

import io
import itertools
import os
import pathlib
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bloodcell.data import folder, npz, stream, tfrecord
from bloodcell.errors import InputError

SIZE = 24


def pictures(count: int, height: int = 30, width: int = 40) -> np.ndarray:
    small = np.random.default_rng(5).integers(0, 256, (count, 3, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC))
                     for each in small])


def images_of(source: pathlib.Path | str, batch_size: int = 3, start: int = 0
              ) -> tuple[list[stream.Item], np.ndarray, list[int]]:
    """All items, images and ids; every batch has the one shape."""
    opened = stream.open_source(str(source), image_size=SIZE)
    items: list[stream.Item] = []
    images, ids = [], []
    for batch in opened.batches(batch_size, SIZE, start):
        count = sum(not item.reason for item in batch.items)
        assert batch.images.shape == (min(batch_size, len(opened)), SIZE, SIZE, 3)
        assert batch.ids.shape == (len(batch.images),)
        items += batch.items
        images.append(batch.images[:count])
        ids += batch.ids[:count].tolist()
        if count:
            np.testing.assert_array_equal(batch.images[count:], np.broadcast_to(
                batch.images[count - 1], batch.images[count:].shape))
    assert start + len(items) == len(opened)
    return items, np.concatenate(images), ids


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> pathlib.Path:
    """A tree of all kinds, with two files that cannot be read and some that are none of its images."""
    root = tmp_path_factory.mktemp("tree")
    (root / "b" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    names = ("a.png", "b/deep/c.jpg", "b/d.BMP", "b/e.tif", "b/f.webp", "g.jpeg", ".hidden/x.png", "z.png")
    for name, pixels in zip(names, pictures(len(names)), strict=True):
        options: dict[str, Any] = {"compression": "tiff_lzw"} if name.endswith("tif") else {"lossless": True}
        Image.fromarray(pixels).save(root / name, **options if name[-3:] in ("tif", "ebp") else {})
    whole = (root / "z.png").read_bytes()
    (root / "b" / "broken.png").write_bytes(whole[:-30])
    (root / "b" / "empty.tiff").touch()
    (root / "notes.txt").write_text("no image")
    (root / "film.gif").write_bytes(b"GIF89a")
    return root


def test_a_tree_of_all_kinds_comes_in_sorted_order_with_what_cannot_be_read_in_its_place(tree):
    items, images, ids = images_of(tree)
    assert [item.file for item in items] == ["a.png", "b/broken.png", "b/d.BMP", "b/deep/c.jpg", "b/e.tif",
                                             "b/empty.tiff", "b/f.webp", "g.jpeg", "z.png"]
    assert [item.reason for item in items if item.reason] == ["the file ends early", "the file is empty"]
    assert all(item.changed for item in items if not item.reason)
    assert ids == [0, 2, 3, 4, 6, 7, 8]
    assert len(images) == 7
    assert stream.open_source(str(tree), image_size=SIZE).passed_over == (2, "film.gif")


def test_images_are_those_that_training_reads_and_tiff_and_webp_as_if_they_were_png(tree, tmp_path):
    for name in ("b/e.tif", "b/f.webp"):
        Image.open(tree / name).save(tmp_path / f"{name.replace('/', '_')}.png")
    for name in ("a.png", "b/d.BMP", "b/deep/c.jpg", "g.jpeg", "z.png"):
        os.link(tree / name, tmp_path / name.replace("/", "_"))
    expected = folder.load(tmp_path, labelled=False, image_size=SIZE)
    items, images, _ = images_of(tree)
    names = [item.file.replace("/", "_") for item in items if not item.reason]
    by_name = {name.removesuffix(".png") if name.count(".") > 1 else name: image
               for name, image in zip(expected.files, expected.images, strict=True)}
    np.testing.assert_array_equal(images, [by_name[name] for name in names])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_what_follows_a_batch_is_the_same_when_begun_there(tree, batch_size):
    opened = stream.open_source(str(tree), image_size=SIZE)
    whole = list(opened.batches(batch_size, SIZE))
    ends = list(itertools.accumulate(len(batch.items) for batch in whole))
    for number, end in enumerate(ends):
        rest = list(opened.batches(batch_size, SIZE, end))
        assert [batch.items for batch in rest] == [batch.items for batch in whole[number + 1:]]
        for ours, theirs in zip(rest, whole[number + 1:], strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.ids, theirs.ids)


def test_the_digest_knows_names_and_order(tree, tmp_path):
    digest = stream.open_source(str(tree), image_size=SIZE).digest
    assert stream.open_source(f"{tree}/", image_size=SIZE).digest == digest
    os.link(tree / "a.png", tmp_path / "a.png")
    assert stream.open_source(str(tmp_path), image_size=SIZE).digest != digest


def test_one_file_is_a_source_and_none_is_one_line(tree, tmp_path):
    items, images, ids = images_of(tree / "b" / "e.tif")
    assert ([item.file for item in items], ids, len(images)) == (["e.tif"], [0], 1)
    for name in ("missing.png", "missing.webp", "missing", "missing.npz"):
        with pytest.raises(InputError, match="missing"):
            images_of(tmp_path / name)
    with pytest.raises(InputError, match=r"expected images \(\.jpg, .*\.webp\), received none"):
        images_of(tmp_path)


def test_pipes_and_devices_named_as_images_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "endless.webp").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "good.png")
    items, images, _ = images_of(tmp_path)
    assert [bool(item.reason) for item in items] == [True, False, True, True]
    assert len(images) == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [SIZE, 30])
def test_an_npz_streams_what_it_holds(tmp_path, save, order, size):
    images = np.asarray(pictures(50, size, size), order=order)
    save(tmp_path / "cells.npz", images=images, labels=np.zeros(50, np.int64))
    items, got, ids = images_of(tmp_path / "cells.npz", batch_size=7)
    assert [item.file for item in items] == [f"cells.npz#{index}" for index in range(50)]
    assert ids == list(range(50))
    assert {item.changed for item in items} == {size != SIZE}
    expected = npz.load(tmp_path / "cells.npz", labelled=False).images
    if size == SIZE:
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(images_of(tmp_path / "cells.npz", batch_size=7, start=21)[1], got[21:])


def test_an_npz_in_medmnists_form_gives_its_test_part(tmp_path):
    np.savez(tmp_path / "m.npz", train_images=pictures(4, SIZE, SIZE), test_images=pictures(3, SIZE, SIZE) // 2)
    np.testing.assert_array_equal(images_of(tmp_path / "m.npz")[1], pictures(3, SIZE, SIZE) // 2)


def test_damage_of_an_npz_is_found_before_the_first_image(tmp_path):
    path = tmp_path / "cells.npz"
    np.savez(path, images=pictures(50))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        stream.open_source(str(path), image_size=SIZE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
    with pytest.raises(InputError, match=r"cells\.npz"):
        stream.open_source(str(path), image_size=SIZE)


def record(image: np.ndarray | bytes, name: str = "", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    if not isinstance(image, bytes):
        Image.fromarray(image).save(buffer, kind)
    features = {"image/encoded": image if isinstance(image, bytes) else buffer.getvalue()}
    if name:
        features["image/filename"] = name.encode()
    return tf.train.Example(features=tf.train.Features(feature={
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in features.items()
    })).SerializeToString()


@pytest.fixture
def shards(tmp_path) -> pathlib.Path:
    for shard in range(3):
        with tf.io.TFRecordWriter(str(tmp_path / f"cells-{shard:05d}-of-00003.tfrecord")) as writer:
            for index in range(5):
                writer.write(record(pictures(15)[shard * 5 + index], f"{shard}_{index}.png" if index else ""))
    return tmp_path


def test_records_stream_what_a_set_of_them_holds(shards):
    pattern = f"{shards}/*.tfrecord"
    items, images, ids = images_of(pattern, batch_size=4)
    expected = tfrecord.load(pattern, labelled=False, image_size=SIZE)
    assert tuple(item.file for item in items) == expected.files
    assert ids == expected.ids.tolist() == list(range(15))
    np.testing.assert_array_equal(images, expected.images)
    for start in (4, 8, 12):
        np.testing.assert_array_equal(images_of(pattern, batch_size=4, start=start)[1], images[start:])


def test_damaged_records_stand_in_their_place_and_a_lost_rest_is_one(shards):
    with tf.io.TFRecordWriter(str(shards / "cells-00000-of-00003.tfrecord")) as writer:
        for content in (record(pictures(1)[0], "good.png"), record(b"no image", "bad.png"), b"no example",
                        record(pictures(1)[0], "t.tif", "TIFF")):
            writer.write(content)
    second = shards / "cells-00001-of-00003.tfrecord"
    data = bytearray(second.read_bytes())
    length = int.from_bytes(data[:8], "little") + 16
    data[length + 60] ^= 1  # within the second record
    data[2 * length - 100] ^= 0
    third = 2 * length + (int.from_bytes(data[length:length + 8], "little") + 16 - length)
    data[third] ^= 1  # the third's length
    second.write_bytes(data)
    items, images, ids = images_of(f"{shards}/*.tfrecord", batch_size=4)
    assert [(item.file, bool(item.reason)) for item in items] == [
        ("good.png", False), ("bad.png", True), ("cells-00000-of-00003.tfrecord#2", True), ("t.tif", False),
        ("cells-00001-of-00003.tfrecord#0", False), ("cells-00001-of-00003.tfrecord#1", True),
        ("cells-00001-of-00003.tfrecord#2", True), ("cells-00002-of-00003.tfrecord#0", False),
        *((f"2_{index}.png", False) for index in range(1, 5))]
    assert "checksum" in items[5].reason
    assert "about 3 images" in items[6].reason
    assert ids == [0, 3, 4, 7, 8, 9, 10, 11]
    assert len(images) == 8
    for start in (5, 6, 7):
        assert images_of(f"{shards}/*.tfrecord", start=start)[0] == items[start:]


def test_a_stretch_without_a_readable_image_ends_a_batch(tmp_path):
    for index in range(40):
        (tmp_path / f"{index:02d}.png").touch()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "99.png")
    opened = stream.open_source(str(tmp_path), image_size=SIZE)
    assert [len(batch.items) for batch in opened.batches(2, SIZE)] == [16, 16, 9]


def test_thousands_of_images_take_the_memory_of_a_few(tmp_path):
    Image.fromarray(pictures(1, 200, 200)[0]).save(tmp_path / "x.png")
    peaks = []
    for count in (100, 600):
        root = tmp_path / str(count)
        root.mkdir()
        for index in range(count):
            os.link(tmp_path / "x.png", root / f"{index:04d}.png")
        tracemalloc.start()
        for batch in stream.open_source(str(root), image_size=SIZE).batches(16, SIZE):
            assert len(batch.images) == 16
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500 * 1000  # a name and its place, no pixels: those take 1,728 and 120,000 bytes each
