"""`python -m bloodcell.augment.native.selftest LIBRARY`: whether the kernel computes what XLA computes, here.

Every primitive at full strength on images of random levels and of smooth ones, at a size that fills no vector, and a
policy with repeats and a mixture; each against the XLA path within one grey level. Exit status 0, or 1 and a line that
says what differs.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

# An op for each primitive, and every kind of curve.
SINGLE = ("rotate(180)", "perspective(0.4, fill='reflect')", "zoom(0.5, interpolation='nearest')",
            "oneof(contrast(0.9), autocontrast, equalize, gamma(1))", "hue(0.5)", "sharpness(0.9)", "gridmask",
            "blur(3)", "motion_blur(20)", "pixelate(0.2)", "elastic", "stain(1)", "noise(64)", "jpeg(10)")
NESTED = "flip | augmix(severity=10) | randaugment(2, 9)"
BATCH, HEIGHT, WIDTH = 16, 35, 29


def images() -> np.ndarray:
    """Returns uint8 [BATCH, HEIGHT, WIDTH, 3]: noise, and slopes in every channel."""
    random = np.random.default_rng(0)
    noisy = random.integers(0, 256, [BATCH // 2, HEIGHT, WIDTH, 3])
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([np.stack([y * 4 + number, x * 6, 255 - y * 3 - x], axis=-1) for number in range(BATCH // 2)])
    return np.clip(np.concatenate([noisy, smooth]), 0, 255).astype(np.uint8)


def differences(texts: Sequence[str], *, compiled: bool) -> list[int]:
    """Returns the largest difference, in grey levels, between each policy's two backends; the library is loaded.

    compiled: whether XLA compiles its side too, so that both round alike: where ops nest, a level more or less may be
    forty after a later one. Of single ops it would take most of the test's time.
    """
    import tensorflow as tf

    from bloodcell import augment
    held, ids = tf.constant(images()), tf.range(BATCH, dtype=tf.int64)

    def shown(backend: str) -> list[tf.Tensor]:
        return [augment.parse(text, backend=backend)(held, ids, epoch=1, seed=2) for text in texts]

    by_xla = tf.function(shown, jit_compile=True, autograph=False)("xla") if compiled else shown("xla")
    native = tf.function(shown, jit_compile=True, autograph=False)("native")
    return [int(np.abs(one.numpy() - other.numpy()).max()) for one, other in zip(native, by_xla, strict=True)]


def main(argv: list[str]) -> int:
    """Tests the library that the command line names."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from bloodcell.augment.native import library
    try:
        library.load(pathlib.Path(argv[1]))
        for texts, compiled in ((SINGLE, False), ((NESTED,), True)):
            for text, apart in zip(texts, differences(texts, compiled=compiled), strict=True):
                if apart > 1:
                    print(f"{text}: {apart} grey levels from XLA")
                    return 1
    except Exception as error:  # whatever it is, this library is not to be used
        print(f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no word'])[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
