"""Each usual kind of image decodes to the pixels that others put there; damage is a reason, and never a hang."""

import io
import struct
import time
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from bloodcell.data.decode import decode
from bloodcell.data.decode_any import decode_any


def picture(height: int = 21, width: int = 34) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    got = decode_any(data)
    assert isinstance(got, np.ndarray), got
    assert got.dtype == np.uint8
    return got


def reason_of(data: bytes) -> str:
    """The same reason twice, at once, without memory beyond a few copies of the file."""
    tracemalloc.start()
    began = time.perf_counter()
    got = decode_any(data)
    assert time.perf_counter() - began < 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(got, str)
    assert got
    assert "\n" not in got
    assert peak < 2e6 + 6 * len(data)
    assert decode_any(data) == got
    return got


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"),
                                            ("PNG", "LA"), ("PNG", "P"), ("BMP", "RGB"), ("BMP", "L")])
def test_what_training_reads_is_read_the_same(kind, mode):
    data = encoded(picture().convert(mode), kind)
    np.testing.assert_array_equal(pixels_of(data), decode(data))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_tiffs_are_what_pillow_wrote(mode, compression):
    image = picture().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = np.asarray(image)[..., :3] if mode == "RGBA" else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(encoded(image, "TIFF", compression=compression)), expected)


@pytest.mark.parametrize(("mode", "compression"), [("1", "group3"), ("1", "group4"), ("RGB", "jpeg"), ("L", "jpeg")])
def test_fax_and_jpeg_within_a_tiff_are_pillows(mode, compression):
    data = encoded(picture().convert(mode), "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(pixels_of(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("options", [
    {}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}, {"tile": (16, 32)},
    {"rowsperstrip": 4}, {"planarconfig": "separate"}, {"planarconfig": "separate", "tile": (16, 16)}])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_tiffs_of_tifffile_lose_the_lower_bits_alone(bits, options):
    values = np.random.default_rng(1).integers(0, 2**bits, (37, 50, 3)).astype(f"u{bits // 8}")
    laid = np.moveaxis(values, 2, 0) if "planarconfig" in options else values
    data = tiff(laid, photometric="rgb", **options)
    np.testing.assert_array_equal(pixels_of(data), (values >> (bits - 8)).astype(np.uint8))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_tiffs_are_bright_where_the_file_says_so(bits, photometric, byteorder):
    values = np.random.default_rng(2).integers(0, 2**bits, (19, 23)).astype(f"u{bits // 8}")
    grey = (values >> (bits - 8)).astype(np.uint8)
    expected = 255 - grey if photometric == "miniswhite" else grey
    data = tiff(values, photometric=photometric, byteorder=byteorder)
    np.testing.assert_array_equal(pixels_of(data), np.repeat(expected[..., None], 3, -1))


def test_a_coded_16_bit_tiff_of_opencv_loses_the_lower_bits_alone():
    values = np.random.default_rng(3).integers(0, 65536, (33, 20, 3)).astype(np.uint16)
    data = cv2.imencode(".tif", values[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    np.testing.assert_array_equal(pixels_of(data), (values >> 8).astype(np.uint8))


def test_of_several_pages_the_first_counts_and_no_orientation_turns_it():
    pages = [picture(), picture(40, 9), picture(8, 8)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(pixels_of(data), np.asarray(pages[0]))
    for compression in ("raw", "tiff_lzw"):
        turned = encoded(picture(), "TIFF", compression=compression, tiffinfo={274: 6})
        np.testing.assert_array_equal(pixels_of(turned), np.asarray(picture()))


@pytest.mark.parametrize(("values", "said"), [
    (np.zeros((8, 8), np.float32), "32 bits"), (np.zeros((8, 8), np.int32), "32 bits"),
    (np.zeros((8, 8, 5), np.uint16), "5 samples"), (np.zeros((8, 8, 2), np.uint16), "not read")])
def test_tiffs_whose_pixels_have_no_clear_meaning_are_named(values, said):
    assert said in reason_of(tiff(values, photometric="minisblack", planarconfig="contig"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_lossless_webp_is_what_pillow_wrote(mode):
    image = picture().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, "WEBP", lossless=True, exact=True)
    expected = np.asarray(image)[..., :3] if mode == "RGBA" else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(data), expected)


def test_a_lossy_webp_is_opencvs_within_the_decoders_difference():
    data = encoded(picture(60, 80), "WEBP", quality=80)
    expected = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[..., ::-1].astype(int)
    assert np.abs(pixels_of(data) - expected).max() <= 4


def test_of_an_animated_webp_the_first_frame_counts():
    frames = [picture(), Image.new("RGB", (34, 21), (9, 8, 7)), Image.new("RGB", (34, 21), (90, 8, 7))]
    data = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:], duration=50)
    np.testing.assert_array_equal(pixels_of(data), np.asarray(frames[0]))


def bmp(width: int, height: int, bits: int, rows: bytes, *, compression: int = 0, palette: bytes = b"") -> bytes:
    start, colours = 54 + len(palette), len(palette) // 4
    return (struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 0, 0, colours, 0)
            + palette + rows)


