"""Images that stay in TFRecord shards: the same as those in memory, to the bit, in any order and from any place on."""

import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data import record_scan, tfrecord, tfrecord_writer
from bloodcell.data.dataset import ImageSet, keeps_in_memory
from bloodcell.data.pipeline import Pipeline
from bloodcell.data.records import RecordImages
from bloodcell.data.resize import square, to_square
from bloodcell.errors import InputError

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "pbc96"


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit: polynomial 0x1EDC6F41, reflected, from and to all ones (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """An own reader of the format: offset and content of each record, every checksum checked."""
    found, position = [], 0
    while position < len(data):
        length, of_length = struct.unpack_from("<QI", data, position)
        content = data[position + 12:position + 12 + length]
        assert of_length == masked(data[position:position + 8])
        assert struct.unpack_from("<I", data, position + 12 + length)[0] == masked(content)
        found.append((position, content))
        position += length + 16
    return found


def cells(n: int, size: int = 12) -> ImageSet:
    rng = np.random.default_rng(n)
    return ImageSet(rng.integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n, dtype=np.int64) % 3,
                    np.arange(n, dtype=np.int64), ("a", "b", "c"), "test", tuple(f"{i}.png" for i in range(n)))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[ImageSet, ImageSet]:
    """Fifty images of four shards, in memory and not."""
    folder = tmp_path_factory.mktemp("shards")
    assert len(tfrecord_writer.write(cells(50), folder, shard_bytes=10_000)) == 4
    return tuple(tfrecord.load(f"{folder}/*.tfrecord", cache=cache) for cache in ("memory", "none"))  # type: ignore[return-value]


def test_the_checksum_is_that_of_the_rfc():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues
    for data in (b"", bytes(8), b"12345678", os.urandom(8)):
        assert record_scan._masked_crc32c(data) == masked(data)


def test_offsets_lead_to_the_images_that_an_own_reader_finds(both, tmp_path):
    tfrecord_writer.write(cells(7), tmp_path, shard_bytes=2_000)
    stored = tfrecord.load(f"{tmp_path}/*.tfrecord", cache="none").images
    assert isinstance(stored, RecordImages)
    expected = [(path, offset, tf.train.Example.FromString(content).features.feature["image/encoded"])
                for path in sorted(tmp_path.iterdir()) for offset, content in frames(path.read_bytes())]
    assert len({path for path, *_ in expected}) > 1
    for index, (path, offset, feature) in enumerate(expected):
        row = stored._table[index]
        image = feature.bytes_list.value[0]
        assert path.read_bytes()[row["offset"]:row["offset"] + row["length"]] == image
        assert offset < row["offset"] < offset + 16 + len(path.read_bytes())
        assert stored.encoded(np.array([index])) == [image]


def test_every_index_gives_what_memory_gives(both):
    memory, stored = both[0].images, both[1].images
    assert isinstance(memory, np.ndarray)
    assert isinstance(stored, RecordImages)
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == (memory.shape, memory.dtype, 4, 50)
    for index in (0, -1, np.int64(7), slice(3, 40, 4), slice(None), np.array([5, 5, 49, 0]), [2, 1],
                  np.arange(50) % 7 == 1, np.zeros(0, np.int64)):
        got = stored[index]
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, memory[index])
    np.testing.assert_array_equal(np.asarray(stored), memory)
    np.testing.assert_array_equal(np.stack(list(stored)), memory)
    with pytest.raises(IndexError):
        stored[50]


def test_subsets_stay_in_their_files_and_have_the_fingerprint_of_those_in_memory(both, monkeypatch):
    index = np.array([40, 3, 3, 17])
    monkeypatch.setattr(RecordImages, "encoded", lambda *_: pytest.fail("an image was read"))
    subsets = [images.subset(index) for images in both]
    assert isinstance(subsets[1].images, RecordImages)
    assert subsets[0].fingerprint() == subsets[1].fingerprint() != both[1].fingerprint()
    assert both[0].fingerprint() == both[1].fingerprint()
    monkeypatch.undo()
    np.testing.assert_array_equal(subsets[1].images[:], subsets[0].images)
    assert subsets[1].files == ("40.png", "3.png", "3.png", "17.png")


@pytest.mark.parametrize("batch_size", [16, 12, 7, 64])
def test_epochs_are_those_of_memory_from_any_step_on(both, batch_size):
    pipelines = [Pipeline(images, batch_size=batch_size) for images in both]
    steps = pipelines[0].num_batches
    for skip in sorted({0, 1, steps - 1, steps}):
        expected, got = (list(each.epoch(3, 2, skip_steps=skip).as_numpy_iterator()) for each in pipelines)
        assert len(got) == len(expected) == steps - skip
        for one, other in zip(expected, got, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])
    assert pipelines[0].epoch(0, 0).element_spec == pipelines[1].epoch(0, 0).element_spec
    np.testing.assert_array_equal(next(iter(pipelines[1].in_order()))["id"], np.resize(np.arange(50), batch_size))


