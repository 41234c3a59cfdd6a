"""Turns what the user typed after --data, --val_data or --test_data into images: the one place that knows all sources.

How one kind of source is read belongs to its own file (`npz`, `folder`, `tfrecord`, `bloodmnist`, `demo`).
"""

import dataclasses
import os
import pathlib

import numpy as np

from bloodcell.data import bloodmnist, folder, npz, tfrecord
from bloodcell.data.audit import cleaning
from bloodcell.data.dataset import ImageSet
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError, did_you_mean, shown

PARTS = ("train", "val", "test")

_DEMO_SIZE = 96  # pixels a side, where nothing else is asked


def load(source: str, *, part: str = "train", labelled: bool = True, image_size: int | None = None, seed: int = 0,
         class_names: tuple[str, ...] | None = None, max_bad_images: int = 0, cache: str = "auto") -> ImageSet:
    """Reads one part of a source.

    Args:
      source: "demo", a .npz file, a folder, a TFRecord glob, or "bloodmnist[:28/64/128/224]".
      part: "train", "val" or "test"; a source that has no parts of its own is given whole, whatever the part.
      labelled: False: labels are neither needed nor read (a folder may be flat).
      image_size: the side in pixels to which all images are brought (centred square, bicubic); None: as they are.
      seed: of the demo renderer.
      class_names: the classes there are, where they are known already (the training set's, a checkpoint's): labels and
        folder names must fit them, and a class may be without images. None: the source says them.
      max_bad_images: how many encoded images of a folder or of records may be left out because they cannot be used; the
        set's `left_out` names them.
      cache: where the images of records are kept (`dataset.CACHES`); those of other sources are in memory.

    Raises:
      InputError: the source is none of these, or is damaged, or does not hold what it must.
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {PARTS}, received {part!r}")
    kind, path = kind_of(source)
    if kind == "demo":
        images = _demo(part, labelled=labelled, image_size=image_size, seed=seed, class_names=class_names)
    elif kind == "tfrecord":
        images = tfrecord.load(str(path), labelled=labelled, image_size=image_size, class_names=class_names,
                               origin=source, max_bad_images=max_bad_images, cache=cache)
        images = dataclasses.replace(images, audited=cleaning.is_result(images, path.parent))
    elif kind == "folder":
        images = folder.load(path, part=part, labelled=labelled, image_size=image_size, class_names=class_names,
                             origin=source, max_bad_images=max_bad_images)
    else:
        path = bloodmnist.download(source) if kind == "bloodmnist" else path
        images = npz.load(path, part=part, labelled=labelled, class_names=class_names, origin=source)
    if image_size is not None and isinstance(images.images, np.ndarray):
        images = dataclasses.replace(images, images=to_square(images.images, image_size))
    return images


def load_parts(source: str, *, image_size: int | None = None, seed: int = 0,
               max_bad_images: int = 0, cache: str = "auto") -> dict[str, ImageSet]:
    """Reads every part that the source itself has: "train" always, "val" and "test" where they are.

    All parts share the classes of "train". Arguments and errors as for `load`.
    """
    kind, path = kind_of(source)
    own: tuple[str, ...] = ()
    if kind == "demo":
        own = PARTS
    elif kind == "folder":
        own = folder.parts(path)
    elif kind != "tfrecord":
        own = npz.parts(bloodmnist.download(source) if kind == "bloodmnist" else path)
    loaded = {"train": load(source, part="train", image_size=image_size, seed=seed, max_bad_images=max_bad_images,
                            cache=cache)}
    for part in PARTS[1:]:
        if part in own:
            loaded[part] = load(source, part=part, image_size=image_size, seed=seed,
                                class_names=loaded["train"].class_names, max_bad_images=max_bad_images)
    return loaded


def kind_of(source: str) -> tuple[str, pathlib.Path]:
    """Returns which kind of source it is ("demo", "bloodmnist", "npz", "folder" or "tfrecord"), and its path.

    Looks at the name and at what lies there, reads nothing; raises InputError where it is none of them.
    """
    if source == "demo" or source.partition(":")[0] == "bloodmnist":
        return source.partition(":")[0], pathlib.Path()
    if shown(source) != source or len(source) > 4095:  # no path of Linux is longer
        raise InputError(f"--data: expected a name of printable UTF-8, received '{shown(source)[:200]}' of "
                         f"{len(source)} characters; try renaming it")
    path = pathlib.Path(os.path.expanduser(source))  # pathlib's own raises over ~somebody who is not here
    if source.lower().endswith(".npz"):
        return "npz", path
    if source.strip() and os.path.isdir(path):  # Path("") would be the working folder
        return "folder", path
    if source.lower().endswith(".tfrecord") or any(letter in source for letter in "*?[") or ".tfrecord" in path.name:
        return "tfrecord", path
    received = "a file of another kind" if os.path.exists(path) else "a name that does not exist"
    near = did_you_mean(source, ("demo", "bloodmnist"))
    raise InputError(f"--data: expected demo, a .npz file, a folder, a .tfrecord glob or bloodmnist[:28/64/128/224], "
                     f"received '{source}' ({received}); {near if near.startswith('did') else 'try its full path'}")


def _demo(part: str, *, labelled: bool, image_size: int | None, seed: int,
          class_names: tuple[str, ...] | None) -> ImageSet:
    from bloodcell.data import demo  # here: the renderer's tables are needed by this source alone

    names = tuple(demo.CLASS_NAMES)
    if class_names is not None and tuple(class_names) != names:
        raise InputError(f"demo: expected the classes {', '.join(class_names)}, received {', '.join(names)}; "
                         "try data with the same classes")
    count = demo.PART_SIZES[part]
    pictures, labels = demo.render(count, seed=seed, part=part, size=image_size or _DEMO_SIZE)
    return ImageSet(pictures, np.asarray(labels, np.int64) if labelled else None, np.arange(count, dtype=np.int64),
                    names, "demo", tuple(f"demo/{part}#{index}" for index in range(count)), audited=True)
