"""The eleven corruptions that MedMNIST-C publishes for BloodMNIST, five severities each.

Di Salvo, Doerrich, Ledig: "MedMNIST-C: Comprehensive benchmark and improved classifier robustness by simulating
realistic image corruptions", 2024 (arXiv 2406.17536). Written from the definitions, on the host and apart from the ops
of training, so that nothing a model was trained on is what it is tested on by accident of code. `CORRUPTIONS` has the
parameters, for images of 224x224 pixels.

For other sides, whatever has a length is drawn on the published grid of 224x224 and brought to the image's own by area:
a blur's taps, a bubble, a blot. So an image of 224 pixels gets what is published, and a smaller one what it would show,
had it been photographed finer and reduced. Scales, factors and qualities are the same for every side; of a file's 8x8
blocks fewer fit into a small image.

What differs from the published program: the blots of `stain_deposit` are drawn here (`blots`), of the same sides and
about the same area; draws come of (corruption, severity, id of the image) alone, where the program has one stream for
all images; and where it cuts off what comes after the decimal point, a thousandth of a level is added first, so that a
sum that should be whole does not lose a level to rounding.
"""

import concurrent.futures
import dataclasses
import functools
import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from bloodcell.augment import rng
from bloodcell.data.records import CORES

SIDE = 224  # pixels, of the images for which the parameters are published
SOURCE = "MedMNIST-C (Di Salvo, Doerrich, Ledig 2024, arXiv 2406.17536), BloodMNIST"
# Balanced error of an AlexNet on the test images of BloodMNIST at 224x224, as published beside the benchmark.
ALEXNET_CLEAN = 0.018369

_TINY = 1e-3  # of a grey level, see above
_SEED = 0x6D65646D


@dataclasses.dataclass(frozen=True)
class Published:
    """One corruption.

    Attributes:
      summary: what it does to an image, for people.
      names: of its parameters.
      severities: the parameters of each severity.
      one: from an image uint8 [H, W, 3], the parameters and the numbers drawn for it, float64 [draws] in 0..1 without
        1, to an image of the same shape.
      alexnet: mean balanced error of AlexNet over the five severities, published.
      draws: how many random numbers an image needs.
    """

    summary: str
    names: tuple[str, ...]
    severities: tuple[tuple[float, ...], ...]
    one: Callable[[np.ndarray, tuple[float, ...], np.ndarray], np.ndarray]
    alexnet: float
    draws: int = 0


def apply(name: str, images: np.ndarray, ids: np.ndarray, severity: int) -> np.ndarray:
    """Corrupts images, in threads.

    Args:
      name: of `CORRUPTIONS`.
      images: uint8 [B, H, W, 3].
      ids: int64 [B]; with name and severity they alone decide what is drawn for an image.
      severity: 1 to 5.

    Returns:
      uint8 [B, H, W, 3]; each image depends on itself and on its id alone.
    """
    entry = CORRUPTIONS[name]
    if not 1 <= severity <= len(entry.severities):
        raise ValueError(f"severity: expected 1..{len(entry.severities)}, received {severity}")
    images, parameters = np.asarray(images), entry.severities[severity - 1]
    drawn = draw(name, ids, severity)
    result = np.empty_like(images)

    def some(start: int) -> None:
        for row in range(start, len(images), CORES):
            result[row] = entry.one(images[row], parameters, drawn[row])

    list(_threads().map(some, range(min(CORES, len(images)))))
    return result


def draw(name: str, ids: np.ndarray, severity: int) -> np.ndarray:
    """Returns the random numbers of images, float64 [B, draws] in 0..1 without 1."""
    count = CORRUPTIONS[name].draws
    if not count:
        return np.empty((len(ids), 0))
    seed = _SEED << 32 | zlib.crc32(name.encode())
    return _uniform(count)(np.asarray(ids, np.int64), severity, seed).numpy().astype(np.float64)


@functools.lru_cache(maxsize=8)
def _uniform(count: int) -> Callable[[np.ndarray, int, int], tf.Tensor]:
    """Returns `count` uniform numbers a sample as a graph for any number of samples; eager, it takes longer by far."""
    whole = tf.TensorSpec([], tf.int64)
    return tf.function(lambda ids, severity, seed: rng.uniform(rng.sample_keys(ids, epoch=severity, seed=seed), count),
                       input_signature=(tf.TensorSpec([None], tf.int64), whole, whole), autograph=False)


