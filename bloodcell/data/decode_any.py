"""Decodes one image file of any usual kind: what `decode` reads, and through Pillow TIFF, WebP and the rarer BMPs.

For images that are looked at once, as predict does; what is trained on stays with `decode`, whose rules hold here too.
A file's header is read and held to the file before Pillow sees it, and a TIFF's directory is written anew with the
entries alone on which pixels depend. So alpha is dropped, of several pages or frames the first one counts, 16 bits
lose the lower 8; colour profiles and orientations are not applied. Finding files belongs to `stream`.
"""

import dataclasses
import io
import os
import struct
import warnings

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from bloodcell.data.dataset import MAX_SIDE
from bloodcell.data.decode import MAX_BYTES, bad_size, decode, read_file

# Pillow's own reading of uncompressed TIFFs takes 16-bit planes for 8-bit ones; that of libtiff, its part, does not.
TiffImagePlugin.READ_LIBTIFF = True
# What Pillow finds odd in a file that it reads is nothing that a user can act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_READ_BY_DECODE = (b"\x89PNG", b"\xff\xd8\xff", b"BM")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, of either byte order
_OTHERS = ((0, b"GIF8", "a GIF"), (4, b"ftypavi", "an AVIF"), (4, b"ftyp", "a HEIC or a film"),
           (0, b"%PDF", "a PDF"), (4, b"jP  ", "a JPEG 2000"), (0, b"RIFF", "a sound or a film"))

_MOST_PARTS = 10_000  # of a WebP: frames and texts; of a TIFF's directory: entries
_RLE_BYTES = 2**22  # of a run-length coded BMP, which Pillow reads byte by byte


def decode_any(data: bytes) -> np.ndarray | str:
    """Decodes a file's content.

    Args:
      data: the whole file; its first bytes say which of the kinds it is, names do not matter.

    Returns:
      uint8 [H,W,3], or where there is none the reason, a short clause that is the same each time.
    """
    if len(data) > MAX_BYTES:
        return f"the file has more than {MAX_BYTES} bytes"
    if data.startswith(_TIFF_STARTS):
        return _tiff(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM") and len(data) >= 54 and (size := _rare_bmp(data)):
        return _rare_bmp_pixels(data, *size)
    if data and not data.startswith(_READ_BY_DECODE):
        known = next((name for at, start, name in _OTHERS if data[at:at + len(start)] == start), "")
        return f"it is {known}, which is not read" if known else "it is no jpg, png, bmp, tiff or webp"
    return decode(data)


def decode_any_file(path: str | os.PathLike[str]) -> np.ndarray | str:
    """Reads a file as `decode.read_file` does, and decodes it."""
    data = read_file(path)
    return data if isinstance(data, str) else decode_any(data)


def _by_pillow(data: bytes, kind: str, height: int, width: int) -> np.ndarray | str:
    """Returns uint8 [H,W,3], uint16 [H,W] where it is grey of more than 8 bits, or a reason."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.size != (width, height):
                return f"its header says {height}x{width}, its data {image.height}x{image.width}"
            if image.mode in ("I", "F"):
                return "its pixels are of 32 bits or signed, and nothing says which of their values are black and white"
            image.load()
            return np.asarray(image if image.mode.startswith("I;16") else image.convert("RGB"))
    except UnidentifiedImageError:  # its text holds an address, another one each time
        return "its pixels are of a kind that is not read, or its header is damaged"
    except MemoryError:
        return "there is no memory left for it"
    except Exception as error:  # over a damaged file Pillow raises whatever its parts do
        reason = " ".join(str(error).split())[:120].rstrip(" .")
        return reason if reason and "0x" not in reason else "it cannot be decoded"


# ---- BMP: the kinds that TensorFlow does not read --------------------------------------------------------------------


def _rare_bmp(data: bytes) -> tuple[int, int, bool] | None:
    """Returns height, width and whether it is run-length coded; None where it is `decode`'s business."""
    about = struct.unpack_from("<I", data, 14)[0]
    if about == 12:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return (height, width, False) if bits in (1, 4, 8, 24) else None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    other_order = compression == 3 and data[54:66] != struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    rare = about == 64 or bits in (1, 4, 16) or (bits, compression) in ((8, 1), (4, 2)) or (bits == 32 and other_order)
    return (abs(height), width, compression in (1, 2)) if rare and about in (40, 52, 56, 64, 108, 124) else None


def _rare_bmp_pixels(data: bytes, height: int, width: int, coded: bool) -> np.ndarray | str:
    if (reason := bad_size(height, width)):
        return reason
    if coded and len(data) > _RLE_BYTES:
        return f"it is a run-length coded BMP of more than {_RLE_BYTES} bytes"
    return _by_pillow(data, "BMP", height, width)


# ---- WebP: RFC 9649 --------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> np.ndarray | str:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        return "the file ends early"
    position, parts = 12, 0
    while position + 8 <= end:
        position += 8 + (struct.unpack_from("<I", data, position + 4)[0] + 1) // 2 * 2
        parts += 1
        if parts > _MOST_PARTS:
            return f"it has more than {_MOST_PARTS} frames or other parts"
    if position > end + 1:  # some leave out the byte that makes the last part even
        return "the file ends early"
    name, start = data[12:16], data[20:30]
    if len(start) < 10:
        return "the file ends inside its header"
    if name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 6))
    elif name == b"VP8L":
        bits = struct.unpack_from("<I", start, 1)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8X":
        width, height = (int.from_bytes(start[at:at + 3], "little") + 1 for at in (4, 7))
    else:
        return "its header is damaged"
    return bad_size(height, width) or _by_pillow(data[:end], "WEBP", height, width)


