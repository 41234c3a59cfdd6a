"""Good images decode as Pillow decodes them; each kind of bad one is a reason, given before its pixels take memory."""

import io
import pathlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bloodcell.data.decode import MAX_BYTES, decode, decode_file, header

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "pbc96"


def picture(height: int = 21, width: int = 34) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, interlace: int = 0,
        between: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def reason(data: bytes) -> str:
    """Both say the same reason, or only decode has one; and no memory is taken beyond a few copies of the file."""
    tracemalloc.start()
    result = decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(result, str)
    assert result
    assert "\n" not in result
    assert peak < 2e6 + 4 * len(data)
    return result


@pytest.mark.parametrize(("kind", "mode"), [
    *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
    *(("BMP", mode) for mode in ("RGB", "RGBA", "L", "P"))])
def test_pixels_of_png_and_bmp_are_pillows(kind, mode):
    image = picture().convert(mode)
    data = encoded(image, kind)
    got = decode(data)
    expected = np.asarray(image)[..., :3] if mode == "RGBA" else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(got, expected)
    assert header(data) == (kind.lower(), 21, 34)


def test_sixteen_bits_lose_the_lower_eight():
    values = np.random.default_rng(1).integers(0, 65536, (5, 7)).astype(np.uint16)
    got = decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (9, 8), (13, 5)])
