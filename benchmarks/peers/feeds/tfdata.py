"""`tf.data` as its guide has it: shuffle, map in parallel, batch, prefetch. Alone, and under the two peers that map.

It works ahead, and must not do so on another contestant's time: each call has an iterator of its own, and the source,
not the result, ends after the last image. Automatic tuning is off and the parallelism that of the cores instead: an
iterator that is tuned may end seconds after its last element, which would count against short runs.
"""

from collections.abc import Callable, Iterator

import tensorflow as tf

from benchmarks.peers import CORES
from benchmarks.peers.feeds import SHUFFLED, Batch, Feed, Source

Function = Callable[[tf.Tensor], tf.Tensor]
_AHEAD = 4  # batches that wait, as in our own pipeline
_FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string),
             "image/class/label": tf.io.FixedLenFeature([], tf.int64)}


def start(source: Source, *, batch: int, augment: bool) -> Feed:
    """Returns the pipeline that reads, decodes and batches; see `feeds.Implementation`. It knows no augmentation."""
    if augment:
        raise ValueError("augment: expected False for tf.data alone, received True")
    return feed(source, batch=batch)


def feed(source: Source, *, batch: int, of_image: Function | None = None) -> Feed:
    """Returns the pipeline, with a function of an image, uint8 [H, W, 3], after decoding."""
    wanted = tf.Variable(0, dtype=tf.int64)
    if source.images is None:
        raw: tf.data.Dataset = tf.data.TFRecordDataset(list(source.shards))
    else:  # captured once; a constant of the graph would be copied into it
        with tf.device("CPU:0"):
            images, labels = tf.constant(source.images), tf.constant(source.labels)
        raw = tf.data.Dataset.range(len(source.labels))

    def decoded(element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if source.images is None:
            example = tf.io.parse_single_example(element, _FEATURES)
            image = tf.io.decode_image(example["image/encoded"], channels=3, expand_animations=False)
            image.set_shape([None, None, 3])
            label = example["image/class/label"]
        else:
            image, label = images[element], labels[element]
        return (image if of_image is None else of_image(image)), label

    def some(_: tf.Tensor) -> tf.data.Dataset:
        return raw.shuffle(SHUFFLED).repeat().take(wanted)

    batches = tf.data.Dataset.range(1).flat_map(some).map(decoded, num_parallel_calls=CORES)
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = batches.batch(batch, drop_remainder=True).prefetch(_AHEAD).with_options(options)

    def call(count: int) -> Iterator[Batch]:
        wanted.assign(count * batch)
        return iter(batches.as_numpy_iterator())

    return call
