"""Files changed at random either give images or a reason: never another exception, much memory, or a long wait.

A longer run: `BLOODCELL_FUZZ=20000 python -m pytest tests/data/test_fuzz.py` (examples a test; some 500 a second).
What such runs found is kept in `corpus/` and replayed by `test_hostile.py`.
"""

import io
import os
import pathlib
import resource
import struct
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bloodcell.data import npz, tfrecord
from bloodcell.data.decode import decode, header
from bloodcell.errors import InputError

EXAMPLES = int(os.environ.get("BLOODCELL_FUZZ", "0"))
FUZZ = settings(max_examples=EXAMPLES or 100, derandomize=not EXAMPLES, deadline=None, database=None,
                suppress_health_check=list(HealthCheck))

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 4096, 4097, 65500, 65535, 100_000, 2**31 - 1, 2**31, 2**32 - 1)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 9, width: int = 11) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def image_seeds() -> list[bytes]:
    image = picture()
    seeds = [encoded(image.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    seeds += [encoded(image.convert(mode), "BMP") for mode in ("RGB", "RGBA", "L")]
    seeds += [encoded(image, "JPEG", quality=30), encoded(image, "JPEG", progressive=True, quality=30),
              encoded(image.convert("L"), "JPEG", quality=30), encoded(image.convert("CMYK"), "JPEG", quality=30)]
    return [*seeds, encoded(image.convert("P"), "GIF"), b""]


def array_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of TFRecord files: CRC-32C (RFC 3720, appendix B.4), rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(records: list[bytes]) -> bytes:
    parts = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, masked_crc32c(length), record, masked_crc32c(record)]
    return b"".join(parts)


def record(image: bytes, label: int) -> bytes:
    feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
               "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
               "image/class/text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"ab"[label:label + 1]]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


IMAGES = image_seeds()
ARRAYS = {"images.npy": array_file(np.zeros((2, 4, 4, 3), np.uint8)), "labels.npy": array_file(np.arange(2))}
ARCHIVES = [archive(ARRAYS), archive(ARRAYS, zipfile.ZIP_DEFLATED)]
RECORDS = [record(encoded(picture(4, 4), "PNG"), label) for label in (0, 1)]


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        # half of all changes go where the headers are
        last = min(64, len(data)) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, last))
        kind = draw(st.sampled_from(["flip", "number", "cut", "splice", "insert", "delete", "repeat"]))
        if kind == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "number":
            layout = draw(st.sampled_from(["<H", ">H", "<I", ">I", "B"]))
            number = draw(st.sampled_from(NUMBERS)) & (2 ** (8 * struct.calcsize(layout)) - 1)
            data[at:at + struct.calcsize(layout)] = struct.pack(layout, number)
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            data[at:] = other[draw(st.integers(0, len(other))):]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "delete":
            del data[at:at + draw(st.integers(1, 32))]
        else:
            data[at:at] = data[at:at + draw(st.integers(1, 64))] * draw(st.integers(1, 8))
    return bytes(data)


def with_png_checksums(data: bytes) -> bytes:
    """Makes every chunk's checksum right, so that what lies behind them is reached."""
    fixed, position = bytearray(data), 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        end = position + 8 + struct.unpack_from(">I", data, position)[0]
        if end + 4 > len(data):
            break
        fixed[end:end + 4] = struct.pack(">I", zlib.crc32(data[position + 4:end]))
        position = end + 4
    return bytes(fixed)


@pytest.fixture(autouse=True)
def _bounded():
    """A test's examples together: no memory that a tiny file could not need."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (2**20 if sys.platform == "darwin" else 2**10) < 400


def reason_or_images(load) -> None:
    began, reason, images = time.perf_counter(), "", None
    try:
        images = load()
    except InputError as error:
        reason = str(error)
    assert "\n" not in reason
    assert ("expected" in reason) == (images is None)
    if images is not None:
        assert len(images) >= 1
        assert images.subset(np.array([0])).images.dtype == np.uint8
    assert time.perf_counter() - began < 10


@FUZZ
@given(data=mutated(IMAGES), repair=st.booleans())
def test_changed_images_decode_or_say_why_not(data, repair):
    data = with_png_checksums(data) if repair else data
    began = time.perf_counter()
    said, result = header(data), decode(data)
    assert time.perf_counter() - began < 10
    if isinstance(result, str):
        assert result
        assert len(result) < 200
        assert result.isprintable()
    else:
        assert isinstance(said, tuple)
        assert result.shape == (*said[1:], 3)
        assert result.dtype == np.uint8


@FUZZ
@given(data=mutated(ARCHIVES))
def test_changed_archives_load_or_say_why_not(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(data)
    reason_or_images(lambda: npz.load(path))


@FUZZ
@given(images=mutated([ARRAYS["images.npy"]]), labels=mutated([ARRAYS["labels.npy"]]), which=st.booleans(),
       compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_changed_arrays_in_whole_archives_load_or_say_why_not(images, labels, which, compression, tmp_path_factory):
    path: pathlib.Path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    entries = {**ARRAYS, "images.npy": images} if which else {**ARRAYS, "labels.npy": labels}
    path.write_bytes(archive(entries, compression))
    reason_or_images(lambda: npz.load(path))


@settings(FUZZ, max_examples=EXAMPLES // 4 or 25)
@given(data=mutated([framed(RECORDS)]), changed=mutated(RECORDS), framing=st.booleans(), most=st.integers(0, 1))
def test_changed_records_load_or_say_why_not(data, changed, framing, most, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.tfrecord"
    path.write_bytes(data if framing else framed([*RECORDS, changed]))
    reason_or_images(lambda: tfrecord.load(str(path), max_bad_images=most))
