"""Images for the augmentation tests: cells, random, constant and extreme ones."""

import pathlib

import numpy as np
import tensorflow as tf

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "pbc96"


def cells(count: int) -> np.ndarray:
    """Returns uint8 [count, 96, 96, 3]: real cells, or rendered ones where the real ones are missing."""
    files = sorted(SHARED.glob("val-*.tfrecord"))
    if files:
        feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        records = tf.data.TFRecordDataset([str(file) for file in files]).take(count)
        return np.stack([tf.io.decode_jpeg(tf.io.parse_single_example(record, feature)["image/encoded"]).numpy()
                         for record in records])
    from bloodcell.data import demo
    return demo.render(count, seed=0)[0]


def hard(count: int) -> np.ndarray:
    """Returns uint8 [count, 96, 96, 3]: noise, constants, two-level images and single odd pixels, in turn."""
    generator = np.random.default_rng(7)
    images = generator.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    for index in range(count):
        kind = index % 5
        if kind == 1:
            images[index] = generator.integers(0, 256, 3)
        elif kind == 2:
            images[index] = np.where(images[index] > 127, 255, 0)
        elif kind == 3:
            images[index] = images[index] // 8 + 100
        elif kind == 4:
            images[index] = (0, 255, 128)
            images[index, 5, 7] = (255, 0, 129)
    return images
