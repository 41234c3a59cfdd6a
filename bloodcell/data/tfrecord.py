"""Reads TFRecord files of encoded images by a glob: image/encoded, image/class/label, image/class/text, image/filename.

Writing records does not belong here.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from bloodcell.data.dataset import ImageSet, check_labels, check_size
from bloodcell.data.resize import to_square
from bloodcell.errors import InputError


def load(pattern: str, *, labelled: bool = True, image_size: int | None = None,
         class_names: tuple[str, ...] | None = None, origin: str = "") -> ImageSet:
    """Reads all records of the files that match, in sorted order of the files.

    Args:
      pattern: a glob ("data/train-*.tfrecord") or a single file; local, or any file system that TensorFlow knows.
      labelled: whether labels are read; without, image/encoded is all that a record needs.
      image_size: the side in pixels to which images are brought (centred square, bicubic); None: all must be equal.
      class_names: the classes there are, where they are known already (see `check_labels`); None: image/class/text
        where every class has one.
      origin: what the user typed; the pattern where empty.

    Returns:
      The set; `files` are image/filename, or "<shard>#<index>" where a record has none.

    Raises:
      InputError: no file matches, a file is damaged, a record lacks a feature or holds an image that cannot be decoded,
        images of unequal size and no `image_size`, or labels with gaps.
    """
    try:
        shards = sorted(tf.io.gfile.glob(pattern))
    except tf.errors.OpError as error:
        raise InputError(f"{pattern}: expected TFRecord files, received {_reason(error)}; try another folder") from None
    if not shards:
        raise InputError(f"{pattern}: expected TFRecord files, received no match; try the pattern with ls")
    counts = [_count(shard) for shard in shards]
    n = sum(counts)
    if not n:
        raise InputError(f"{pattern}: expected at least one record, received none in {len(shards)} files")
    images: np.ndarray | None = None
    labels = np.zeros(n, np.int64)
    texts: list[str] = []
    files: list[str] = []
    for shard, count in zip(shards, counts, strict=True):
        for index, record in enumerate(_records(shard, count, labelled)):
            image = record["image"]
            if image_size is not None:
                image = to_square(image[None], image_size)[0]
            position = len(files)
            name = record["filename"].decode(errors="replace") or f"{shard.rsplit('/', 1)[-1]}#{index}"
            if images is None:
                shape = (n, *image.shape)
                check_size(shape, shard)
                images = np.empty(shape, np.uint8)
            if image.shape != images.shape[1:]:
                raise InputError(f"{shard}: expected images of one size, received {files[0]} ({_size(images[0])}) and "
                                 f"{name} ({_size(image)}); try --image_size")
            images[position] = image
            labels[position] = record["label"]
            texts.append(record["text"].decode(errors="replace"))
            files.append(name)
    assert images is not None  # n is at least 1, and a shard that ends early is an error in `_records`
    ids = np.arange(n, dtype=np.int64)
    if not labelled:
        return ImageSet(images, None, ids, tuple(class_names or ()), origin or pattern, tuple(files))
    labels, names = check_labels(labels, pattern, class_names)
    if class_names is None:
        names = _names(labels, texts, pattern) or names
    return ImageSet(images, labels, ids, names, origin or pattern, tuple(files))


def _reason(error: Exception) -> str:
    text = " ".join((getattr(error, "message", "") or str(error)).split())
    # the error of a tf.data stage opens with its node's name in braces; people need what follows
    return text.rsplit("}} ", 1)[-1].split(" [Op:")[0].split(" [[{{")[0][:160]


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _count(shard: str) -> int:
    """The number of records; reading them all also checks every checksum before an image takes memory."""
    try:
        return int(tf.data.TFRecordDataset(shard).reduce(np.int64(0), lambda total, _: total + 1))
    except tf.errors.OpError as error:
        raise InputError(f"{shard}: expected a whole TFRecord file, received a damaged one ({_reason(error)}); "
                         "try copying it again") from None


def _records(shard: str, count: int, labelled: bool) -> Iterator[dict]:
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64, **({} if labelled else {"default_value": 0})),
        "image/class/text": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "image/filename": tf.io.FixedLenFeature([], tf.string, default_value=""),
    }

    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(serialized, features)
        return {"image": tf.io.decode_image(example["image/encoded"], channels=3, expand_animations=False),
                "label": example["image/class/label"], "text": example["image/class/text"],
                "filename": example["image/filename"]}

    done = 0
    try:
        records = tf.data.TFRecordDataset(shard).map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        for record in records.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            yield record
            done += 1
    except tf.errors.OpError as error:
        raise InputError(f"{shard}: expected records with image/encoded (jpg, png, bmp) and image/class/label, "
                         f"received record {done} of {count} ({_reason(error)}); try writing it again") from None


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
