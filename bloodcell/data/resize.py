"""Bringing decoded images to one square size, once, when a source is read.

Random crops and zooms are augmentation and do not belong here.
"""

import numpy as np
import tensorflow as tf

_CHUNK_PIXELS = 2**22  # resized at a time: the float copies stay below 100 MB


def to_square(images: np.ndarray, size: int) -> np.ndarray:
    """Cuts the centred square out of each image and resizes it.

    Keys' bicubic kernel, widened when shrinking (antialias), as Pillow's BICUBIC, with which BloodMNIST was made.

    Args:
      images: uint8 [N,H,W,3].
      size: the side of the result in pixels.

    Returns:
      uint8 [N,size,size,3]; the same array where it has that shape already.
    """
    n, height, width, _ = images.shape
    if height == width == size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top:top + side, left:left + side]
    if side == size:
        return np.ascontiguousarray(square)
    result = np.empty((n, size, size, 3), np.uint8)
    step = max(1, _CHUNK_PIXELS // max(side, size) ** 2)
    with tf.device("CPU:0"):
        for start in range(0, n, step):
            part = tf.image.resize(square[start:start + step], (size, size), tf.image.ResizeMethod.BICUBIC,
                                   antialias=True)
            result[start:start + step] = np.clip(np.rint(part.numpy()), 0, 255)
    return result


def square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Does in a graph what `to_square` does outside, to one image.

    Args:
      image: uint8 [H,W,3]; H and W need not be known when the graph is made.
      size: the side of the result in pixels.

    Returns:
      uint8 [size,size,3], the same to the bit as `to_square`'s.
    """
    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    cut = image[top:top + side, left:left + side]

    def resized() -> tf.Tensor:
        pixels = tf.image.resize(cut, (size, size), tf.image.ResizeMethod.BICUBIC, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)

    return tf.ensure_shape(tf.cond(tf.equal(side, size), lambda: cut, resized), (size, size, 3))