@functools.lru_cache(maxsize=1)
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(CORES, thread_name_prefix="corrupt")


# ---------------------------------------------------------------------------------------------------------------------
# Resolution and files
# ---------------------------------------------------------------------------------------------------------------------

def _pixelate(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Reduced by Pillow's box filter to a share of its side, cut to whole pixels, and enlarged by it again."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, int(width * parameters[0])), max(1, int(height * parameters[0]))),
                                          Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Written as a JPEG file, colours at half the side, and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(parameters[0]))
    return np.asarray(Image.open(file))


# ---------------------------------------------------------------------------------------------------------------------
# Lens
# ---------------------------------------------------------------------------------------------------------------------

def _defocus(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Each pixel becomes the mean of a disk, the image continued by reflection; cut off to whole levels."""
    blurred = _filtered(image, defocus_kernel(parameters[0], parameters[1], min(image.shape[:2])), "reflect")
    return np.minimum(blurred + _TINY, 255).astype(np.uint8)


def _motion(image: np.ndarray, parameters: tuple[float, ...], drawn: np.ndarray) -> np.ndarray:
    """Smeared one way, at an angle between -45 and 45 degrees, the border continued; rounded."""
    angle = 90 * drawn[0] - 45
    blurred = _filtered(image, motion_kernel(parameters[0], parameters[1], angle, min(image.shape[:2])), "edge")
    return np.minimum(blurred + 0.5, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def defocus_kernel(radius: float, alias: float, side: int) -> np.ndarray:
    """Returns the weights of `defocus`, float64 [2R+1, 2R+1], which sum to 1.

    Args:
      radius: of the disk in 224ths of the side, at most 8.
      alias: standard deviation of the 3x3 Gaussian that softens its border, in 224ths.
      side: of the image in pixels.
    """
    line = np.arange(-9, 10)
    y, x = np.meshgrid(line, line, indexing="ij")
    disk = (y**2 + x**2 <= radius**2).astype(np.float64)
    soft = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * alias**2))
    soft /= soft.sum()
    for axis in (0, 1):
        disk = sum(weight * np.roll(disk, shift, axis) for weight, shift in zip(soft, (-1, 0, 1), strict=True))
    return _brought_to(side, np.stack([y.ravel(), x.ravel()], axis=1), disk.ravel() / disk.sum())


def motion_kernel(radius: float, sigma: float, angle: float, side: int) -> np.ndarray:
    """Returns the weights of `motion`, float64 [2R+1, 2R+1], which sum to 1.

    They are ImageMagick's `motion-blur`: 2 * radius + 1 taps in a row from the pixel itself, each one pixel further and
    on the nearest pixel, with the weights of half a Gaussian.

    Args:
      radius: in 224ths of the side.
      sigma: standard deviation of the Gaussian, in 224ths.
      angle: in degrees, clockwise from the positive x axis.
      side: of the image in pixels.
    """
    far = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-far**2 / (2 * sigma**2))
    turn = math.radians(angle)
    taps = np.stack([np.ceil(far * math.sin(turn) - 0.5), np.ceil(far * math.cos(turn) - 0.5)], axis=1)
    return _brought_to(side, taps, weights / weights.sum())


def _brought_to(side: int, taps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the kernel of an image of `side` pixels from taps [K, 2] (y, x) and weights [K] on the grid of 224.

    A tap is a square of a 224th of the side; each pixel gets the weight of what it covers of it.
    """
    scale = side / SIDE
    taps, weights = taps[weights > 1e-9] * scale, weights[weights > 1e-9]
    reach = max(0, math.ceil(np.abs(taps).max() + scale / 2 - 0.5))
    pixel = np.arange(-reach, reach + 1)
    low = np.maximum(taps[..., np.newaxis] - scale / 2, pixel - 0.5)
    high = np.minimum(taps[..., np.newaxis] + scale / 2, pixel + 0.5)
    covered = np.maximum(high - low, 0) / scale
    return np.einsum("k,ky,kx->yx", weights, covered[:, 0], covered[:, 1])


def _filtered(image: np.ndarray, kernel: np.ndarray, border: str) -> np.ndarray:
    """Returns float32 [H, W, 3]: the correlation with the kernel, which is small or has few weights that are not 0."""
    (height, width), reach = image.shape[:2], len(kernel) // 2
    padded = np.pad(image.astype(np.float32), ((reach, reach), (reach, reach), (0, 0)),
                    mode=border)  # type: ignore[call-overload]  # NumPy's stubs want a literal
    result = np.zeros(image.shape, np.float32)
    product = np.empty(image.shape, np.float32)
    for y, x in zip(*np.nonzero(kernel > 1e-7), strict=True):
        np.multiply(padded[y:y + height, x:x + width], np.float32(kernel[y, x]), out=product)
        result += product
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Light and colour
# ---------------------------------------------------------------------------------------------------------------------

def _brightness(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Pillow's `ImageEnhance.Brightness`: between black and the image, or beyond it."""
    return _from(0, parameters[0])[image]


def _contrast(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Pillow's `ImageEnhance.Contrast`: between the image's mean luma, a whole level, and the image, or beyond it."""
    luma = (image.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32) + 0x8000) >> 16
    return _from(int(luma.mean() + 0.5), parameters[0])[image]


@functools.lru_cache(maxsize=1024)
def _from(level: int, factor: float) -> np.ndarray:
    """Returns the table uint8 [256] that moves levels away from one, in Pillow's single precision, cut off."""
    moved = np.float32(level) + np.float32(factor) * (np.arange(256, dtype=np.float32) - np.float32(level))
    return np.clip(moved, 0, 255).astype(np.uint8)


def _saturate(image: np.ndarray, parameters: tuple[float, ...], _: np.ndarray) -> np.ndarray:
    """Adds to the saturation of HSV, hue and value staying; cut off to whole levels.

    Grey has hue 0, so it turns red.
    """
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    grey, some = spread == 0, np.maximum(spread, 1)
    # the distance of a channel from the largest grows as the saturation, spread / value, does
    growth = np.minimum(1 + np.float32(parameters[0]) * value / some, value / some)
    result = np.empty_like(image)
    for place, channel in enumerate((red, green, blue)):
        moved = value - (value - channel) * growth
        if place:
            moved = np.where(grey, value * np.float32(1 - parameters[0]), moved)
        result[..., place] = (np.maximum(moved, 0) + np.float32(_TINY)).astype(np.uint8)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# What lies on the slide
# ---------------------------------------------------------------------------------------------------------------------

_BLOTS, _MARGIN = 10, 10  # shapes of a side; 224ths between a blot and the border
_MARKS = 3  # at most
_FEWEST_BUBBLES, _MOST_BUBBLES, _LEAST_RADIUS = 7, 12, 3
_RIM, _RIM_ALPHA, _ALPHA = 2, 130, 100  # a bubble's border in 224ths, and how opaque its white is, of 255


def _stain_deposit(image: np.ndarray, parameters: tuple[float, ...], drawn: np.ndarray) -> np.ndarray:
    """One to so many black blots, of any of ten shapes, anywhere but near the border."""
    most, side = int(parameters[0]), int(parameters[1])
    cover = np.zeros((SIDE, SIDE), np.uint8)
    for shape, x, y in drawn[1:].reshape(-1, 3)[:_whole(drawn[0], 1, most)]:
        left, top = (_whole(each, _MARGIN, SIDE - side - _MARGIN) for each in (x, y))
        cover[top:top + side, left:left + side] |= blots(side)[_whole(shape, 0, _BLOTS - 1)]
    return _mixed(image, cover, 0)


def _bubble(image: np.ndarray, parameters: tuple[float, ...], drawn: np.ndarray) -> np.ndarray:
    """Seven to so many white translucent disks with a brighter rim, each drawn over those before it."""
    cover = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(cover)
    for size, across, down in drawn[1:].reshape(-1, 3)[:_whole(drawn[0], _FEWEST_BUBBLES, int(parameters[1]))]:
        radius = _whole(size, _LEAST_RADIUS, int(parameters[0]))
        x, y = (_whole(each, radius, SIDE - radius) for each in (across, down))
        for reach, alpha in ((radius + _RIM, _RIM_ALPHA), (radius, _ALPHA)):
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=alpha)
    return _mixed(image, np.asarray(cover), 255)


@functools.lru_cache(maxsize=8)
def blots(side: int) -> np.ndarray:
    """Returns ten blots, uint8 [10, side, side], 255 where the deposit is.

    A blot is a rounded spot, from the first to the last ever more ragged, that touches the borders of its square: the
    logarithm of the outline's distance from the middle is a sum of harmonics, drawn once. It fills half to three
    quarters of the square, .6 in the mean, as the published ones do (.54 and .62).
    """
    random = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    order = np.arange(2, 31)
    result = np.zeros((_BLOTS, side, side), np.uint8)
    for index, shape in enumerate(result):
        size = random.random(len(order)) * 0.4 * np.where(order <= 4, 1 / order, index / 9 / np.sqrt(order))
        phase = 2 * np.pi * random.random(len(order))
        radius = np.exp((size * np.cos(order * turn[:, np.newaxis] + phase)).sum(axis=1))
        outline = radius[:, np.newaxis] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        low, high = outline.min(axis=0), outline.max(axis=0)
        picture = Image.new("L", (side, side), 0)
        corners = (outline - low) / (high - low) * (side - 1)
        ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in corners], fill=255)
        shape[:] = np.asarray(picture)
    return result


