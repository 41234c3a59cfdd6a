"""Suite `policies`: whole augmentation policies, ours compiled and eager, against peers."""

import numpy as np
import tensorflow as tf

from benchmarks.peers import keras3
from benchmarks.timing import Contestant
from bloodcell import augment
from bloodcell.data import demo

BATCH, SIDE = 256, 96
POLICIES = {
    "randaugment(2, 9)": "randaugment(2, 9)",
    "v2s without augmix": "flip | rotate(180) | zoom(0.2) | randaugment(n=3, m=4) | oneof(gridmask, cutout(0.5)) | "
                          "oneof(channel_shuffle, channel_shift(0.3), hue(0.3))",
}


def _ours(case: str, text: str, images: np.ndarray, *, compiled: bool) -> Contestant:
    policy = augment.parse(text)

    def augmented(images: tf.Tensor, ids: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=epoch, seed=0)

    function = tf.function(augmented, jit_compile=True, autograph=False) if compiled else augmented
    held, ids = tf.constant(images), tf.range(len(images), dtype=tf.int64)
    return Contestant(case, "xla" if compiled else "eager", len(images),
                      lambda step: function(held, ids, tf.constant(step, tf.int64)).numpy())


def contestants() -> list[Contestant]:
    """Returns who takes part: a batch of 256 rendered cells at 96x96."""
    images, _ = demo.render(BATCH, seed=0, size=SIDE)
    ours = [_ours(case, text, images, compiled=compiled) for case, text in POLICIES.items()
            for compiled in (True, False)]
    return [*ours, Contestant("Keras 3 RandAugment(2)", "keras", 4 * BATCH,
                              keras3.randaugment(images, ops=2, batches=4))]
