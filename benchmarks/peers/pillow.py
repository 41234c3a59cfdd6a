"""Pillow's ImageOps, ImageEnhance and transforms, image by image in one process: what PyTorch's tutorials do.

What differs from ours: little, as Pillow is the reference of most of our ops. Images stay uint8. Each image goes from
an array to Pillow and back, as it has to in any training. The policy is RandAugment's published list of ops, drawn by
Python's own generator.
"""

import io
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.peers import FILL, Run

Function = Callable[[Image.Image], Image.Image]
_BILINEAR = Image.Resampling.BILINEAR
_GREY = (FILL,) * 3


def _affine(*numbers: float) -> Function:
    """A map about the centre, from the output to the source: a0, a1, shift x; b0, b1, shift y; shifts in sides."""
    a0, a1, dx, b0, b1, dy = numbers

    def apply(image: Image.Image) -> Image.Image:
        width, height = image.size
        data = (a0, a1, (width - a0 * width - a1 * height) / 2 + dx * width,
                b0, b1, (height - b0 * width - b1 * height) / 2 + dy * height)
        return image.transform(image.size, Image.Transform.AFFINE, data, _BILINEAR, fillcolor=_GREY)
    return apply


def _enhance(kind: Any) -> Callable[[float], Function]:
    return lambda level: lambda image: kind(image).enhance(1 + level)


def _flip(image: Image.Image) -> Image.Image:
    image = ImageOps.mirror(image) if random.random() < 0.5 else image
    return ImageOps.flip(image) if random.random() < 0.5 else image


def _rot90(image: Image.Image) -> Image.Image:
    return image.rotate(90 * random.randrange(4))


def _resized_crop(area: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        side = math.sqrt(random.uniform(area, 1.0))
        width, height = image.size
        left, top = random.uniform(0, 1 - side) * width, random.uniform(0, 1 - side) * height
        return image.resize(image.size, _BILINEAR, (left, top, left + side * width, top + side * height))
    return apply


def _perspective(level: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        inwards = 1 - level
        data = (inwards, 0, level * image.width / 2, 0, inwards, level * image.height / 2, level / 960, level / 960)
        return image.transform(image.size, Image.Transform.PERSPECTIVE, data, _BILINEAR, fillcolor=_GREY)
    return apply


def _pixelate(scale: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.NEAREST)
    return apply


def _gamma(level: float) -> Function:
    curve = [round(255 * (value / 255) ** math.exp(level)) for value in range(256)] * 3
    return lambda image: image.point(curve)


def _shuffle(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", random.sample(image.split(), 3))


def _shift(level: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        curve: list[int] = []
        for _ in range(3):
            by = round(random.uniform(-255 * level, 255 * level))
            curve += [min(max(value + by, 0), 255) for value in range(256)]
        return image.point(curve)
    return apply


def _solarize_add(addition: float) -> Function:
    curve = [min(value + round(addition), 255) if value < 128 else value for value in range(256)] * 3
    return lambda image: image.point(curve)


def _cutout(size: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        width, height = image.size
        half_x, half_y = size * width / 2, size * height / 2
        x, y = random.uniform(0, width), random.uniform(0, height)
        image = image.copy()
        image.paste(_GREY, (round(max(x - half_x, 0)), round(max(y - half_y, 0)),
                            round(min(x + half_x, width)), round(min(y + half_y, height))))
        return image
    return apply


def _jpeg(quality: float) -> Function:
    def apply(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(quality))
        return Image.open(buffer).convert("RGB")
    return apply


OPS: dict[str, Callable[[float], Function]] = {
    "flip": lambda _: _flip,
    "rot90": lambda _: _rot90,
    "rotate": lambda degrees: lambda image: image.rotate(degrees, _BILINEAR, fillcolor=_GREY),
    "shear": lambda level: _affine(1, level, 0, level, 1, 0),
    "shear_x": lambda level: _affine(1, level, 0, 0, 1, 0),
    "shear_y": lambda level: _affine(1, 0, 0, level, 1, 0),
    "translate": lambda part: _affine(1, 0, part, 0, 1, part),
    "translate_x": lambda part: _affine(1, 0, part, 0, 1, 0),
    "translate_y": lambda part: _affine(1, 0, 0, 0, 1, part),
    "zoom": lambda level: _affine(1 / (1 + level), 0, 0, 0, 1 / (1 + level), 0),
    "resized_crop": _resized_crop,
    "perspective": _perspective,
    "pixelate": _pixelate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "contrast": _enhance(ImageEnhance.Contrast),
    "color": _enhance(ImageEnhance.Color),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "gamma": _gamma,
    "gray": lambda _: lambda image: image.convert("L").convert("RGB"),
    "channel_shuffle": lambda _: _shuffle,
    "channel_shift": _shift,
    "blur": lambda sigma: lambda image: image.filter(ImageFilter.GaussianBlur(sigma)),
    "autocontrast": lambda _: ImageOps.autocontrast,
    "equalize": lambda _: ImageOps.equalize,
    "invert": lambda _: ImageOps.invert,
    "posterize": lambda bits: lambda image: ImageOps.posterize(image, round(bits)),
    "solarize": lambda threshold: lambda image: ImageOps.solarize(image, math.ceil(threshold)),
    "solarize_add": _solarize_add,
    "cutout": _cutout,
    "jpeg": _jpeg,
}

# RandAugment's list, with its ranges; the sign of what has one is drawn.
_RANGES = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45, "color": 0.9,
           "contrast": 0.9, "brightness": 0.9, "sharpness": 0.9}


def randaugment(magnitude: float) -> Function:
    """Returns RandAugment of two ops at a magnitude of 0..1."""
    fixed = {"autocontrast": 1.0, "equalize": 1.0, "posterize": 8 - 4 * magnitude, "solarize": 256 * (1 - magnitude)}

    def apply(image: Image.Image) -> Image.Image:
        for name in random.choices(("identity", *fixed, *_RANGES), k=2):
            if name in _RANGES:
                image = OPS[name](random.choice((-1, 1)) * magnitude * _RANGES[name])(image)
            elif name != "identity":
                image = OPS[name](fixed[name])(image)
        return image
    return apply


POLICIES: dict[str, tuple[str, Function]] = {
    "randaugment(2, 9)": ("RandAugment of Pillow's ops", randaugment(0.9)),
}


def start(thing: Any, images: np.ndarray) -> Run:
    """Returns how to run a function of one Pillow image over uint8 images [B, H, W, 3]."""
    def call(batches: int) -> list[np.ndarray]:
        return [np.stack([np.asarray(thing(Image.fromarray(image))) for image in images]) for _ in range(batches)]
    return Run(call, len(images))
