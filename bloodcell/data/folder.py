"""Reads folders of images: one folder per class, train/ val/ test/ holding such, or (unlabelled) any tree of images.

Images are jpg, jpeg, png or bmp files by their names; `decode` looks at what they hold. Records and arrays do not
belong here.
"""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bloodcell.data.dataset import ImageSet, UnequalSizes, check_left_out, check_size
from bloodcell.data.decode import decode_file
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError, did_you_mean, shown

PARTS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

_CHUNK, _CHUNK_BYTES = 256, 2**28  # images decoded ahead of being copied to their place, and their pixels

_Decoded = np.ndarray | tuple[int, int] | str  # an image, height and width of one of another size, or a reason


def parts(path: pathlib.Path) -> tuple[str, ...]:
    """Returns which of train, val and test the folder holds as folders of class folders; () where it has no train/."""
    found = tuple(part for part in PARTS if os.path.isdir(path / part) and _folders(path / part))
    return found if "train" in found else ()


def load(path: pathlib.Path, *, part: str = "train", labelled: bool = True, image_size: int | None = None,
         class_names: tuple[str, ...] | None = None, origin: str = "", max_bad_images: int = 0) -> ImageSet:
    """Reads the images of a folder, in sorted order.

    Args:
      path: the folder.
      part: which of its train/ val/ test/; a folder without these is one whole and is given whatever the part.
      labelled: True: one folder per class, images at any depth below it. False: every image at any depth below `path`.
      image_size: the side in pixels to which images are brought (centred square, bicubic); None: all must be equal.
      class_names: the classes there are, where they are known already; None: the sorted folder names (of train/).
      origin: what the user typed; the path where empty.
      max_bad_images: how many images may be left out, because they cannot be read or decoded.

    Returns:
      The set; `files` are paths below the folder, with "/" (`errors.shown`), and `left_out` names what is not in it.

    Raises:
      InputError: no image, a class without one, images of unequal size and no `image_size`, a folder that cannot be
        read, or too many images that cannot be used (the line counts them and names the first).
    """
    root = path
    known = class_names is not None  # then a class may be without images
    if labelled and parts(path):
        root, known = path / part, known or part != "train"
        if not os.path.isdir(root):
            raise InputError(f"{path}: expected a folder {part}/ beside train/, received none; try --split")
        if class_names is None:
            class_names = tuple(shown(name) for name in _folders(path / "train"))
    labels = None
    if labelled:
        files, labels, names = _labelled_files(root, class_names)
    else:
        files, names = _images_below(root), tuple(class_names or ())
        if not files:
            raise InputError(f"{root}: expected images ({', '.join(SUFFIXES)}), received none; try another folder")
    images, left_out = _decode_all(root, files, image_size, max_bad_images)
    bad = {name for name, _ in left_out}
    kept = np.asarray([index for index, name in enumerate(files) if name not in bad], np.int64)
    if labels is not None:
        labels = labels[kept]
        lost = [name for label, name in enumerate(names) if not known and label not in labels]
        if lost:
            raise InputError(f"{root}: expected images of every class, received none of class '{lost[0]}' that can be "
                             "used; try replacing them, or removing the folder")
    return ImageSet(images, labels, np.arange(len(kept), dtype=np.int64), names, origin or str(path),
                    tuple(shown(files[index]) for index in kept),
                    tuple((shown(name), reason) for name, reason in left_out))