# ---- TIFF: revision 6.0, and BigTIFF ---------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 262, 277, 278, 284
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 322, 323, 324, 325
# Besides: order of bits, options of fax codes, predictor, palette, kinds of samples and alpha, JPEG's tables, YCbCr.
_KEPT = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, 266, _STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_COUNTS, _PLANES,
         292, 293, 317, 320, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, 338, 339, 347, 529, 530, 532)
_TYPES = {1: ("u1", 1), 2: ("", 1), 3: ("u2", 2), 4: ("u4", 4), 5: ("", 8), 6: ("", 1), 7: ("", 1), 8: ("", 2),
          9: ("", 4), 10: ("", 8), 11: ("", 4), 12: ("", 8), 13: ("u4", 4), 16: ("u8", 8), 17: ("", 8), 18: ("u8", 8)}
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)  # none, fax, LZW, JPEG, deflate, PackBits, deflate, zstd
_BLACK_IS_ZERO, _YCBCR = 1, 6
_PIXEL_BITS = 64  # 16 bits of red, green, blue and alpha


@dataclasses.dataclass
class _Directory:
    """The first directory of a TIFF: of each entry its type, number of values and where these begin; and the values.

    order: "<" or ">".
    """

    order: str
    entries: dict[int, tuple[int, int, int]]
    values: dict[int, np.ndarray]

    def one(self, tag: int, default: int) -> int:
        """Returns a tag's only or first value."""
        found = self.values.get(tag)
        return int(found[0]) if found is not None and len(found) else default


def _tiff(data: bytes) -> np.ndarray | str:
    found = _directory(data)
    if isinstance(found, str):
        return found
    height, width = found.one(_HEIGHT, 0), found.one(_WIDTH, 0)
    if (reason := bad_size(height, width) or _wrong_layout(found, len(data), height, width)):
        return reason
    bits = found.one(_BITS, 1)
    inverted = bits in (12, 16) and found.one(_COLOURS, 0) == 0  # white is zero; of these Pillow inverts none
    if inverted:
        found.values[_COLOURS] = np.array([_BLACK_IS_ZERO], f"{found.order}u2")
    pixels = _by_pillow(_rewritten(data, found), "TIFF", height, width)
    if isinstance(pixels, str) or pixels.ndim == 3:
        return pixels
    grey = (pixels >> (bits - 8)).astype(np.uint8)
    return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=-1)


