"""A classifier of the shape of U-Net (Ronneberger et al., 2015, arXiv:1505.04597).

Down four times (64, 128, 256 and 512 channels, maxima of 2x2), through 1024 channels, up four times by transposed
convolutions with skips from the way down: a feature map of 64 channels at full side, which the head pools. As in the
paper each block is two 3x3 convolutions with ReLU. What differs: they keep the side ("same" padding) and have batch
normalisation. What belongs here: this one network.
"""

import keras

from bloodcell.models.cnn import convolution

_CHANNELS = (64, 128, 256, 512)
_BOTTLENECK = 1024


def backbone(image_size: int) -> keras.Model:
    """Builds the network with random weights.

    Args:
      image_size: side S of the square input, in pixels; any, since the way up is cut to the skip's side.

    Returns:
      A model from [B,S,S,3] grey levels 0..255 to [B,S,S,64].
    """
    image = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    skips = []
    for index, channels in enumerate(_CHANNELS):
        x = _block(x, channels, f"down{index}")
        skips.append(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"down{index}_pool")(x)
    x = _block(x, _BOTTLENECK, "bottleneck")
    for index in reversed(range(len(_CHANNELS))):
        x = _up(x, skips[index], _CHANNELS[index], f"up{index}")
    return keras.Model(image, x, name="backbone")


def _up(x: keras.KerasTensor, skip: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    x = keras.layers.Conv2DTranspose(channels, 2, 2, kernel_initializer="he_normal", name=f"{name}_transposed")(x)
    if odd := x.shape[1] - skip.shape[1]:  # an odd side was rounded up on the way down
        x = keras.layers.Cropping2D(((0, odd), (0, odd)), name=f"{name}_crop")(x)
    x = keras.layers.Concatenate(name=f"{name}_concat")([skip, x])
    return _block(x, channels, name)


def _block(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    return convolution(convolution(x, channels, f"{name}_a"), channels, f"{name}_b")
