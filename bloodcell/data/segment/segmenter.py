"""The flag's spec, and the `Segmenter` it becomes: what finds the foreground, what fills the rest, what a run keeps."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bloodcell import spec
from bloodcell.data import npz
from bloodcell.data.dataset import ImageSet
from bloodcell.data.segment import nearest, seeds, shape, stain
from bloodcell.errors import InputError
from bloodcell.files import write_atomically

FILE = "segment.npz"  # in a run's folder: what was learned
LEAST, MOST = 0.01, 0.95  # shares of an image that are a cell; with less or more the image stays whole

_WHAT = "--segment"
_LEVEL = 0.6
_FILLS = {"white": 255, "black": 0}
_CHUNK_PIXELS = 2**20  # segmented at a time by one thread: about 100 MB
_LEARNED_BYTES = 2**26
_GROUND_SAMPLES = 512

# Called with uint8 [N,H,W,3]; returns bool [N,H,W] of the pixels that look like a cell, and of those that are covered.
Rough = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of segmenting: what its spec takes, and what it is."""

    params: tuple[spec.Param, ...]
    summary: str


_FILL = spec.Param("fill", str, "255")
_LEVEL_PARAM = spec.Param("level", float, _LEVEL, low=0.1, high=2.0, unit="of Otsu's threshold")