def test_bmps_of_1_4_and_16_bits_and_run_lengths_are_what_was_written():
    palette = b"".join(bytes((c, 2 * c, 255 - c, 0)) for c in range(16))
    colours = np.array([(255 - c, 2 * c, c) for c in range(16)], np.uint8)
    four = bmp(4, 2, 4, bytes((0x12, 0x34, 0, 0, 0xFA, 0x0B, 0, 0)), palette=palette)
    np.testing.assert_array_equal(pixels_of(four), colours[[[15, 10, 0, 11], [1, 2, 3, 4]]])
    runs = bmp(4, 2, 8, bytes((3, 5, 1, 6, 0, 0, 4, 9, 0, 1)), compression=1, palette=palette)
    np.testing.assert_array_equal(pixels_of(runs), colours[[[9] * 4, [5, 5, 5, 6]]])
    high = bmp(2, 1, 16, struct.pack("<HH", 31 << 10, 31))
    np.testing.assert_array_equal(pixels_of(high), [[[255, 0, 0], [0, 0, 255]]])
    one = picture().convert("1")
    np.testing.assert_array_equal(pixels_of(encoded(one, "BMP")), np.asarray(one.convert("RGB")))


@pytest.mark.parametrize(("kind", "options"), [
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "jpeg"}), ("WEBP", {"lossless": True}), ("WEBP", {}), ("BMP", {})])
def test_every_truncation_is_a_reason(kind, options, capfd):
    image = picture(9, 12)
    whole = encoded(image.convert("1") if kind == "BMP" else image, kind, **options)
    assert isinstance(decode_any(whole), np.ndarray)
    # what stands behind the pixels may be of no use to them: values of a TIFF's directory, the filling of a BMP's row
    for size in range(len(whole) - {"TIFF": 8, "BMP": 2, "WEBP": 0}[kind]):
        assert isinstance(decode_any(whole[:size]), str), size
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("kind", "options"), [
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("WEBP", {}),
    ("WEBP", {"lossless": True})])
def test_changed_bytes_give_an_image_or_a_reason_and_no_warning(kind, options):
    whole = encoded(picture(40, 60), kind, **options)
    rng = np.random.default_rng(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        for _ in range(300):
            data = bytearray(whole)
            for at in rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 200), rng.integers(1, 4)):
                data[at] = rng.integers(0, 256)
            got = decode_any(bytes(data))
            assert isinstance(got, str) or (got.dtype == np.uint8 and got.ndim == 3)


