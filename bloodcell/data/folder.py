"""Reads folders of images: one folder per class, train/ val/ test/ holding such, or (unlabelled) any tree of images.

Images are jpg, jpeg, png or bmp files, decoded by TensorFlow. Records and arrays do not belong here.
"""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import ImageSet, check_size
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError, did_you_mean

PARTS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

_CHUNK = 256  # images decoded ahead of being copied to their place


def parts(path: pathlib.Path) -> tuple[str, ...]:
    """Returns which of train, val and test the folder holds as folders of class folders; () where it has no train/."""
    found = tuple(part for part in PARTS if (path / part).is_dir() and _folders(path / part))
    return found if "train" in found else ()


def load(path: pathlib.Path, *, part: str = "train", labelled: bool = True, image_size: int | None = None,
         class_names: tuple[str, ...] | None = None, origin: str = "") -> ImageSet:
    """Reads the images of a folder, in sorted order.

    Args:
      path: the folder.
      part: which of its train/ val/ test/; a folder without these is one whole and is given whatever the part.
      labelled: True: one folder per class, images at any depth below it. False: every image at any depth below `path`.
      image_size: the side in pixels to which images are brought (centred square, bicubic); None: all must be equal.
      class_names: the classes there are, where they are known already; None: the sorted folder names (of train/).
      origin: what the user typed; the path where empty.

    Returns:
      The set; `files` are paths below the folder, with "/".

    Raises:
      InputError: no image, a class without one, images of unequal size and no `image_size`, or images that cannot be
        decoded (the line counts them and names the first).
    """
    root = path
    if labelled and parts(path):
        root = path / part
        if not root.is_dir():
            raise InputError(f"{path}: expected a folder {part}/ beside train/, received none; try --split")
        if class_names is None:
            class_names = tuple(_folders(path / "train"))
    labels = None
    if labelled:
        files, labels, names = _labelled_files(root, class_names)
    else:
        files, names = _images_below(root), tuple(class_names or ())
        if not files:
            raise InputError(f"{root}: expected images ({', '.join(SUFFIXES)}), received none; try another folder")
    images = _decode_all(root, files, image_size)
    return ImageSet(images, labels, np.arange(len(files), dtype=np.int64), names, origin or str(path), tuple(files))


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _images_below(path: pathlib.Path) -> list[str]:
    """Names of all images below a folder, relative to it with "/", sorted; hidden ones (.name, __MACOSX) left out."""
    found = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith((".", "__"))]
        found += [pathlib.Path(folder, name).relative_to(path).as_posix() for name in names
                  if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)


def _labelled_files(root: pathlib.Path,
                    class_names: Sequence[str] | None) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    folders = _folders(root)
    stray = sorted(entry.name for entry in root.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()
                   and not entry.name.startswith("."))
    if stray or not folders:
        received = f"{len(stray)} images without one (first {stray[0]})" if stray else "no folder at all"
        raise InputError(f"{root}: expected one folder of images per class, received {received}; "
                         "try moving them into folders (unlabelled images: --mode=predict)")
    names = tuple(class_names or folders)
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        if folder not in names:
            raise InputError(f"{root}: expected folders named after the classes, received '{folder}'; "
                             f"{did_you_mean(folder, names)}")
        below = [f"{folder}/{name}" for name in _images_below(root / folder)]
        if not below:
            raise InputError(f"{root}: expected images ({', '.join(SUFFIXES)}) of every class, received none of class "
                             f"'{folder}'; try removing the folder")
        files += below
        labels += [names.index(folder)] * len(below)
    return files, np.asarray(labels, np.int64), names


def _decode(path: str) -> np.ndarray | str:
    """Returns uint8 [H,W,3], or the reason why there is none."""
    try:
        with tf.device("CPU:0"):
            return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False).numpy()
    except (tf.errors.OpError, ValueError) as error:
        reason = " ".join((getattr(error, "message", "") or str(error)).split())
        return reason.split("{{")[0].split(" [Op:")[0][:120] or "no reason given"


def _decode_all(root: pathlib.Path, files: Sequence[str], image_size: int | None) -> np.ndarray:
    images: np.ndarray | None = None
    unreadable: list[tuple[str, str]] = []
    first = unequal = ""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(files), _CHUNK):
            chunk = files[start:start + _CHUNK]
            decoded = threads.map(_decode, [str(root / name) for name in chunk])
            for index, (name, result) in enumerate(zip(chunk, decoded, strict=True), start):
                if isinstance(result, str):
                    unreadable.append((name, result))
                    continue
                image = result if image_size is None else to_square(result[None], image_size)[0]
                if images is None:
                    shape = (len(files), *image.shape)
                    check_size(shape, str(root))
                    images, first = np.empty(shape, np.uint8), f"{name} ({image.shape[0]}x{image.shape[1]})"
                if image.shape == images.shape[1:]:
                    images[index] = image
                elif not unequal:
                    unequal = f"{name} ({image.shape[0]}x{image.shape[1]})"
    if unreadable:
        raise InputError(f"{root}: expected whole images, received {len(unreadable)} of {len(files)} that cannot be "
                         f"read, first {unreadable[0][0]} ({unreadable[0][1]}); try removing or replacing them")
    if unequal:
        raise InputError(f"{root}: expected images of one size, received {first} and {unequal}; try --image_size")
    assert images is not None  # `files` is never empty: no image at all is an error before
    return images
