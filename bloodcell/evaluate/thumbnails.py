"""Small pictures for a page: which images are one picture, and pictures shrunk, packed into sheets and encoded as WebP.

Sizes and qualities are chosen so that a page stays within a budget of bytes whatever the images are. Pillow shrinks and
encodes, in threads: it lets go of Python's lock. What a page shows belongs to the page.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bloodcell.evaluate.pages import data_uri

COLUMNS = 16  # thumbnails a row and a column of a sheet: small enough to be decoded while the pointer rests
THREADS = 2
_CHUNK = COLUMNS * COLUMNS  # images in memory at once
_SAMPLE = 192  # images that are encoded to foresee the size of all


@dataclasses.dataclass(frozen=True)
class Coding:
    """How pictures are written: the longer side in pixels (at most what the image has), and WebP's quality 0..100."""

    side: int
    quality: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sheets:
    """Thumbnails side by side in a few pictures, row by row.

    Attributes:
      width: of a thumbnail, pixels.
      height: of a thumbnail, pixels.
      uris: the sheets as data URIs, each of `COLUMNS` x `COLUMNS` thumbnails but for the last one.
    """

    width: int
    height: int
    uris: tuple[str, ...]


def distinct(images: Any, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds which images have equal pixels.

    Args:
      images: uint8 [N, H, W, 3], anything that gives an array for an array of indices.
      indices: int64 [M], which of them to look at.

    Returns:
      The first index of each different picture, int64 [D], and for each of `indices` its place there, int64 [M].
    """
    places: dict[bytes, int] = {}
    first: list[int] = []
    picture = np.empty(len(indices), np.int64)
    for start, pixels in _chunks(images, indices):
        for row, image in enumerate(pixels, start):
            key = hashlib.blake2b(image, digest_size=16).digest()
            picture[row] = places.setdefault(key, len(first))
            if picture[row] == len(first):
                first.append(int(indices[row]))
    return np.array(first, np.int64), picture


def choose(images: Any, indices: np.ndarray, codings: Sequence[Coding], budget: int) -> Coding:
    """Returns the first coding with which the images would fit `budget` characters of data URIs, or the last one."""
    places = np.linspace(0, max(len(indices) - 1, 0), min(_SAMPLE, len(indices))).astype(np.int64)
    sample = indices[places]
    for coding in codings:
        used = sum(len(uri) for uri in sheets(images, sample, coding).uris)
        if used * len(indices) <= budget * max(len(sample), 1):
            return coding
    return codings[-1]


def sheets(images: Any, indices: np.ndarray, coding: Coding) -> Sheets:
    """Packs a thumbnail of each image, in the order of `indices` (int64 [M]), into sheets."""
    width, height = 1, 1

    def sheet(pixels: np.ndarray) -> str:
        small = [_shrink(image, coding.side) for image in pixels]
        columns = min(COLUMNS, len(small))
        page = Image.new("RGB", (columns * width, -(-len(small) // columns) * height))
        for place, picture in enumerate(small):
            page.paste(picture, (place % columns * width, place // columns * height))
        return _webp(page, coding.quality)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: list[concurrent.futures.Future[str]] = []
        for _, pixels in _chunks(images, indices):
            width, height = _size(pixels, coding.side)
            if len(waiting) > 2 * THREADS:  # more would only hold memory
                waiting[-2 * THREADS].result()
            waiting.append(pool.submit(sheet, pixels))
        return Sheets(width, height, tuple(job.result() for job in waiting))


def single(images: Any, indices: np.ndarray, coding: Coding) -> dict[int, str]:
    """Returns each image as a data URI of its own, by index."""
    uris: dict[int, str] = {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for start, pixels in _chunks(images, indices):
            encoded = pool.map(lambda image: _webp(_shrink(image, coding.side), coding.quality), pixels)
            uris.update(zip(indices[start : start + len(pixels)].tolist(), encoded, strict=True))
    return uris


def _chunks(images: Any, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(indices), _CHUNK):
        yield start, np.ascontiguousarray(images[indices[start : start + _CHUNK]], np.uint8)


def _size(pixels: np.ndarray, side: int) -> tuple[int, int]:
    """Width and height of a thumbnail of [..., H, W, 3]."""
    height, width = pixels.shape[-3:-1]
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shrink(image: np.ndarray, side: int) -> Image.Image:
    picture, size = Image.fromarray(image), _size(image, side)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.HAMMING)


def _webp(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=2)  # 4, the default, saves 3% and takes twice as long
    return data_uri(buffer.getvalue(), "webp")