def test_interlaced_png_is_pillows(height, width):
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for left, top, across, down in passes
                    for row in pixels[top::down, left::across] if row.size)
    data = png(width, height, 8, 2, rows, interlace=1)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), pixels)
    np.testing.assert_array_equal(decode(data), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}, {"quality": 90}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_pillows_within_the_decoders_difference(mode, options):
    data = encoded(picture(33, 50).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB")).astype(int)
    got = decode(data)
    assert isinstance(got, np.ndarray)
    assert np.abs(got - expected).mean() < 2
    assert header(data) == ("jpg", 33, 50)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_those_of_tensorflows_general_decoder(kind):
    data = encoded(picture(), kind)
    np.testing.assert_array_equal(decode(data), tf.io.decode_image(data, channels=3, expand_animations=False).numpy())


def test_the_orientation_in_exif_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert header(encoded(picture(21, 34), "JPEG", exif=exif)) == ("jpg", 21, 34)
    got = decode(encoded(picture(21, 34), "JPEG", exif=exif))
    np.testing.assert_array_equal(got, decode(encoded(picture(21, 34), "JPEG")))


def test_bmp_rows_from_the_top_and_bytes_behind_the_pixels():
    data = bytearray(encoded(picture(), "BMP"))
    upright = decode(bytes(data) + b"\0\0")
    struct.pack_into("<i", data, 22, -21)
    assert isinstance(upright, np.ndarray)
    np.testing.assert_array_equal(upright, np.asarray(picture()))
    np.testing.assert_array_equal(decode(bytes(data)), upright[::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_every_truncation_is_a_reason(kind):
    whole = encoded(picture(9, 12), kind)
    assert isinstance(decode(whole), np.ndarray)
    for size in range(len(whole)):
        assert isinstance(decode(whole[:size]), str), size


@pytest.mark.parametrize(("width", "height"), [
    (100_000, 100_000), (65_500, 65_500), (4097, 1), (1, 4097), (0, 5), (5, 0), (2**31 - 1, 1)])
def test_sides_beyond_the_limit_are_refused(width, height):
    assert f"{height}x{width} pixels" in reason(png(width, height, 8, 2, b"\0" * 1000))
    if width <= 65535:
        jpeg = bytearray(encoded(picture(), "JPEG"))
        at = jpeg.index(b"\xff\xc0")
        struct.pack_into(">HH", jpeg, at + 5, height, width)
        assert f"{height}x{width} pixels" in reason(bytes(jpeg))
    bmp = bytearray(encoded(picture(), "BMP"))
    struct.pack_into("<Ii", bmp, 18, width, height)
    assert "pixels, of 1 to 4096 a side" in reason(bytes(bmp))
    struct.pack_into("<ii", bmp, 18, 5, -2**31)
    assert "2147483648x5 pixels" in reason(bytes(bmp))


def test_a_header_that_promises_more_than_the_data_holds_is_refused_without_its_memory():
    assert "of the 50335744 bytes" in reason(png(4096, 4096, 8, 2, b"\0" * 1000))
    jpeg = bytearray(encoded(picture(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 4000, 4000)
    assert "too few for the 4000x4000 pixels" in reason(bytes(jpeg))
    bmp = bytearray(encoded(picture(), "BMP"))
    struct.pack_into("<ii", bmp, 18, 4096, 4096)
    assert "ends early" in reason(bytes(bmp))


def test_pixels_that_inflate_beyond_the_header_are_refused():
    rows = b"".join(b"\0" + bytes(30) for _ in range(10))
    assert isinstance(decode(png(10, 10, 8, 2, rows)), np.ndarray)
    assert "more than the 310 bytes" in reason(png(10, 10, 8, 2, rows + b"\0"))
    assert "more than the 310 bytes" in reason(png(10, 10, 8, 2, b"\0" * 100_000_000))


def test_texts_and_profiles_that_inflate_to_gigabytes_are_not_inflated():
    rows = b"".join(b"\0" + bytes(30) for _ in range(10))
    blast = zlib.compress(b"\0" * 7_900_000, 9)
    bombs = (chunk(b"zTXt", b"a\0\0" + blast) + chunk(b"iCCP", b"a\0\0" + blast)) * 20
    tracemalloc.start()
    got = decode(png(10, 10, 8, 2, rows, between=bombs))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got, np.zeros((10, 10, 3)))
    assert peak < 2e6


@pytest.mark.parametrize("at", [20, 25, 31, 50])
def test_a_flipped_bit_of_a_png_is_found_by_its_checksums(at):
    data = bytearray(encoded(picture(), "PNG"))
    data[at] ^= 1
    reason(bytes(data))


def test_jpegs_of_other_kinds_and_of_endless_scans_are_refused():
    data = encoded(picture(), "JPEG")
    assert "arithmetic" in reason(data.replace(b"\xff\xc0", b"\xff\xc9", 1))
    progressive = encoded(picture(), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    assert "more than 64 scans" in reason(progressive[:-2] + progressive[last:-2] * 80 + b"\xff\xd9")
    twice = data.index(b"\xff\xc0")
    assert "damaged" in reason(data[:twice] + data[twice:twice + 19] + data[twice:])


@pytest.mark.parametrize(("data", "said"), [
    (b"", "empty"), (b"BM", "inside its header"), (b"\x89PNG\r\n\x1a\n", "inside its header"),
    (b"\xff\xd8\xff", "ends early"), (b"GIF89a" + bytes(20), "a GIF"),
    (b"RIFF" + bytes(20), "a WebP"), (b"text", "no jpg, png or bmp"),
])
def test_what_is_no_image_is_named(data, said):
    assert said in reason(data)
    assert header(data) == decode(data)


@pytest.mark.parametrize(("at", "layout", "value", "said"), [
    (28, "<H", 1, "1 bits a pixel"), (28, "<H", 65535, "65535 bits"), (30, "<I", 1, "compression 1"),
    (14, "<I", 12, "12 bytes"), (10, "<I", 20, "damaged"), (10, "<I", 2**32 - 1, "ends early"),
])
def test_absurd_bmp_headers_are_refused(at, layout, value, said):
    data = bytearray(encoded(picture(), "BMP"))
    struct.pack_into(layout, data, at, value)
    assert said in reason(bytes(data))


def test_a_bmp_index_beyond_its_palette_is_refused():
    data = bytearray(encoded(picture().quantize(4), "BMP"))
    data[-30] = 200
    assert "colour 200 of a palette" in reason(bytes(data))
    struct.pack_into("<I", data, 46, 100_000)
    assert "palette is damaged" in reason(bytes(data))


def test_a_file_of_gigabytes_is_refused_unread(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    (tmp_path / "small.png").write_bytes(encoded(picture(), "PNG"))
    tracemalloc.start()
    result = decode_file(tmp_path / "x.png")
    assert isinstance(decode_file(tmp_path / "small.png"), np.ndarray)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert isinstance(result, str)
    assert "bytes, of at most" in result


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real cells (../shared/data) are not here")
def test_real_cells_are_pillows():
    for raw in tf.data.TFRecordDataset(sorted(str(path) for path in SHARED.glob("val-*.tfrecord"))).take(50):
        data = tf.train.Example.FromString(raw.numpy()).features.feature["image/encoded"].bytes_list.value[0]
        with Image.open(io.BytesIO(data)) as opened:
            expected, kind = np.asarray(opened.convert("RGB")).astype(int), str(opened.format)
        got = decode(data)
        assert isinstance(got, np.ndarray)
        assert np.abs(got - expected).mean() <= (0 if kind == "PNG" else 2)