def test_other_sizes_are_resized_as_in_memory(tmp_path):
    rng = np.random.default_rng(1)
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for height, width in ((20, 30), (12, 12), (33, 9), (50, 50)):
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            writer.write(tf.train.Example(features=tf.train.Features(feature={"image/encoded": tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()]))})).SerializeToString())
            np.testing.assert_array_equal(square(tf.constant(image), 12), to_square(image[None], 12)[0])
    memory, stored = (tfrecord.load(str(tmp_path / "x.tfrecord"), labelled=False, image_size=12, cache=cache)
                      for cache in ("memory", "none"))
    assert stored.images.shape == (4, 12, 12, 3)
    np.testing.assert_array_equal(stored.images[:], memory.images)
    assert stored.fingerprint() == memory.fingerprint()


def test_bmp_palettes_and_texts_that_inflate_are_no_matter_of_the_stream(tmp_path):
    """A BMP of two colours, as Pillow would write it, whose palette TensorFlow does not apply."""
    palette = bytes([0, 0, 255, 0, 255, 0, 0, 0])  # red and blue, as BGR0
    head = struct.pack("<2sIHHI", b"BM", 62 + 8, 0, 0, 62)
    about = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 8, 0, 8, 0, 0, 2, 0)
    image = head + about + palette + bytes([0, 1, 0, 0, 1, 0, 0, 0])  # from the bottom row up
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature={"image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[image]))})).SerializeToString())
    for cache in ("memory", "none"):
        got = tfrecord.load(str(tmp_path / "x.tfrecord"), labelled=False, cache=cache)
        assert got.images[0].tolist() == [[[0, 0, 255], [255, 0, 0]], [[255, 0, 0], [0, 0, 255]]]


def test_a_shard_that_changes_during_the_run_is_noticed(tmp_path):
    path, = tfrecord_writer.write(cells(5), tmp_path)
    stored = tfrecord.load(str(path), cache="none")
    data = bytearray(path.read_bytes())
    data[stored.images._table[2]["offset"] + 50] ^= 1  # type: ignore[union-attr]
    path.write_bytes(data)
    np.testing.assert_array_equal(stored.images[1], cells(5).images[1])
    with pytest.raises(InputError, match="bytes that were there when the run began"):
        stored.images[2]
    with pytest.raises(tf.errors.OpError, match="bytes that were there when the run began"):
        list(Pipeline(stored, batch_size=5).in_order())
    path.write_bytes(b"")
    with pytest.raises(InputError, match="disk fails"):
        stored.images[0]


def test_more_shards_than_files_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("bloodcell.data.records._OPEN_FILES", 2)
    tfrecord_writer.write(cells(12), tmp_path, shard_bytes=1)
    assert len(list(tmp_path.iterdir())) == 12
    stored = tfrecord.load(f"{tmp_path}/*", cache="none")
    np.testing.assert_array_equal(stored.images[:], cells(12).images)


def test_auto_keeps_in_memory_what_takes_less_than_a_fourth_of_it(monkeypatch):
    monkeypatch.setattr("bloodcell.data.dataset._free_memory", lambda: 4 * 3000)
    assert keeps_in_memory((9, 10, 10, 3), "auto", "x")
    assert not keeps_in_memory((10, 10, 10, 3), "auto", "x")
    assert not keeps_in_memory((9, 10, 10, 3), "none", "x")
    assert keeps_in_memory((40, 10, 10, 3), "memory", "x")
    assert not keeps_in_memory((10**6, 10, 10, 3), "none", "x")
    with pytest.raises(InputError, match="free memory"):
        keeps_in_memory((41, 10, 10, 3), "memory", "x")
    with pytest.raises(InputError, match="pixels a side"):
        keeps_in_memory((1, 10, 10_000, 3), "none", "x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real cells (../shared/data) are not here")
def test_real_jpegs_are_the_same_streamed():
    memory, stored = (tfrecord.load(str(SHARED / "val-*.tfrecord"), cache=cache) for cache in ("memory", "none"))
    assert isinstance(stored.images, RecordImages)
    np.testing.assert_array_equal(stored.images[::9], memory.images[::9])
    assert stored.fingerprint() == memory.fingerprint()


MEMORY = """
import sys
from bloodcell.data import tfrecord
from bloodcell.data.pipeline import Pipeline

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

for pattern in sys.argv[1:]:
    for _ in Pipeline(tfrecord.load(pattern, cache="none"), batch_size=16).epoch(0, 0):
        pass
    print("RESULT", peak())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_the_memory_of_a_streamed_epoch_does_not_grow_with_the_set(tmp_path):
    """After 800 images, which fill the heap, 2,000 of 150 KB (300 MB decoded) take less than a sixth of that more."""
    rng = np.random.default_rng(0)
    low = np.repeat(np.repeat(rng.integers(0, 256, (20, 7, 7, 3), np.uint8), 32, 1), 32, 2)
    for name, count in (("few", 800), ("many", 2_000)):
        images = ImageSet(np.broadcast_to(low[:1], (count, 224, 224, 3)), np.zeros(count, np.int64), np.arange(count),
                          ("a",), "test", tuple(map(str, range(count))))
        tfrecord_writer.write(images, tmp_path / name, encoding="jpeg")
    done = subprocess.run([sys.executable, "-c", MEMORY, f"{tmp_path}/few/*", f"{tmp_path}/many/*"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    few, many = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("RESULT"))
    assert many - few < 2_000 * 224 * 224 * 3 / 6
