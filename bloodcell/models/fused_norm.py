"""Batch normalisation through TensorFlow's fused kernel: Keras's numbers and weights, in fewer passes over memory.

Keras 3 writes batch normalisation as separate means, products and sums; on TensorFlow the one kernel FusedBatchNormV3
trains small convolutional networks faster, up to one and a half times on a CPU. What belongs here: the layer.
"""

from typing import Any

import keras
import tensorflow as tf

_MIN_EPSILON = 1.001e-5  # cuDNN's CUDNN_BN_MIN_EPSILON: a smaller one would silently become this one on a GPU


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis of [B,H,W,C], computed by FusedBatchNormV3.

    Statistics, scale and offset are float32 whatever the inputs' dtype (float32, bfloat16, float16), as in Keras; the
    output has the inputs' dtype. With `trainable=False` it runs in inference mode, as in Keras. It bears Keras's own
    class name because `.weights.h5` files name layers by class: a file written by either can be read by the other.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates Keras's weights; the layer must fit the kernel (see `fits`)."""
        super().build(input_shape)
        if not fits(self):
            raise ValueError(f"{self.name}: expected batch normalisation of [B,H,W,C] over C without renorm and "
                             "synchronisation; use keras.layers.BatchNormalization for others")

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Normalises [B,H,W,C]; in training mode also moves the moving statistics.

        Args:
          inputs: [B,H,W,C], any float dtype of up to 32 bits.
          training: whether to use the batch's statistics, where the layer is trainable.
          mask: must be None.
        """
        if mask is not None:
            raise ValueError(f"{self.name}: expected no mask; use keras.layers.BatchNormalization for masked inputs")
        mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        train = bool(training and self.trainable)
        empty = tf.zeros([0], tf.float32)  # what the kernel wants in training mode, where it makes its own statistics
        output = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(mean),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(mean),
            mean=empty if train else mean,
            variance=empty if train else variance,
            epsilon=self.epsilon,
            is_training=train,
        )
        if train:
            # The kernel reports the unbiased variance, Keras's moving average takes the biased one. A batch of one
            # value per channel has variance 0, which the kernel's division by n - 1 may have made NaN.
            count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
            biased = tf.math.multiply_no_nan(output.batch_variance, (count - 1.0) / count)
            self.moving_mean.assign(mean * self.momentum + output.batch_mean * (1.0 - self.momentum))
            self.moving_variance.assign(variance * self.momentum + biased * (1.0 - self.momentum))
        return output.y


def fits(layer: keras.layers.BatchNormalization) -> bool:
    """Whether a built layer is one that the fused kernel computes with equal numbers."""
    rank = layer.input_spec.ndim
    renorm = getattr(layer, "renorm", False)  # Keras 3.12, the last for Python 3.10, has none
    return (rank == 4 and layer.axis in (-1, rank - 1) and not renorm and not layer.synchronized
            and layer.epsilon >= _MIN_EPSILON and layer.compute_dtype in ("float32", "bfloat16", "float16"))