def _directory(data: bytes) -> _Directory | str:
    """Reads the entries that pixels depend on; each must lie in the file, and all together be no larger than it."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    entry, room, first = (20, 8, 16) if big else (12, 4, 8)
    count_format, head_format = (f"{order}Q", f"{order}HHQ") if big else (f"{order}H", f"{order}HHI")
    if len(data) < first:
        return "the file ends inside its header"
    position = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, first - room)[0]
    start = position + struct.calcsize(count_format)
    if start > len(data):
        return "the file ends early"
    count = struct.unpack_from(count_format, data, position)[0]
    if count > _MOST_PARTS:
        return f"its directory has {count} entries, of at most {_MOST_PARTS}"
    if start + count * entry > len(data):
        return "the file ends early"
    found = _Directory(order, {}, {})
    total = 0
    for at in range(start, start + count * entry, entry):
        tag, kind, values = struct.unpack_from(head_format, data, at)
        if tag not in _KEPT:
            continue
        if kind not in _TYPES or tag in found.entries:
            return "its directory is damaged"
        name, each = _TYPES[kind]
        size, place = values * each, at + entry - room
        if size > room:
            place = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, place)[0]
        total += size
        if place + size > len(data) or total > len(data):
            return "the file ends early"
        found.entries[tag] = kind, values, place
        if name:
            found.values[tag] = np.frombuffer(data, f"{order}{name}", values, place)
    return found


def _wrong_layout(found: _Directory, size: int, height: int, width: int) -> str:
    """Returns a reason where strips or tiles are not all in the file, or there are more than the pixels need; or ""."""
    samples, planes = found.one(_SAMPLES, 1), found.one(_PLANES, 1)
    compression, bits = found.one(_COMPRESSION, 1), int(found.values.get(_BITS, np.ones(1, np.uint16)).max(initial=1))
    if compression not in _COMPRESSIONS:
        return f"its compression is number {compression}, which is not read"
    if not (1 <= samples <= 6 and bits * samples <= _PIXEL_BITS and planes in (1, 2)):
        return f"it has {samples} samples of {bits} bits a pixel, of at most {_PIXEL_BITS} bits"
    across, down, layers = width, min(height, found.one(_ROWS, height)), samples if planes == 2 else 1
    tiled = _TILE_WIDTH in found.values
    if tiled:
        across, down = found.one(_TILE_WIDTH, 0), found.one(_TILE_HEIGHT, 0)
    if not (1 <= across <= MAX_SIDE and 1 <= down <= MAX_SIDE):
        return f"its parts are of {down}x{across} pixels, of 1 to {MAX_SIDE} a side"
    needed = -(-width // across) * -(-height // down) * layers
    offsets, counts = (found.values.get(tag, np.zeros(0, np.uint32)).astype(np.uint64) for tag in (
        (_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_STRIP_OFFSETS, _STRIP_COUNTS)))
    if len(offsets) != needed or len(counts) != needed:
        return f"its directory names {len(offsets)} places and {len(counts)} lengths for {needed} parts of its pixels"
    if bool(((offsets > size) | (counts > size) | (offsets + counts > size)).any()):
        return "the file ends early"
    row = (across * bits * (samples // layers) + 7) // 8
    least = row * (down * needed if tiled else height * layers)
    if compression == 1 and found.one(_COLOURS, 0) != _YCBCR and int(counts.sum()) < least:
        return f"it holds {int(counts.sum())} of the {least} bytes of pixels that its header says"
    return ""


def _rewritten(data: bytes, found: _Directory) -> bytes:
    """Returns the file as a classic TIFF with one directory, behind all else, of the kept entries alone."""
    start = len(data) + len(data) % 2
    entries, behind = [], b""
    for tag, (given, count, place) in sorted(found.entries.items()):
        kind, size = given, _TYPES[given][1] * count
        if size <= 4:
            value = found.values[tag].tobytes() if tag in found.values else data[place:place + size]
        elif given in (16, 18):  # places and lengths of 8 bytes; in a file of this size 4 hold them
            kind, where = 4, start + 6 + 12 * len(found.entries) + len(behind)
            short = found.values[tag].astype(f"{found.order}u4").tobytes()
            value = short if count == 1 else struct.pack(f"{found.order}I", where)
            behind += short if count > 1 else b""
        else:
            value = struct.pack(f"{found.order}I", place)
        entries.append(struct.pack(f"{found.order}HHI", tag, kind, count) + value.ljust(4, b"\0"))
    head = data[:2] + struct.pack(f"{found.order}HI", 42, start)
    return b"".join([head, data[8:], bytes(start - len(data)), struct.pack(f"{found.order}H", len(entries)), *entries,
                     bytes(4), behind])
