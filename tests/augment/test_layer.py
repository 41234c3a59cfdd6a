"""The layer: augments while training, passes otherwise, counts its images, and works in jit, fit, tf.data and files."""

import pathlib
import subprocess
import sys

import cells
import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPEC = "flip | rotate(180)@0.5 | channel_shift(0.2)"
SHORT = "channel_shift(0.2)"  # for what is compiled
IMAGES = cells.cells(8)[:, ::3, ::3]
IDS = np.arange(8, dtype=np.int64)


def by_policy(ids, epoch=0, seed=0, spec=SPEC, images=IMAGES):
    return augment.parse(spec)(tf.constant(images), tf.constant(ids), epoch=epoch, seed=seed).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_outside_training_the_images_pass_in_the_compute_dtype(dtype):
    layer = augment.Layer(SPEC)
    images = IMAGES.astype(dtype)
    np.testing.assert_array_equal(layer(images), IMAGES.astype(np.float32))
    np.testing.assert_array_equal(layer(images, training=False).numpy(), IMAGES.astype(np.float32))
    assert int(layer.images_seen) == 0


def test_in_training_each_image_is_numbered_and_gets_what_the_policy_gives_that_number():
    layer = augment.Layer(SPEC, seed=5)
    first = layer(IMAGES[:3], training=True).numpy()
    np.testing.assert_array_equal(first, by_policy(IDS[:3], seed=5, images=IMAGES[:3]))
    np.testing.assert_array_equal(layer(IMAGES, training=True).numpy(), by_policy(IDS + 3, seed=5))
    assert int(layer.images_seen) == 11


def test_with_ids_and_epochs_it_is_the_policy_and_counts_nothing():
    layer = augment.Layer(SPEC, seed=1)
    ids = IDS[::-1].copy() + 100
    for epoch in (np.int64(4), np.full(8, 4, np.int64)):
        given = layer({"image": IMAGES, "id": ids, "epoch": epoch}, training=True)
        np.testing.assert_array_equal(given.numpy(), by_policy(ids, epoch=4, seed=1))
    assert int(layer.images_seen) == 0


def test_floats_are_rounded_to_the_nearest_level_and_clipped():
    layer = augment.Layer("invert")
    floats = np.array([[-3.0, 0.49, 0.51], [254.4, 254.6, 300.0]], np.float32).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(layer(floats, training=True).numpy().ravel(), [255, 255, 254, 1, 0, 0])
    np.testing.assert_array_equal(layer(floats, training=False).numpy(), floats)


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16", "float32"])
def test_the_result_is_in_the_compute_dtype_and_the_same_in_each(dtype):
    layer = augment.Layer(SPEC, dtype=dtype)
    result = layer(IMAGES, training=True)
    assert result.dtype == layer.compute_dtype
    np.testing.assert_array_equal(tf.cast(result, tf.float32).numpy(), by_policy(IDS))


def test_the_config_makes_the_same_layer():
    layer = augment.Layer(" oneof(flip,\n cutout(size = 0.3))@0.5 ", seed=9, name="own")
    config = layer.get_config()
    assert (config["policy"], config["seed"], config["name"]) == ("oneof(flip, cutout(size=0.3))@0.5", 9, "own")
    again = augment.Layer.from_config(config)
    np.testing.assert_array_equal(again(IMAGES, training=True).numpy(), layer(IMAGES, training=True).numpy())


def small_model(*first) -> keras.Model:
    model = keras.Sequential([keras.Input((32, 32, 3), dtype="uint8"), *first, keras.layers.Rescaling(1 / 255),
                              keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
    return model


def test_a_compiled_model_fits_and_after_saving_and_loading_goes_on_counting(tmp_path):
    model = small_model(augment.Layer(SHORT))
    labels = IDS % 2
    model.fit(IMAGES, labels, batch_size=4, epochs=3, verbose=0)
    assert int(model.layers[0].images_seen) == 24
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert int(again.layers[0].images_seen) == 24
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6)
    again.fit(IMAGES, labels, batch_size=4, verbose=0)
    assert int(again.layers[0].images_seen) == 32


def test_a_functional_model_takes_images_with_ids():
    inputs = {"image": keras.Input((32, 32, 3), dtype="uint8", name="image"),
              "id": keras.Input((), dtype="int64", name="id"), "epoch": keras.Input((), dtype="int64", name="epoch")}
    model = keras.Model(inputs, augment.Layer(SPEC, seed=2)(inputs))
    assert model.output.shape == (None, 32, 32, 3)
    given = model({"image": IMAGES, "id": IDS, "epoch": np.full(8, 6, np.int64)}, training=True)
    np.testing.assert_array_equal(given.numpy(), by_policy(IDS, epoch=6, seed=2))


def test_in_a_map_over_batches_it_augments_and_counts():
    layer = augment.Layer(SHORT)
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(4).map(lambda images: layer(images, training=True))
    np.testing.assert_array_equal(np.concatenate(list(batches.as_numpy_iterator())), by_policy(IDS, spec=SHORT))
    assert int(layer.images_seen) == 8


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bloodcell import augment
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = augment.Layer("channel_shift(0.5)")
step = tf.function(lambda: strategy.run(lambda: layer(tf.fill([4, 8, 8, 3], 100.0), training=True)))
results = [strategy.experimental_local_results(step()) for _ in range(2)]
shifts = np.concatenate([each.numpy()[:, 0, 0] for result in results for each in result])
print(len(np.unique(shifts, axis=0)), strategy.experimental_local_results(layer.images_seen.value)[0].numpy())
"""


def test_replicas_draw_apart():
    done = subprocess.run([sys.executable, "-c", REPLICAS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16", "8"]  # every image its own draws; ids run alike on each replica


def test_what_is_no_policy_or_no_input_is_one_line():
    with pytest.raises(InputError, match="did you mean 'rotate'"):
        augment.Layer("rotat(30)")
    with pytest.raises(ValueError, match="image, id, epoch"):
        augment.Layer(SPEC)({"image": IMAGES}, training=True)
