"""Calling the kernel: an XLA custom call inside whatever program the policy is part of.

What belongs here: the call. Which library holds the kernel, and whether to use it, is `library`'s and `backend`'s
business.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from bloodcell.augment.native.program import Unsupported, write
from bloodcell.augment.plan import Draws, Stage

TARGET = "bloodcell_policy"
_MODULE_VERSION = 9  # of the StableHLO that XlaCallModule takes
# The library has a handler of one name for each. All are named, whatever this machine has, because TensorFlow decides
# where an op runs after the graph is made; with more than one, a module's first argument is which of them it came to.
_PLATFORMS = ("CPU", "CUDA")
_TYPES = {tf.uint8: "ui8", tf.int32: "i32", tf.float32: "f32", tf.bool: "i1", tf.bfloat16: "bf16", tf.float16: "f16"}
_RESULTS = (tf.uint8, tf.float32, tf.bfloat16, tf.float16)


def apply(stages: Sequence[Stage], images: tf.Tensor, draws: Draws, dtype: tf.DType) -> tf.Tensor:
    """Applies draws to images.

    Args:
      stages: the policy's plan.
      images: uint8 [B, H, W, 3], of a shape that is known when the graph is made.
      draws: what `plan.draw` returned.
      dtype: of the result.

    Returns:
      [B, H, W, 3] grey levels in `dtype`.

    Raises:
      Unsupported: an unknown shape, a dtype that the kernel does not write, a policy that it does not run.
      LookupError: a gradient is asked for; an augmentation has none.
    """
    if not images.shape.is_fully_defined():
        raise Unsupported("the native op needs batches of one size, known beforehand")
    if dtype not in _RESULTS:
        raise Unsupported(f"the native op writes no {dtype.name}")
    program = write(stages, draws, (images.shape[1], images.shape[2]))
    tensors = [images, *program.operands]
    text = _module(tensors, program.words, dtype, images.shape)

    @tf.custom_gradient
    def call(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        out, = xla.call_module(tensors, version=_MODULE_VERSION, module=text, Tout=[dtype], Sout=[images.shape],
                               platforms=_PLATFORMS)
        return tf.ensure_shape(out, images.shape), _no_gradient

    return call(*tensors)


def _no_gradient(*_: tf.Tensor) -> None:
    raise LookupError("the native augmentation has no gradient; try backend='xla', or leave it out of the tape")


def _module(tensors: list[tf.Tensor], words: list[int], dtype: tf.DType, shape: tf.TensorShape) -> str:
    types = [_type(each.dtype, each.shape) for each in tensors]
    names = [f"%arg{number}" for number in range(len(tensors))]
    result = _type(dtype, shape)
    given = ", ".join(["%platform: tensor<i32>", *map(": ".join, zip(names, types, strict=True))])
    config = f"{{steps = array<i64: {', '.join(map(str, words))}>}}"
    return (f"module @bloodcell {{\n  func.func public @main({given}) -> {result} {{\n"
            f"    %0 = stablehlo.custom_call @{TARGET}({', '.join(names)}) {{api_version = 4 : i32, "
            f"backend_config = {config}}} : ({', '.join(types)}) -> {result}\n"
            f"    return %0 : {result}\n  }}\n}}\n")


def _type(dtype: tf.DType, shape: tf.TensorShape) -> str:
    return f"tensor<{''.join(f'{side}x' for side in shape)}{_TYPES[dtype]}>"
