"""A set in TFRecord shards as every pipeline wants to find it: the shards, and a file for each image."""

import pathlib

import numpy as np
import tensorflow as tf

from benchmarks.peers.feeds import Source


def encoded(shards: list[str], folder: pathlib.Path | None = None) -> Source:
    """Returns the shards as a source.

    Args:
      shards: TFRecord files of image/encoded and image/class/label.
      folder: where each image is written to a file of its own, byte by byte the record's; None: there are no files.
    """
    labels, files = [], []
    if folder is not None:
        folder.mkdir(parents=True)
    for number, record in enumerate(tf.data.TFRecordDataset(shards).as_numpy_iterator()):
        features = tf.train.Example.FromString(record).features.feature
        labels.append(features["image/class/label"].int64_list.value[0])
        if folder is not None:
            files.append(folder / f"{number:06d}")  # every library looks at the bytes, not at the name
            files[-1].write_bytes(features["image/encoded"].bytes_list.value[0])
    return Source(np.array(labels, np.int64), tuple(shards), tuple(map(str, files)))