SEGMENTERS: dict[str, Entry] = {
    "knn": Entry(
        params=(spec.Param("k", int, 5, low=1, high=99),
                spec.Param("masks", str, None, optional=True),
                _FILL,
                spec.Param("position", float, 0.1, low=0.0, high=10.0, unit="of the colour range a half side")),
        summary=("K nearest neighbours on colour and position; k is odd. masks is a folder of NAME.png with "
                 f"NAME{seeds.SUFFIX}.png, or a .npz with images uint8 [M,H,W,3] and masks [M,H,W]; without, clear "
                 "cells of the training images are found by their stain. fill as below")),
    "threshold": Entry(
        params=(_FILL, _LEVEL_PARAM),
        summary=("Otsu's threshold on the stain (green against blue density, which red cells lack). fill: a grey level "
                 "0..255, 'white', 'black', or 'mean' (the mean colour of the training images' bare ground)")),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What segmenting a set came to.

    Attributes:
      images: the set, background filled.
      foreground: the share of each image that is foreground; 1 where it was left whole. float64 [N].
      whole: images left as they are, because no sensible foreground was found; bool [N].
    """

    images: ImageSet
    foreground: np.ndarray
    whole: np.ndarray

    def line(self, part: str) -> str:
        """Returns one line for people."""
        if not self.whole.any():
            return f"segment: {part}: {len(self.whole):,} images, {self.foreground.mean():.0%} of them foreground"
        share = self.foreground[~self.whole].mean() if not self.whole.all() else 1.0
        return (f"segment: {part}: {int(self.whole.sum()):,} of {len(self.whole):,} images left whole (foreground "
                f"below {LEAST:.0%} or above {MOST:.0%}); {share:.0%} of the others is foreground")


class Segmenter:
    """Finds the cell in the middle of an image and fills the rest; each image by itself, so order does not matter."""

    def __init__(self, text: str, fill: np.ndarray, learned: nearest.Seeds | None) -> None:
        """Takes a spec that `parse` accepts, the fill uint8 [3], and the seeds where the way of segmenting has any."""
        self.spec = text
        self.fill = fill
        self._seeds = learned
        name, values = _bound(text)
        self._rough = (_by_threshold(values["level"]) if learned is None else
                       _by_neighbours(nearest.Table(learned, k=values["k"], position=values["position"])))
        if (name == "knn") != (learned is not None):
            raise ValueError(f"{text}: expected seeds for knn alone")

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Returns the foreground, bool [N,H,W], of images uint8 [N,H,W,3]; all True where an image is left whole."""
        n, height, width, _ = images.shape
        found = np.empty((n, height, width), bool)
        step = max(1, _CHUNK_PIXELS // (height * width))

        def segment(start: int) -> None:
            mask = shape.central_object(*self._rough(images[start:start + step]))
            share = mask.mean(axis=(1, 2))
            mask[(share < LEAST) | (share > MOST)] = True
            found[start:start + step] = mask

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
            list(threads.map(segment, range(0, n, step)))
        return found

    def filled(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Returns a copy of images uint8 [N,H,W,3] with the fill wherever masks bool [N,H,W] are False."""
        result = images.copy()
        for image, mask in zip(result, masks, strict=True):
            image[~mask] = self.fill
        return result

    def apply(self, images: ImageSet) -> Result:
        """Segments a set that is in memory.

        Memory: a copy of the images, a byte a pixel for the masks, and about 100 MB a thread.

        Raises:
          InputError: the images are read from disk batch by batch.
        """
        if not isinstance(images.images, np.ndarray):
            raise InputError(f"{_WHAT}: expected a set that is in memory, received {images.origin}, which is read "
                             "batch by batch; try segmenting it before, or fewer images")
        masks = self.masks(images.images)
        foreground = masks.mean(axis=(1, 2))
        segmented = dataclasses.replace(images, images=self.filled(images.images, masks))
        return Result(segmented, foreground, foreground == 1.0)

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of all that decides a mask and its fill."""
        whole = hashlib.sha256(_without_masks(self.spec).encode() + self.fill.tobytes())
        if self._seeds is not None:
            whole.update(self._seeds.features.astype("<f4").tobytes() + self._seeds.foreground.tobytes())
        return whole.hexdigest()

    def save(self, run_dir: pathlib.Path) -> None:
        """Writes `segment.npz` into a run's folder: the fill, and the seeds where there are any."""
        learned = self._seeds or nearest.Seeds(np.zeros((0, 5), np.float32), np.zeros(0, bool))
        write_atomically(run_dir / FILE, lambda file: np.savez(
            file, fill=self.fill, features=learned.features, foreground=learned.foreground))


def parse(text: str) -> None:
    """Checks the flag without data; InputError where it is wrong. An empty one is no segmentation."""
    if text:
        _bound(text)


def learn(text: str, images: ImageSet) -> Segmenter:
    """Makes the segmenter of a training.

    Args:
      text: the flag, not empty.
      images: the training part, in memory and as large as the model takes them.

    Raises:
      InputError: a bad spec, masks that cannot be used, or (knn without masks) images without clear cells.
    """
    name, values = _bound(text)
    if not isinstance(images.images, np.ndarray):
        raise InputError(f"{_WHAT}: expected a set that is in memory, received {images.origin}, which is read batch by "
                         "batch; try fewer images")
    learned = None
    if name == "knn":
        side = images.images.shape[1] if images.images.shape[1] == images.images.shape[2] else None
        learned = (seeds.from_set(images.images, _LEVEL) if values["masks"] is None else
                   seeds.from_files(values["masks"], side)[0])
        if len(learned.foreground) < values["k"]:
            raise InputError(f"{_WHAT}: knn expected at least k={values['k']} pixels in the masks, received "
                             f"{len(learned.foreground)}; try larger masks")
    return Segmenter(text, _fill(values["fill"], images.images), learned)


def load(run_dir: pathlib.Path, text: str) -> Segmenter:
    """Reads back the segmenter of a run.

    Args:
      run_dir: the run's folder.
      text: the run's flag, from its `model.json`.

    Raises:
      InputError: `segment.npz` is missing, damaged, or of another spec.
    """
    name, values = _bound(text)
    path = run_dir / FILE
    fill, features, foreground = npz.arrays(path, ("fill", "features", "foreground"), _LEARNED_BYTES).values()
    count = len(features)
    if (fill.shape != (3,) or fill.dtype != np.uint8 or features.shape != (count, 5) or features.dtype != np.float32
            or foreground.shape != (count,) or foreground.dtype != bool or not np.isfinite(features).all()
            or (count < values["k"] if name == "knn" else count)):
        raise InputError(f"{path}: expected what {text} has learned, received another file; try another run's folder")
    return Segmenter(text, fill, nearest.Seeds(features, foreground) if count else None)


def same(run: str, given: str) -> bool:
    """Returns whether two flags mean the same; where masks lie does not matter once they are learned."""
    return _without_masks(run) == _without_masks(given)


def _without_masks(text: str) -> str:
    if not text:
        return ""
    name, values = _bound(text)
    return f"{name}({', '.join(f'{key}={value}' for key, value in values.items() if key != 'masks')})"


def _bound(text: str) -> tuple[str, dict[str, Any]]:
    term = spec.only_term(spec.parse(text, what=_WHAT), what=_WHAT)
    entry: Entry = spec.lookup(term, SEGMENTERS, what=_WHAT)
    place = [param.name for param in entry.params].index("fill")
    values = spec.bind(dataclasses.replace(
        term, args=tuple(_text(value) if index == place else value for index, value in enumerate(term.args)),
        kwargs=tuple((key, _text(value) if key == "fill" else value) for key, value in term.kwargs)),
        entry.params, what=_WHAT)
    fill = values["fill"]
    if fill not in (*_FILLS, "mean") and not (fill.isdecimal() and int(fill) <= 255):
        raise InputError(f"{_WHAT}: {term.name}(fill) expected a grey level 0..255, 'white', 'black' or 'mean', "
                         f"received {spec.shorten(fill)!r}; try fill=255")
    if values.get("k", 1) % 2 == 0:
        raise InputError(f"{_WHAT}: knn(k) expected an odd number, so that no vote is a tie, received {values['k']}; "
                         f"try k={values['k'] + 1}")
    return term.name, values


def _text(value: spec.Value) -> spec.Value:
    """`fill` is a number or a name, quoted or not; its parameter is a text."""
    return value if value is None or isinstance(value, str) else str(value)


def _fill(fill: str, images: np.ndarray) -> np.ndarray:
    if fill != "mean":
        return np.full(3, _FILLS[fill] if fill in _FILLS else int(fill), np.uint8)
    few = np.unique(np.linspace(0, len(images) - 1, min(len(images), _GROUND_SAMPLES)).astype(np.int64))
    return np.rint(stain.ground(images[few]).mean(axis=0)).astype(np.uint8)


def _by_threshold(level: float) -> Rough:
    def rough(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        green, blue = stain.densities(images, stain.ground(images))
        return stain.stained(green, blue, level)[0], stain.covered(green)

    return rough


def _by_neighbours(table: nearest.Table) -> Rough:
    def rough(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bare = stain.ground(images)
        covered = stain.covered(stain.densities(images, bare)[0])
        return table(nearest.colours(images, bare)) & covered, covered

    return rough
