"""Decodes one encoded image (jpg, png or bmp) that may be damaged, or made to do harm.

The header is read here before a pixel takes memory, and the file is held to it; the pixels are TensorFlow's. Finding
files, and what becomes of an image that cannot be used, belong to the sources.

What comes out is what `tf.io.decode_image(channels=3)` gives, with one exception: a BMP's palette is applied, where
TensorFlow gives the indices. So grey is repeated, alpha is dropped, 16 bits lose the lower 8; colour profiles, gamma
and the EXIF orientation are not applied.
"""

import os
import re
import stat
import struct
import zlib

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import MAX_SIDE

MAX_BYTES = 2**28  # of a file: twice the pixels of the largest image at 16 bits and four channels

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey + alpha, RGBA
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x, y, by
_INFLATED_AT_ONCE = 2**18  # bytes

_JPEG_SCANS = 64  # a decoder goes over the whole image for each; usual files have 1 to 12
_JPEG_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # ends a scan: no stuffed 0, no fill byte, no restart marker
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman coded
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, arithmetic, hierarchical


def decode(data: bytes) -> np.ndarray | str:
    """Decodes a file's content.

    Args:
      data: the whole file; its first bytes say which of the kinds it is, names do not matter.

    Returns:
      uint8 [H,W,3], or where there is none the reason, a short clause. A file that ends early is a reason, and so is
      one that holds other pixels than its header says. What JPEG cannot show stays unseen: it has no checksum, so
      bits that changed inside a whole file give the pixels that they happen to mean.
    """
    found = _inspect(data)
    if isinstance(found, str):
        return found
    kind, height, width, content = found
    try:
        with tf.device("CPU:0"):
            if kind == "jpg":
                image = tf.io.decode_jpeg(content, channels=3).numpy()
            elif kind == "png":
                image = tf.io.decode_png(content, channels=3).numpy()
            elif struct.unpack_from("<H", content, 28)[0] == 8:
                return _paletted(content, tf.io.decode_bmp(content, channels=0).numpy())
            else:
                image = tf.io.decode_bmp(content, channels=3).numpy()
    except (tf.errors.OpError, ValueError) as error:
        reason = " ".join((getattr(error, "message", "") or str(error)).split())
        return reason.rsplit("}} ", 1)[-1].split(" [Op:")[0][:120].rstrip(" .") or "it cannot be decoded"
    if image.shape != (height, width, 3):
        return f"its header says {height}x{width}, its data {image.shape[0]}x{image.shape[1]}"
    return image


def decode_file(path: str | os.PathLike[str]) -> np.ndarray | str:
    """Reads and decodes a file as `decode` does.

    A name that leads to no regular file (a folder, a pipe, a device, a link to nothing) is a reason, as is a file
    that may not be read or is larger than `MAX_BYTES`; neither is opened for long enough to hang.
    """
    data = read_file(path)
    return data if isinstance(data, str) else decode(data)


def read_file(path: str | os.PathLike[str]) -> bytes | str:
    """Returns the content of a regular file of at most `MAX_BYTES`, or the reason why there is none."""
    try:
        # a pipe without a writer would wait for one, but for this flag, which Windows lacks and does not need
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(file, "rb") as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "it is no regular file"
            if about.st_size > MAX_BYTES:
                return f"the file has {about.st_size} bytes, of at most {MAX_BYTES}"
            return opened.read(about.st_size + 1)  # the buffer is taken before the reading: not larger than the file
    except OSError as error:
        return (error.strerror or "it cannot be read").lower()
    except ValueError:  # a name with a zero byte in it
        return "its name is no file's"


def header(data: bytes) -> tuple[str, int, int] | str:
    """Reads what a file says of itself, without decoding a pixel.

    Returns:
      ("jpg", "png" or "bmp", height, width), or the reason why `decode` would refuse the file; a file that passes may
      still turn out to be damaged.
    """
    found = _inspect(data)
    return found if isinstance(found, str) else found[:3]