def _entries(path: pathlib.Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> InputError:
    return InputError(f"{shown(os.fsdecode(error.filename or ''))}: expected a folder that can be read, received "
                      f"'{error.strerror or error}'; try another folder, or its permissions")


def _folders(path: pathlib.Path) -> list[str]:
    return [name for name in _entries(path) if os.path.isdir(path / name) and not name.startswith((".", "__"))]


def files_below(path: pathlib.Path) -> list[str]:
    """Returns the names of all files below a folder, relative to it with "/", sorted.

    Hidden ones (.name, __MACOSX) are left out, and links to folders are not followed.

    Raises:
      InputError: a folder that cannot be read, or hundreds of levels of them.
    """
    def refuse(error: OSError) -> None:  # os.walk would pass over it, and its images would be lost without a word
        raise _unreadable(error)

    found = []
    try:
        for folder, below, names in os.walk(path, onerror=refuse):
            below[:] = [name for name in below if not name.startswith((".", "__"))]
            inside = pathlib.Path(folder).relative_to(path).as_posix()
            found += [name if inside == "." else f"{inside}/{name}" for name in names if not name.startswith(".")]
    except RecursionError:  # until Python 3.11, os.walk takes a frame a level
        raise InputError(f"{path}: expected folders a few levels deep, received hundreds; try another folder") from None
    return sorted(found)


def _images_below(path: pathlib.Path) -> list[str]:
    return [name for name in files_below(path) if name.lower().endswith(SUFFIXES)]


def _labelled_files(root: pathlib.Path,
                    class_names: Sequence[str] | None) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    folders = _folders(root)
    stray = [name for name in _entries(root) if name.lower().endswith(SUFFIXES) and not name.startswith(".")
             and not os.path.isdir(root / name)]
    if stray or not folders:
        received = f"{len(stray)} images without one (first {shown(stray[0])})" if stray else "no folder at all"
        raise InputError(f"{root}: expected one folder of images per class, received {received}; "
                         "try moving them into folders (unlabelled images: --mode=predict)")
    names = tuple(class_names or (shown(name) for name in folders))
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        if shown(folder) not in names:
            raise InputError(f"{root}: expected folders named after the classes, received '{shown(folder)}'; "
                             f"{did_you_mean(shown(folder), names)}")
        below = [f"{folder}/{name}" for name in _images_below(root / folder)]
        if not below:
            raise InputError(f"{root}: expected images ({', '.join(SUFFIXES)}) of every class, received none of class "
                             f"'{shown(folder)}'; try removing the folder")
        files += below
        labels += [names.index(shown(folder))] * len(below)
    return files, np.asarray(labels, np.int64), names


def _decode_all(root: pathlib.Path, files: Sequence[str], image_size: int | None,
                max_bad_images: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Returns the images that can be used, in order, and name and reason of the others."""
    side = None if image_size is None else (image_size, image_size)

    def decoded(name: str) -> _Decoded:
        image = decode_file(root / name)
        if isinstance(image, str):
            return image
        if image_size is not None:
            return to_square(image[None], image_size)[0]
        # an image of another size is an error in the end: its pixels must not wait for it beside 255 others
        return image if side in (None, image.shape[:2]) else image.shape[:2]

    left_out: list[tuple[str, str]] = []
    images: np.ndarray | None = None
    count = 0
    first = unequal = ""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        start = 0
        while start < len(files):
            # one by one until the first that can be used has said what size all have
            ahead = min(_CHUNK, _CHUNK_BYTES // (3 * side[0] * side[1])) if side else 1
            chunk = files[start:start + ahead]
            start += len(chunk)
            for name, result in zip(chunk, threads.map(decoded, chunk), strict=True):
                if isinstance(result, str):
                    left_out.append((name, result))
                elif isinstance(result, tuple):
                    unequal = unequal or f"{shown(name)} ({result[0]}x{result[1]})"
                else:
                    if images is None:
                        side = (result.shape[0], result.shape[1])
                        shape = (len(files), *result.shape)
                        check_size(shape, str(root))
                        images, first = np.empty(shape, np.uint8), f"{shown(name)} ({side[0]}x{side[1]})"
                    images[count] = result
                    count += 1
    check_left_out([(shown(name), reason) for name, reason in left_out], len(files), max_bad_images, str(root))
    if unequal:
        raise UnequalSizes(f"{root}: expected images of one size, received {first} and {unequal}; try --image_size")
    assert images is not None  # `files` is never empty, and `check_left_out` lets no set go in which all are bad
    return images[:count], left_out
