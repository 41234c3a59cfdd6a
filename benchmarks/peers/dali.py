"""NVIDIA DALI's pipelines on CPU, fed from memory by `external_source` with whole batches, one thread a core.

What differs from ours. Images stay uint8. `rand_augment(n=2, m=9)` and `trivial_augment_wide` are the library's own
(`nvidia.dali.auto_aug`): per-image draws, magnitude 9 of 31 bins, fill 128. Warps blend the fill into the border;
`equalize` is OpenCV's. An epoch of a few batches is run at a time, so that the pipeline prefetches as it is meant to,
yet never on another contestant's time.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import augmentations, rand_augment, trivial_augment

from benchmarks import SIDE
from benchmarks.peers import CORES, FILL, Run

Node = Any  # DALI's DataNode
_LINEAR = {"fill_value": FILL, "interp_type": types.INTERP_LINEAR}


def _warp(*rows: float) -> Callable[[Node], Node]:
    """An affine map about the centre of a side of 2c: a0, a1, shift x; b0, b1, shift y in sides, output to source."""
    a0, a1, dx, b0, b1, dy = rows

    def apply(images: Node) -> Node:
        size = images.shape(dtype=types.FLOAT)  # height, width, channels
        side_y, side_x = size[0], size[1]
        matrix = fn.stack(
            fn.stack(_as(a0, side_x), _as(a1, side_x), side_x * ((1 - a0) / 2 + dx) - side_y * (a1 / 2)),
            fn.stack(_as(b0, side_x), _as(b1, side_x), side_y * ((1 - b1) / 2 + dy) - side_x * (b0 / 2)))
        return fn.warp_affine(images, matrix, **_LINEAR)
    return apply


def _as(number: float, like: Node) -> Node:
    return like * 0.0 + number


def _coin() -> Node:
    return fn.random.coin_flip()


def _full(images: Node, augmentation: Any, magnitude: float, **kwargs: Any) -> Node:
    """One of `auto_aug`'s augmentations at a fixed magnitude, never negated."""
    fixed = augmentation.augmentation(mag_range=(magnitude, magnitude), randomly_negate=False)
    return fixed(images, magnitude_bin=0, num_magnitude_bins=1, **kwargs)


def _cutout(size: float) -> Callable[[Node], Node]:
    return lambda images: fn.erase(
        images, anchor=fn.random.uniform(range=(-size / 2, 1 - size / 2), shape=(2,)), shape=(size, size),
        axis_names="HW", normalized=True, fill_value=[FILL])


def _add_noise(std: float) -> Callable[[Node], Node]:
    return lambda images: fn.noise.gaussian(images, stddev=std)


OPS: dict[str, Callable[[float], Callable[[Node], Node]]] = {
    "flip": lambda _: lambda images: fn.flip(images, horizontal=_coin(), vertical=_coin()),
    "rotate": lambda degrees: lambda images: fn.rotate(images, angle=degrees, keep_size=True, **_LINEAR),
    "shear": lambda level: _warp(1, level, 0, level, 1, 0),
    "shear_x": lambda level: _warp(1, level, 0, 0, 1, 0),
    "shear_y": lambda level: _warp(1, 0, 0, level, 1, 0),
    "translate": lambda part: _warp(1, 0, part, 0, 1, part),
    "translate_x": lambda part: _warp(1, 0, part, 0, 1, 0),
    "translate_y": lambda part: _warp(1, 0, 0, 0, 1, part),
    "zoom": lambda level: _warp(1 / (1 + level), 0, 0, 0, 1 / (1 + level), 0),
    "resized_crop": lambda area: lambda images: fn.random_resized_crop(
        images, size=(SIDE, SIDE), random_area=(area, 1.0), antialias=False),
    "brightness": lambda level: lambda images: fn.brightness(images, brightness=1 + level),
    "contrast": lambda level: lambda images: _full(images, augmentations.contrast, level),
    "color": lambda level: lambda images: fn.saturation(images, saturation=1 + level),
    "hue": lambda turns: lambda images: fn.hue(images, hue=360 * turns),
    "gray": lambda _: lambda images: fn.saturation(images, saturation=0.0),
    "sharpness": lambda level: lambda images: _full(images, augmentations.sharpness, level),
    "blur": lambda sigma: lambda images: fn.gaussian_blur(images, sigma=sigma, window_size=2 * round(3 * sigma) + 1),
    "autocontrast": lambda _: lambda images: _full(images, augmentations.auto_contrast, 0),
    "equalize": lambda _: fn.equalize,
    "invert": lambda _: lambda images: types.Constant(255, dtype=types.UINT8) - images,
    "posterize": lambda bits: lambda images: images & types.Constant(256 - 2**(8 - round(bits)), dtype=types.UINT8),
    "solarize": lambda threshold: lambda images: _full(images, augmentations.solarize, math.ceil(threshold)),
    "solarize_add": lambda addition: lambda images: _full(images, augmentations.solarize_add, round(addition)),
    "cutout": _cutout,
    "noise": _add_noise,
    "jpeg": lambda quality: lambda images: fn.jpeg_compression_distortion(images, quality=round(quality)),
}

POLICIES: dict[str, tuple[str, Callable[[Node], Node]]] = {
    "randaugment(2, 9)": ("rand_augment(n=2, m=9)", lambda images: rand_augment.rand_augment(
        images, n=2, m=9, fill_value=FILL)),
    "trivialaugment": ("trivial_augment_wide", lambda images: trivial_augment.trivial_augment_wide(
        images, fill_value=FILL)),
}


class _Epoch:
    """An iterable over `batches` times the same batch, as many as are wanted when the first one is fetched."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.batches = images, 1

    def __iter__(self) -> Iterator[np.ndarray]:
        for _ in range(self.batches):
            yield self.images


def start(thing: Any, images: np.ndarray) -> Run:
    """Returns how to run a graph of DALI's nodes over uint8 images [B, H, W, 3]."""
    epoch = _Epoch(images)

    @pipeline_def(batch_size=len(images), num_threads=CORES, device_id=None, enable_conditionals=True)
    def graph() -> Node:
        return thing(fn.external_source(source=epoch, layout="HWC", cycle="raise"))

    with warnings.catch_warnings(record=True):  # `auto_aug` itself uses names that have moved; a filter does not help
        pipeline = graph()
        pipeline.build()

    def call(batches: int) -> list[np.ndarray]:
        epoch.batches = batches
        results = [np.asarray(pipeline.run()[0].as_tensor()) for _ in range(batches)]  # the outputs' own memory
        try:
            pipeline.run()
        except StopIteration:
            pipeline.reset()
            return results
        raise RuntimeError("DALI ran past the end of its epoch")

    return Run(call, len(images), batches=4, pipeline=True)