def _inspect(data: bytes) -> tuple[str, int, int, bytes] | str:
    """Returns kind, height, width and what TensorFlow is to decode; or a reason."""
    if not data:
        return "the file is empty"
    if len(data) > MAX_BYTES:
        return f"the file has more than {MAX_BYTES} bytes"
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    for start, name in ((b"GIF8", "a GIF"), (b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"), (b"RIFF", "a WebP or AVI")):
        if data.startswith(start):
            return f"it is {name}, not a jpg, png or bmp"
    return "it is no jpg, png or bmp"


def bad_size(height: int, width: int) -> str:
    """Returns a reason where a side is not 1 to MAX_SIDE pixels, else ""."""
    if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE:
        return ""
    return f"its header says {height}x{width} pixels, of 1 to {MAX_SIDE} a side"


# ---- PNG: W3C, Portable Network Graphics (third edition) -------------------------------------------------------------


def _png(data: bytes) -> tuple[str, int, int, bytes] | str:
    if len(data) < 33:
        return "the file ends inside its header"
    length, name = struct.unpack_from(">I4s", data, 8)
    width, height, depth, colour, method, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if (length, name) != (13, b"IHDR") or zlib.crc32(data[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        return "its header is damaged"
    if (reason := bad_size(height, width)):
        return reason
    if depth not in _PNG_DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        return f"its header says colour type {colour} with {depth} bits, which PNG does not have"
    chunks = _png_chunks(data)
    if isinstance(chunks, str):
        return chunks
    needed = _png_bytes(height, width, depth * _PNG_CHANNELS[colour], interlace)
    if (reason := _wrong_inflated_size([body for name, body in chunks if name == b"IDAT"], needed)):
        return reason
    # Without what no pixel depends on: a text or profile of kilobytes may inflate to megabytes, a thousand times over.
    return "png", height, width, b"".join([_PNG_SIGNATURE, *(_png_chunk(*chunk) for chunk in chunks)])


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]] | str:
    """Returns the critical chunks by name and content, in order, with the palette but once; or a reason."""
    chunks: list[tuple[bytes, bytes]] = []
    seen: set[bytes] = set()
    position, end = 8, len(data)
    while b"IEND" not in seen:
        if position + 12 > end:
            return "the file ends early"
        length, name = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > end:
            return "the file ends early"
        if not name[0] & 32:  # an upper-case first letter: no decoder may pass over it
            body = data[position + 8:position + 8 + length]
            if zlib.crc32(body, zlib.crc32(name)) != struct.unpack_from(">I", data, position + 8 + length)[0]:
                return "a checksum is wrong"
            if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name in seen and name != b"IDAT"):
                return "it holds parts that PNG does not have"
            seen.add(name)
            chunks.append((name, body))
        position += 12 + length
    return chunks


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _png_bytes(height: int, width: int, bits: int, interlace: int) -> int:
    """Bytes of all rows, each with its filter's byte before it; of seven smaller images where interlaced."""
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _wrong_inflated_size(bodies: list[bytes], needed: int) -> str:
    """Inflates piece by piece, never further than a piece beyond `needed`, and keeps nothing."""
    inflater = zlib.decompressobj()
    total = 0
    try:
        for body in bodies:
            rest = body
            while rest and not inflater.eof:
                total += len(inflater.decompress(rest, _INFLATED_AT_ONCE))
                if total > needed:
                    return f"it holds more than the {needed} bytes of pixels that its header says"
                rest = inflater.unconsumed_tail
        total += len(inflater.flush())
    except zlib.error:
        return "its compressed data is damaged"
    if total != needed or not inflater.eof:
        return f"it holds {total} of the {needed} bytes of pixels that its header says"
    return ""


# ---- JPEG: ITU-T T.81 ------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> tuple[str, int, int, bytes] | str:
    """Walks the markers to the end of the image as libjpeg does, so that both see the same header."""
    size: tuple[int, int] | None = None
    least = coded = scans = 0
    position, end = 2, len(data)
    while True:
        position = data.find(b"\xff", position)
        while 0 <= position < end and data[position] == 0xFF:
            position += 1
        if not 0 <= position < end:
            return "the file ends early"
        marker = data[position]
        position += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:  # these stand alone, and mean nothing here
            continue
        if marker == 0xD9:  # the end
            break
        if position + 2 > end:
            return "the file ends early"
        length = struct.unpack_from(">H", data, position)[0]
        if marker == 0xD8 or length < 2:
            return "its header is damaged"
        if position + length > end:
            return "the file ends early"
        if marker in _JPEG_OTHER_FRAMES:
            return "it is a lossless, hierarchical or arithmetic JPEG, which is not read"
        if marker in _JPEG_FRAMES:
            if size is not None or length < 8:
                return "its header is damaged"
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
            if (reason := bad_size(height, width)):
                return reason
            if precision != 8 or components not in (1, 3, 4) or length != 8 + 3 * components:
                return f"it has {components} components of {precision} bits, of 1, 3 or 4 of 8"
            size = height, width
            least = _jpeg_bytes(data[position + 8:position + length], height, width, marker == 0xC2)
        position += length
        if marker == 0xDA:
            if size is None:
                return "its header is damaged"
            scans += 1
            if scans > _JPEG_SCANS:
                return f"it has more than {_JPEG_SCANS} scans"
            following = _JPEG_NEXT.search(data, position)
            if following is None:
                return "the file ends early"
            coded += following.start() - position
            position = following.start()
    if size is None or not scans:
        return "it holds no image"
    if coded < least:
        return f"its {coded} bytes of data are too few for the {size[0]}x{size[1]} pixels that its header says"
    return "jpg", *size, data


def _jpeg_bytes(components: bytes, height: int, width: int, progressive: bool) -> int:
    """The least coded bytes that the header allows: a bit for each block's mean, one for its rest if not progressive.

    Components that are sampled less often have fewer blocks; the largest sampling factors set the image's own grid.
    """
    factors = [(byte >> 4, byte & 15) for byte in components[1::3]]
    most_across, most_down = max(across for across, _ in factors), max(down for _, down in factors)
    if not all(1 <= across <= 4 and 1 <= down <= 4 for across, down in factors):
        return 0  # the decoder has a reason of its own
    blocks = sum(-(-width * across // (8 * most_across)) * -(-height * down // (8 * most_down))
                 for across, down in factors)
    return blocks * (1 if progressive else 2) // 8


# ---- BMP: Windows GDI's BITMAPINFOHEADER and its successors ----------------------------------------------------------


def _bmp(data: bytes) -> tuple[str, int, int, bytes] | str:
    if len(data) < 54:
        return "the file ends inside its header"
    offset, about, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    if about not in (40, 52, 56, 108, 124):
        return f"its header has {about} bytes, which is not read"
    if (reason := bad_size(abs(height), width)):
        return reason
    if bits not in (8, 24, 32) or compression not in (0, 3) or (compression == 3 and bits != 32):
        return f"it has {bits} bits a pixel and compression {compression}, of 8, 24 or 32 bits without"
    masks = struct.unpack_from("<III", data, 54) if compression == 3 and len(data) >= 66 else None
    if compression == 3 and masks != (0xFF0000, 0xFF00, 0xFF):
        return "its channels are in an order that is not read"
    if offset < 14 + about + (12 if compression == 3 and about == 40 else 0):
        return "its header is damaged"
    row = (width * bits // 8 + 3) // 4 * 4
    needed = offset + row * abs(height)
    if len(data) < needed:
        return f"the file ends early ({len(data)} of {needed} bytes)"
    if bits == 8 and (reason := _bmp_palette(data, about, offset)[1]):
        return reason
    return "bmp", abs(height), width, data[:needed]  # TensorFlow refuses what stands behind the pixels


def _bmp_palette(data: bytes, about: int, offset: int) -> tuple[np.ndarray, str]:
    """Returns uint8 [colours, 3] (red, green, blue), and a reason where it is not there."""
    colours = struct.unpack_from("<I", data, 46)[0] or 256
    if colours > 256 or 14 + about + 4 * colours > offset:
        return np.zeros((0, 3), np.uint8), "its palette is damaged"
    table = np.frombuffer(data, np.uint8, 4 * colours, 14 + about).reshape(-1, 4)
    return table[:, 2::-1], ""


def _paletted(data: bytes, indices: np.ndarray) -> np.ndarray | str:
    """Returns the colours [H,W,3] of a BMP's palette for `indices` [H,W,1], or a reason."""
    offset, about = struct.unpack_from("<II", data, 10)
    table, _ = _bmp_palette(data, about, offset)
    if int(indices.max()) >= len(table):
        return f"a pixel has colour {int(indices.max())} of a palette of {len(table)}"
    return table[indices[..., 0]]
