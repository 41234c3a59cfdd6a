"""A policy as a layer of a Keras model: `fit` augments, `evaluate` and `predict` do not, `save` keeps the policy.

    python examples/keras_fit.py

The layer numbers the images that it sees; `images_seen` is saved with the weights, so a loaded
model goes on with new draws.
"""

import pathlib
import tempfile

import keras
import numpy as np

from bloodcell import augment
from bloodcell.data import demo

SIZE, SEED = 48, 0


def build() -> keras.Model:
    """Returns a small network from uint8 images [B, 48, 48, 3] to 8 logits."""
    layers: list[keras.Layer] = [keras.Input((SIZE, SIZE, 3), dtype="uint8"),
                                 augment.Layer("flip | rotate(180) | zoom(0.1) | brightness(0.1)@0.5", seed=SEED),
                                 keras.layers.Rescaling(1 / 127.5, offset=-1)]
    for filters in (16, 32, 64):
        layers += [keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
                   keras.layers.BatchNormalization(momentum=0.8), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8)])


def main() -> None:
    """Fits, saves, loads and evaluates."""
    keras.utils.set_random_seed(SEED)
    images, labels = demo.render(512, seed=SEED, size=SIZE)
    test_images, test_labels = demo.render(128, seed=SEED, part="test", size=SIZE)
    model = build()
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    history = model.fit(images, labels, batch_size=32, epochs=8, verbose=0).history
    for epoch, (loss, accuracy) in enumerate(zip(history["loss"], history["accuracy"], strict=True), start=1):
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy on augmented images {accuracy:.3f}")
    accuracy = model.evaluate(test_images, test_labels, verbose=0)[1]
    commonest = np.bincount(test_labels).max() / len(test_labels)
    print(f"test accuracy: {accuracy:.3f} (the commonest class alone: {commonest:.3f})")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
    print(f"loaded: {again.layers[0].get_config()['policy']}, {int(again.layers[0].images_seen):,} images seen")


if __name__ == "__main__":
    main()