def _whole(u: float, low: int, high: int) -> int:
    """Returns one of the whole numbers low..high, all equally likely, from a number in 0..1 without 1."""
    return low + int(u * (high - low + 1))


def _mixed(image: np.ndarray, cover: np.ndarray, level: int) -> np.ndarray:
    """Paints a grey level over an image where `cover`, uint8 [224, 224], says: 255 hides the image; rounded."""
    height, width = image.shape[:2]
    if (height, width) != cover.shape:
        filter_ = Image.Resampling.BOX if min(height, width) < SIDE else Image.Resampling.BILINEAR
        cover = np.asarray(Image.fromarray(cover).resize((width, height), filter_))
    share = cover.astype(np.uint16)[..., np.newaxis]
    sum_ = image * (255 - share) + share * np.uint16(level) + np.uint16(128)
    return (((sum_ >> 8) + sum_) >> 8).astype(np.uint8)  # divided by 255 and rounded


CORRUPTIONS: dict[str, Published] = {
    "pixelate": Published("Too few pixels: the image reduced to a share of its side, and enlarged again.", ("scale",),
                          ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)), _pixelate, 0.059756),
    "jpeg": Published("A JPEG file of poor quality.", ("quality",), ((50,), (30,), (15,), (10,), (7,)), _jpeg,
                      0.139762),
    "defocus": Published("Out of focus: each point becomes a disk.", ("radius", "alias"),
                         ((2, 0.01), (3, 0.1), (4, 0.1), (5, 0.1), (6, 0.1)), _defocus, 0.223998),
    "motion": Published("Moved while the shutter was open, in a direction of its own.", ("radius", "sigma"),
                        ((3, 3), (5, 5), (10, 5), (10, 7), (10, 9)), _motion, 0.184519, draws=1),
    "brightness_up": Published("Too much light.", ("factor",), ((1.1,), (1.2,), (1.3,), (1.35,), (1.4,)), _brightness,
                               0.069463),
    "brightness_down": Published("Too little light.", ("factor",), ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
                                 _brightness, 0.079008),
    "contrast_up": Published("Too much contrast.", ("factor",), ((1.1,), (1.15,), (1.2,), (1.25,), (1.3,)), _contrast,
                             0.052154),
    "contrast_down": Published("Too little contrast.", ("factor",), ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)), _contrast,
                               0.079661),
    "saturate": Published("Colours too strong.", ("added",), ((0.05,), (0.1,), (0.15,), (0.17,), (0.2,)), _saturate,
                          0.034786),
    "stain_deposit": Published("Deposits of stain: black blots on the slide.", ("marks", "side"),
                               ((1, 24), (2, 24), (3, 24), (3, 24), (3, 32)), _stain_deposit, 0.185361,
                               draws=1 + 3 * _MARKS),
    "bubble": Published("Air under the cover glass: pale disks.", ("radius", "count"),
                        ((5, 10), (7, 10), (10, 10), (12, 12), (15, 12)), _bubble, 0.128988,
                        draws=1 + 3 * _MOST_BUBBLES),
}