def directory(*entries: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    """A TIFF of these entries: tag, type, count, value or place."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + behind


GOOD = {256: (256, 3, 1, 4), 257: (257, 3, 1, 4), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1), 262: (262, 3, 1, 1),
        273: (273, 4, 1, 110), 277: (277, 3, 1, 1), 278: (278, 3, 1, 4), 279: (279, 4, 1, 16)}


def test_a_directory_is_held_to_the_file():
    whole = directory(*GOOD.values(), behind=bytes(range(16)).rjust(32, b"\0"))
    at = len(whole) - 16
    whole = directory(*{**GOOD, 273: (273, 4, 1, at)}.values(), behind=bytes(range(16)).rjust(32, b"\0"))
    np.testing.assert_array_equal(pixels_of(whole)[..., 0], np.arange(16).reshape(4, 4))

    def with_entry(tag: int, kind: int, count: int, value: int) -> bytes:
        changed = {**GOOD, 273: (273, 4, 1, at), tag: (tag, kind, count, value)}
        return directory(*(changed[each] for each in sorted(changed)), behind=bytes(32))

    for entry, said in (((256, 4, 1, 5000), "4x5000 pixels"), ((257, 4, 1, 0), "0x4 pixels"),
                        ((256, 3, 1, 40), "16 of the 160 bytes"), ((258, 3, 1, 128), "128 bits"),
                        ((259, 3, 1, 34925), "number 34925"), ((273, 4, 1, at + 1), "ends early"),
                        ((273, 4, 10**9, 8), "ends early"), ((279, 4, 1, 2**32 - 1), "ends early"),
                        ((278, 3, 1, 1), "for 4 parts"), ((322, 4, 1, 2**31), "parts are of"),
                        ((273, 99, 1, 8), "damaged"), ((284, 3, 1, 7), "samples")):
        assert said in reason_of(with_entry(*entry)), entry
    assert "damaged" in reason_of(directory(GOOD[256], *GOOD.values(), behind=bytes(40)))
    assert "at most 10000" in reason_of(directory(*[(65000, 3, 1, 0)] * 10_001))


def test_entries_that_all_point_at_the_whole_file_are_not_read():
    bomb = directory(*(each for each in GOOD.values()), *((700 + n, 7, 400_000, 0) for n in range(9000)),
                     behind=bytes(400_000))
    assert isinstance(decode_any(bomb), np.ndarray)  # no pixel depends on them
    held = {**GOOD, 320: (320, 3, 200_000, 8), 347: (347, 7, 400_000, 8)}
    assert "ends early" in reason_of(directory(*(held[tag] for tag in sorted(held)), behind=bytes(400_000)))


def test_sides_beyond_the_limit_are_refused_without_their_memory():
    webp = bytearray(encoded(picture(), "WEBP", lossless=True))
    struct.pack_into("<I", webp, 21, 16383 | 16383 << 14)
    assert "16384x16384 pixels" in reason_of(bytes(webp))
    canvas = bytearray(encoded(picture(), "WEBP", lossless=True, save_all=True, append_images=[picture(21, 34)]))
    if canvas[12:16] == b"VP8X":
        canvas[24:30] = b"\xff" * 6
        assert "16777216x16777216 pixels" in reason_of(bytes(canvas))
    assert "0x5 pixels" in reason_of(bmp(5, 0, 4, bytes(8)))
    assert "5000x5 pixels" in reason_of(bmp(5, 5000, 1, bytes(8)))
    assert "truncated" in reason_of(bmp(4000, 4000, 4, bytes(8), palette=bytes(64)))
    assert "run-length" in reason_of(bmp(4000, 4000, 8, bytes(2**22), compression=1, palette=bytes(64)))
    frames = encoded(picture(), "WEBP")
    many = frames[12:] + b"XXXX\0\0\0\0" * 10_001
    assert "more than 10000" in reason_of(b"RIFF" + struct.pack("<I", 4 + len(many)) + b"WEBP" + many)


@pytest.mark.parametrize(("data", "said"), [
    (b"", "empty"), (b"GIF89a" + bytes(60), "a GIF"), (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"),
    (b"RIFF" + bytes(60), "a sound or a film"), (b"text", "no jpg, png, bmp, tiff or webp"), (b"II*\0", "header"),
    (b"RIFF\0\0\0\0WEBP", "ends early"), (b"RIFF\4\0\0\0WEBP", "header")])
def test_what_is_no_image_is_named(data, said):
    assert said in reason_of(data)
