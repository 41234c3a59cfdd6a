"""A small plain network for small images: good from random weights in minutes on a CPU, and a base line for the rest.

Four times two 3x3 convolutions with batch normalisation and ReLU, of which the first halves the side (as in VGG with
strides for pooling). What belongs here: this one network.
"""

import keras

_CHANNELS = (32, 64, 128, 256)
# Averages over the last ten batches or so: with Keras's own 0.99 they lag behind in the first, short epochs.
_MOMENTUM = 0.9


def backbone(image_size: int) -> keras.Model:
    """Builds the network with random weights.

    Args:
      image_size: side S of the square input, in pixels.

    Returns:
      A model from [B,S,S,3] grey levels 0..255 to [B,ceil(S/16),ceil(S/16),256].
    """
    image = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    for index, channels in enumerate(_CHANNELS):
        x = convolution(x, channels, f"block{index}_a", stride=2)
        x = convolution(x, channels, f"block{index}_b")
    return keras.Model(image, x, name="backbone")


def convolution(x: keras.KerasTensor, channels: int, name: str, *, stride: int = 1) -> keras.KerasTensor:
    """A 3x3 convolution, batch normalisation, ReLU: [B,h,w,c] to [B,ceil(h/stride),ceil(w/stride),channels]."""
    x = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal",
                            name=f"{name}_conv")(x)
    x = keras.layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)
