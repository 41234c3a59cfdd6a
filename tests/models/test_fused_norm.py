"""The fused batch normalisation gives Keras's numbers, moves Keras's statistics, and reads and writes Keras's files."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.models import fused_norm, rebuild

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(3.0, 2.0, (4, 5, 6, 7)).astype("float32")
WEIGHTS = [RNG.normal(1.0, 0.3, 7), RNG.normal(0.0, 1.0, 7), RNG.normal(2.0, 1.0, 7), RNG.uniform(0.5, 4.0, 7)]
# Greatest difference by dtype: float32's rounding, and one unit in the last place of values up to 8 in 16 bits.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.04, "float16": 0.005}


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def layer(kind: type, dtype: str = "float32", **options: object) -> keras.layers.BatchNormalization:
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    made = kind(momentum=0.9, epsilon=2e-3, dtype=policy, **options)
    made.build(IMAGES.shape)
    kept = [array for array, used in zip(WEIGHTS, (made.scale, made.center, True, True), strict=True) if used]
    made.set_weights(kept)
    return made


def run(made: keras.layers.BatchNormalization, images: np.ndarray, *, training: bool, jit: bool) -> dict:
    """Outputs, gradients for the inputs and the trained weights, and statistics after the call."""
    cotangent = tf.constant(np.cos(np.arange(images.size)).reshape(images.shape), "float32")

    @tf.function(jit_compile=jit)
    def step(x: tf.Tensor) -> tuple:
        trained = [variable.value for variable in (made.gamma, made.beta) if variable is not None]
        with tf.GradientTape() as tape:
            tape.watch([x, *trained])
            y = made(x, training=training)
            total = tf.reduce_sum(tf.cast(y, "float32") * cotangent)
        return y, *tape.gradient(total, [x, *trained])

    found = step(tf.cast(images, made.compute_dtype))
    names = ["output", "d_input", "d_gamma", "d_beta"][:len(found)]
    results = {name: tf.cast(each, "float32").numpy() for name, each in zip(names, found, strict=True)}
    statistics = {"mean": made.moving_mean.numpy(), "variance": made.moving_variance.numpy()}
    return results | statistics | {"dtype": found[0].dtype}


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("mode", ["training", "inference", "frozen"])
def test_numbers_equal_keras(mode: str, dtype: str, jit: bool) -> None:
    results = []
    for kind in (keras.layers.BatchNormalization, fused_norm.BatchNormalization):
        made = layer(kind, dtype)
        made.trainable = mode != "frozen"
        results.append(run(made, IMAGES, training=mode != "inference", jit=jit))
    expected, received = results
    assert expected["dtype"] == received["dtype"]
    for name in ("output", "d_input"):
        np.testing.assert_allclose(received[name], expected[name], atol=TOLERANCE[dtype], rtol=0, err_msg=name)
    for name in ("d_gamma", "d_beta"):  # sums over 120 values, kept in float32
        np.testing.assert_allclose(received[name], expected[name], atol=5 * TOLERANCE[dtype], rtol=0, err_msg=name)
    for name in ("mean", "variance"):  # of equal inputs, in float32 whatever the dtype
        np.testing.assert_allclose(received[name], expected[name], rtol=2e-5, err_msg=name)
    moved = not np.allclose(received["mean"], WEIGHTS[2].astype("float32"))
    assert moved == (mode == "training")


def test_moving_variance_takes_the_biased_variance() -> None:
    made = layer(fused_norm.BatchNormalization)
    made(IMAGES, training=True)
    expected = 0.9 * WEIGHTS[3] + 0.1 * IMAGES.astype("float64").var(axis=(0, 1, 2))
    np.testing.assert_allclose(made.moving_variance.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_layers_without_scale_or_offset_equal_keras(options: dict) -> None:
    expected, received = (run(layer(kind, **options), IMAGES, training=True, jit=False)["output"]
                          for kind in (keras.layers.BatchNormalization, fused_norm.BatchNormalization))
    np.testing.assert_allclose(received, expected, atol=2e-5)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_one_value_per_channel_leaves_finite_statistics(jit: bool) -> None:
    made = layer(fused_norm.BatchNormalization)
    result = run(made, IMAGES[:1, :1, :1], training=True, jit=jit)
    np.testing.assert_allclose(result["output"][0, 0, 0], WEIGHTS[1], atol=1e-5)
    np.testing.assert_allclose(result["variance"], 0.9 * WEIGHTS[3], rtol=1e-5)


def small_model() -> keras.Model:
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 128, -1, name="rescaling")(image)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.BatchNormalization(name="flat_norm")(x))


def test_swap_changes_only_what_the_kernel_can_compute() -> None:
    plain = small_model()
    fused = rebuild.swap(plain, name="swapped")
    assert fused.name == "swapped"
    assert [each.name for each in fused.layers][1:] == [each.name for each in plain.layers][1:]
    assert type(fused.get_layer("norm")) is fused_norm.BatchNormalization
    assert type(fused.get_layer("flat_norm")) is keras.layers.BatchNormalization  # two axes: not the kernel's
    fused.set_weights(plain.get_weights())
    images = RNG.uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(fused(images, training=True), plain(images, training=True), atol=1e-4)


def test_weights_files_fit_both_layers(tmp_path: Path) -> None:
    plain, fused = small_model(), rebuild.swap(small_model(), name="swapped")
    plain.save_weights(tmp_path / "plain.weights.h5")
    fused.load_weights(tmp_path / "plain.weights.h5")
    for expected, received in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    fused.save_weights(tmp_path / "fused.weights.h5")
    plain.load_weights(tmp_path / "fused.weights.h5")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_grey_levels_are_rescaled_in_float32(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    fused = rebuild.swap(small_model(), name="swapped")
    images = np.full((1, 8, 8, 3), 130.3, "float32")  # bfloat16 has only 130 and 131 there
    rescaled = keras.Model(fused.input, fused.get_layer("rescaling").output)(images)
    np.testing.assert_allclose(rescaled, images / 128 - 1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"axis": 1}, {"synchronized": True}, {"epsilon": 1e-6}])
def test_what_the_kernel_cannot_compute_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"keras\.layers\.BatchNormalization"):
        fused_norm.BatchNormalization(**options).build((None, 4, 4, 3))
