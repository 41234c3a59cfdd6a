"""Reads TFRecord files of encoded images by a glob: image/encoded, image/class/label, image/class/text, image/filename.

What belongs here: which files are one set, and what a set of records is called. Going through records is
`record_scan`'s business, keeping them in the files `records`', writing them `tfrecord_writer`'s.
"""

import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bloodcell.data import record_scan
from bloodcell.data.dataset import ImageSet, check_labels, check_left_out
from bloodcell.errors import InputError

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>[^/]*)", re.DOTALL)


def load(pattern: str, *, labelled: bool = True, image_size: int | None = None,
         class_names: tuple[str, ...] | None = None, origin: str = "", max_bad_images: int = 0,
         cache: str = "auto") -> ImageSet:
    """Reads all records of the files that match, in sorted order of the files.

    Every checksum is checked and every image is decoded once, whatever `cache` says.

    Args:
      pattern: a glob ("data/train-*.tfrecord") or a single file; local, or any file system that TensorFlow knows.
      labelled: whether labels are read; without, image/encoded is all that a record needs.
      image_size: the side in pixels to which images are brought (centred square, bicubic); None: all must be equal.
      class_names: the classes there are, where they are known already (see `check_labels`); None: image/class/text
        where every class has one.
      origin: what the user typed; the pattern where empty.
      max_bad_images: how many records may be left out because they cannot be used; `left_out` names them. Behind a
        damaged length a shard's rest cannot be found: it counts as the images that its bytes would hold.
      cache: "memory": decoded images are held in memory; "none": they stay in the files and are read when they are
        needed; "auto": in memory where they take less than a fourth of what is free.

    Returns:
      The set; `files` are image/filename, or "<shard>#<index>" where a record has none.

    Raises:
      InputError: no file matches, a shard of a numbered set is missing, more records than `max_bad_images` cannot be
        used, images of unequal size and no `image_size`, or labels with gaps.
    """
    shards = shards_of(pattern)
    found = record_scan.scan(shards, labelled=labelled, image_size=image_size, cache=cache, where=pattern)
    if found is None:
        raise InputError(f"{pattern}: expected at least one record, received none in {len(shards)} files")
    check_left_out(found.left_out, found.total, max_bad_images, pattern)
    labels: np.ndarray | None = None
    names = tuple(class_names or ())
    if labelled:
        labels, names = check_labels(found.labels, pattern, class_names)
        if class_names is None:
            names = _names(labels, found.texts, pattern) or names
    return ImageSet(found.images, labels, found.positions, names, origin or pattern, tuple(found.files),
                    tuple(found.left_out))


def shards_of(pattern: str) -> list[str]:
    """Returns the files that match, sorted; raises InputError where there is none, or a numbered set lacks one."""
    try:
        shards = sorted(tf.io.gfile.glob(pattern))
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())[:160]
        raise InputError(f"{pattern}: expected TFRecord files, received {reason}; try another folder") from None
    if not shards:
        raise InputError(f"{pattern}: expected TFRecord files, received no match; try the pattern with ls")
    _check_complete(shards)
    return shards


def _check_complete(shards: Sequence[str]) -> None:
    """Checks that of files named -00000-of-00007 all seven are there: what writes them renames them all at the end."""
    counts: dict[tuple[str, str], str] = {}
    for shard in shards:
        match = _SHARD.fullmatch(shard)
        if match is None:
            continue
        key = match["stem"], match["rest"]
        if counts.setdefault(key, match["count"]) != match["count"]:
            raise InputError(f"{shard}: expected shards of one set, received some of {int(counts[key])} and some of "
                             f"{int(match['count'])}; try removing the older ones")
    for (stem, rest), count in counts.items():
        missing = [number for number in range(int(count))
                   if not tf.io.gfile.exists(f"{stem}-{number:05d}-of-{count}{rest}")]
        if missing:
            raise InputError(f"{stem}-*-of-{count}{rest}: expected {int(count)} shards, received {len(missing)} fewer, "
                             f"without {os.path.basename(stem)}-{missing[0]:05d}-of-{count}{rest}; the set was not "
                             "written or copied to its end, try doing that again")


def _names(labels: np.ndarray, texts: Sequence[str], pattern: str) -> tuple[str, ...] | None:
    """The classes' names by image/class/text; None unless every class has one."""
    names: dict[int, str] = {}
    for label, text in zip(labels.tolist(), texts, strict=True):
        if text and names.setdefault(label, text) != text:
            raise InputError(f"{pattern}: expected one image/class/text per label, received '{names[label]}' and "
                             f"'{text}' for label {label}; try writing the records again")
    if len(names) != int(labels.max()) + 1:
        return None
    if len(set(names.values())) != len(names):
        raise InputError(f"{pattern}: expected a different image/class/text per label, received the same for two; "
                         "try writing the records again")
    return tuple(names[label] for label in range(len(names)))
