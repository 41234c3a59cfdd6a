"""Convolution of each channel by itself through TensorFlow's depthwise kernel: Keras's numbers and weights, faster.

ConvNeXt writes its 7x7 depthwise convolutions as grouped ones, which Keras sends through XLA: on a CPU that takes 20 to
30 times as long. What belongs here: the layer that stands for such a convolution.
"""

import keras
import tensorflow as tf


class Conv2D(keras.layers.Conv2D):
    """A `keras.layers.Conv2D` of as many groups as channels, [B,H,W,C] to [B,H,W,C], computed by a depthwise kernel.

    It bears Keras's own class name because `.weights.h5` files name layers by class: a file written by either can be
    read by the other.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates Keras's weights: kernel [k,k,1,C] and bias [C]; the layer must fit (see `fits`)."""
        super().build(input_shape)
        if not fits(self):
            raise ValueError(f"{self.name}: expected a grouped convolution of one channel a group, 'same' padding and "
                             "no stride; use keras.layers.Conv2D for others")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolves [B,H,W,C], any float dtype; the output has the same shape and dtype."""
        kernel = tf.transpose(tf.convert_to_tensor(self.kernel), (0, 1, 3, 2))  # [k,k,C,1], what the kernel op takes
        filtered = tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "SAME")
        filtered = tf.nn.bias_add(filtered, tf.convert_to_tensor(self.bias)) if self.use_bias else filtered
        return self.activation(filtered)


def fits(layer: keras.layers.Conv2D) -> bool:
    """Whether a built layer is a grouped convolution that the depthwise kernel computes with equal numbers."""
    return (layer.groups > 1 and layer.groups == layer.filters and layer.kernel.shape[2] == 1
            and layer.strides == (1, 1) and layer.dilation_rate == (1, 1) and layer.padding == "same"
            and layer.data_format == "channels_last")
