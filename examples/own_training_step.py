"""A policy inside a training step of one's own, compiled whole; and its draws, inspected, changed and replayed.

    python examples/own_training_step.py

The draws of (seed, epoch, id) can be had again at any time, so what an image met need not be written down.
"""

import keras
import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.data import demo

SIZE, SEED, BATCH = 48, 0, 64

policy = augment.parse("rotate(180) | oneof(cutout(0.3), brightness(0.2))@0.5")
keras.utils.set_random_seed(SEED)
model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1),
                          keras.layers.AveragePooling2D(4), keras.layers.Flatten(), keras.layers.Dense(8)])
optimizer = keras.optimizers.Adam(1e-2)
optimizer.build(model.trainable_variables)


@tf.function(jit_compile=True)
def step(images: tf.Tensor, labels: tf.Tensor, ids: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    """Augments, learns and returns the mean loss, in one program."""
    with tf.GradientTape() as tape:
        logits = model(policy(images, ids, epoch=epoch, seed=SEED), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
    return loss


def main() -> None:
    """Trains for ten epochs, then looks at what one image met in the third."""
    images, labels = demo.render(256, seed=SEED, size=SIZE)
    ids = np.arange(len(images), dtype=np.int64)
    for epoch in range(1, 11):
        order = np.random.default_rng([SEED, epoch]).permutation(len(ids)).reshape(-1, BATCH)
        losses = [step(images[rows], labels[rows], ids[rows], tf.constant(epoch, tf.int64)) for rows in order]
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}")

    draws = policy.draw(ids[5:6], epoch=3, seed=SEED)  # {place in the policy: {name: [1]}}
    for place, drawn in draws.items():
        values = ", ".join(f"{name} {value.numpy()[0]:.3g}" for name, value in drawn.items() if name != "on")
        print(f"image 5, epoch 3, {place}: {values if drawn['on'].numpy()[0] else 'not drawn'}")
    seen = policy(images[5:6], ids[5:6], epoch=3, seed=SEED)
    print("replayed:", "the same image" if np.array_equal(policy.apply(images[5:6], draws), seen) else "another image")
    draws["1.rotate"]["degrees"] = tf.constant([90.0])
    print("at 90 degrees:", "the same image" if np.array_equal(policy.apply(images[5:6], draws), seen) else
          "another image")


if __name__ == "__main__":
    main()
