"""albumentations, image by image in one process; a data loader would run one process a core.

What differs from ours. Images stay uint8; warps are OpenCV's, with its fixed-point weights and its blend of the fill
into the border. `ColorJitter` enhances as Pillow does; `Sharpen` and `Defocus` use kernels of their own; `GridDropout`
has no rotation. The policy draws two of ten ops by `SomeOf`, with about the strengths of magnitude 9 of 10.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from benchmarks import SIDE
from benchmarks.peers import FILL, Run

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for a newer version, while it is imported
import albumentations as A

_OUTSIDE = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL, "p": 1.0}


def _same(value: float) -> tuple[float, float]:
    return value, value


def _affine(**kwargs: Any) -> Any:
    return A.Affine(**kwargs, **_OUTSIDE)


def _slant(x: float, y: float) -> Any:
    return _affine(shear={"x": _same(math.degrees(math.atan(x))), "y": _same(math.degrees(math.atan(y)))})


def _move(x: float, y: float) -> Any:
    return _affine(translate_percent={"x": _same(x), "y": _same(y)})


def _jitter(**kwargs: tuple[float, float]) -> Any:
    nothing = {"brightness": _same(1.0), "contrast": _same(1.0), "saturation": _same(1.0), "hue": _same(0.0)}
    return A.ColorJitter(**{**nothing, **kwargs}, p=1.0)


def _turn(turns: float) -> Any:
    return A.HueSaturationValue(_same(180 * turns), _same(0), _same(0), p=1.0)  # OpenCV's hue has 180 steps


def _hole(size: float) -> Any:
    return A.CoarseDropout((1, 1), _same(size), _same(size), fill=FILL, p=1.0)


def _odd(x: float) -> int:
    return max(2 * round((x - 1) / 2) + 1, 3)


OPS: dict[str, Callable[[float], Any]] = {
    "flip": lambda _: A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]),
    "rot90": lambda _: A.RandomRotate90(p=1.0),
    "rotate": lambda degrees: A.Rotate(_same(degrees), **_OUTSIDE),
    "shear": lambda level: _slant(level, level),
    "shear_x": lambda level: _slant(level, 0),
    "shear_y": lambda level: _slant(0, level),
    "translate": lambda part: _move(part, part),
    "translate_x": lambda part: _move(part, 0),
    "translate_y": lambda part: _move(0, part),
    "zoom": lambda level: _affine(scale=_same(1 + level)),
    "resized_crop": lambda area: A.RandomResizedCrop((SIDE, SIDE), (area, 1.0), p=1.0),
    "perspective": lambda level: A.Perspective(_same(level), **_OUTSIDE),
    "elastic": lambda alpha: A.ElasticTransform(alpha, 4.0, p=1.0),
    "pixelate": lambda scale: A.Downscale(
        _same(scale), {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_NEAREST}, p=1.0),
    "brightness": lambda level: _jitter(brightness=_same(1 + level)),
    "contrast": lambda level: _jitter(contrast=_same(1 + level)),
    "gamma": lambda level: A.RandomGamma(_same(100 * math.exp(level)), p=1.0),
    "color": lambda level: _jitter(saturation=_same(1 + level)),
    "hue": _turn,
    "gray": lambda _: A.ToGray(p=1.0),
    "channel_shuffle": lambda _: A.ChannelShuffle(p=1.0),
    "channel_shift": lambda level: A.RGBShift(*[(-255 * level, 255 * level)] * 3, p=1.0),
    "stain": lambda _: A.HEStain(p=1.0),
    "sharpness": lambda level: A.Sharpen(_same(level), _same(1.0), p=1.0),
    "blur": lambda sigma: A.GaussianBlur(_same(_odd(6 * sigma)), _same(sigma), p=1.0),
    "defocus": lambda radius: A.Defocus(_same(max(round(radius), 1)), _same(0.1), p=1.0),
    "motion_blur": lambda length: A.MotionBlur(_same(_odd(length)), p=1.0),
    "autocontrast": lambda _: A.AutoContrast(method="pil", p=1.0),
    "equalize": lambda _: A.Equalize(mode="pil", p=1.0),
    "invert": lambda _: A.InvertImg(p=1.0),
    "posterize": lambda bits: A.Posterize(round(bits), p=1.0),
    "solarize": lambda threshold: A.Solarize(_same(math.ceil(threshold) / 255), p=1.0),
    "cutout": _hole,
    "gridmask": lambda ratio: A.GridDropout(1 - ratio, fill=0, p=1.0),
    "random_erasing": lambda area: A.Erasing(_same(area), fill=FILL, p=1.0),
    "noise": lambda std: A.GaussNoise(_same(std / 255), p=1.0),
    "jpeg": lambda quality: A.ImageCompression("jpeg", _same(round(quality)), p=1.0),
}


def _two_of_ten() -> Any:
    return A.SomeOf([
        A.Rotate((-27, 27), **_OUTSIDE), _slant(0.27, 0), _slant(0, 0.27), _move(0.4, 0), _move(0, 0.4),
        _jitter(brightness=(0.2, 1.8)), _jitter(contrast=(0.2, 1.8)), _jitter(saturation=(0.2, 1.8)),
        A.Equalize(mode="pil", p=1.0), A.Sharpen((0.2, 0.8), p=1.0)], n=2, p=1.0)


POLICIES: dict[str, tuple[str, Any]] = {
    "randaugment(2, 9)": ("SomeOf(ten ops, n=2)", _two_of_ten()),
}


def start(thing: Any, images: np.ndarray) -> Run:
    """Returns how to run a transform over uint8 images [B, H, W, 3]."""
    def call(batches: int) -> list[np.ndarray]:
        return [np.stack([thing(image=image)["image"] for image in images]) for _ in range(batches)]
    return Run(call, len(images))
