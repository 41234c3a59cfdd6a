"""TFLite, now called LiteRT: weights in 16 bits, or weights and arithmetic in 8.

The 8-bit file computes in whole numbers from the first layer to the probabilities, in steps of 1/256, which its last
operation gives out as float32. Ranges of the layers' values come from real images (Jacob et al. 2018, post-training).
"""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.export.checking import Runner, threads
from bloodcell.export.deployed import Deployed
from bloodcell.quiet import stderr_nowhere


def write_float16(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the file of 16-bit weights; arithmetic is as the device likes it, float32 on a CPU.

    Raises:
      InputError: views that draw, or a network that cannot be converted.
    """
    with _converter(deployed, "uint8") as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(_converted(converter, "float16"))


def write_int8(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the file of 8-bit weights and arithmetic.

    Raises:
      InputError: views that draw, no images to calibrate with, or a network that cannot be converted.
    """
    if deployed.calibration is None:
        raise InputError("--format=tflite expected training images to calibrate 8-bit arithmetic with, received none; "
                         "try --data=FILE")
    images = whole_range(deployed.calibration)
    with _converter(deployed, "float32") as converter:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
        path.write_bytes(_converted(converter, "int8"))


def whole_range(images: np.ndarray) -> np.ndarray:
    """Returns a copy of uint8 [N,S,S,3] with a black and a white pixel in a corner of the first image.

    So the input's range is 0..255, and its step one grey level, whatever the images: the file takes uint8 as it is.
    """
    images = images.copy()
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images


def load(path: pathlib.Path) -> Runner:
    """Returns what the file computes, on all cores."""
    content, interpreters = path.read_bytes(), {}

    def of_batch(size: int) -> Any:
        if size not in interpreters:  # one for each: a delegate keeps the shapes that it has seen first
            with stderr_nowhere(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorFlow's own, that this class moves to the package LiteRT
                made = tf.lite.Interpreter(model_content=content, num_threads=threads())
                entry = made.get_input_details()[0]
                made.resize_tensor_input(entry["index"], (size, *entry["shape"][1:]))
                made.allocate_tensors()
            interpreters[size] = made
        return interpreters[size]

    def run(images: np.ndarray) -> np.ndarray:
        interpreter = of_batch(len(images))
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return found

    return run


@contextlib.contextmanager
def _converter(deployed: Deployed, dtype: str) -> Iterator[Any]:
    deployed.check_exact()
    module, function = deployed.function(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)


def _converted(converter: Any, what: str) -> bytes:
    with stderr_nowhere():
        try:
            content: bytes = converter.convert()
        except Exception as error:  # the converter's errors have no class in common
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"--format=tflite ({what}) expected a network that TensorFlow's converter takes, received "
                             f"one that it refuses ({reason[:200]}); try another format") from error
    return content
