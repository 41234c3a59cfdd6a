"""A policy in anybody's `tf.data` pipeline: one `map` over batches, compiled.

    python examples/tf_data_map.py

An image's parameters depend on (seed, epoch, its id) alone, so shuffling and batching change nothing: the last line
compares one image of one epoch with the pipeline's.
"""

import time

import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.data import demo

BATCH, SEED, EPOCHS = 32, 0, 4

policy = augment.parse("flip | rotate(180) | brightness(0.3) | cutout(0.4)@0.5")
images, labels = demo.render(128, seed=SEED)  # uint8 [128, 96, 96, 3]
ids = np.arange(len(images), dtype=np.int64)


@tf.function(jit_compile=True)
def transform(batch: tf.Tensor, batch_ids: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    """Returns uint8 images [B, 96, 96, 3] as float32 ones."""
    return policy(batch, batch_ids, epoch=epoch, seed=SEED)


def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns batches of one shape, as XLA compiles once for each: (images, labels, ids, epoch)."""
    rows = tf.data.Dataset.from_tensor_slices((images, labels, ids)).shuffle(len(images), seed=epoch)
    return rows.batch(BATCH, drop_remainder=True).map(lambda *batch: (*batch, epoch))


# One pipeline for all epochs is compiled once; the compiled program uses every core by itself.
pipeline = tf.data.Dataset.range(1, EPOCHS + 1).flat_map(one_epoch).map(
    lambda batch, label, batch_ids, epoch: (transform(batch, batch_ids, epoch), label, batch_ids, epoch)).prefetch(2)


def main() -> None:
    """Runs the epochs and compares one image with the policy alone."""
    kept, began = {}, time.perf_counter()
    for number, (batch, _, batch_ids, epoch) in enumerate(pipeline, start=1):
        kept.update({(int(epoch), int(i)): image for i, image in zip(batch_ids, batch.numpy(), strict=True)})
        if number % (len(images) // BATCH) == 0:
            seconds, began = time.perf_counter() - began, time.perf_counter()
            print(f"epoch {epoch}: {len(images) / seconds:,.0f} images/s{' (compiling)' if epoch == 1 else ''}")
    alone = policy(images[7:8], ids[7:8], epoch=2, seed=SEED).numpy()[0]
    same = np.mean(np.abs(alone - kept[2, 7]) > 1) < 0.001  # compiled and eager may round a mask's edge differently
    print(f"image 7 of epoch 2, alone and in the pipeline: {'the same' if same else 'different'}; "
          f"in epochs 2 and 3: {'the same' if np.array_equal(kept[2, 7], kept[3, 7]) else 'different'}")


if __name__ == "__main__":
    main()
