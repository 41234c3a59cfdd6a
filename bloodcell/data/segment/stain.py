"""How strongly each pixel is stained, apart from the red of red cells, and Otsu's threshold on it.

Light that passes through dye is weakened by a factor (Beer and Lambert), so colours become optical densities against
the slide's bare ground. What shape a cell may have does not belong here (`shape`).
"""

import numpy as np
from scipy import ndimage

BINS = 256
_TOP = 0.25  # stain that falls into the last bin: nuclei are beyond, so the histogram's room is for cytoplasm

# Haemoglobin weakens blue light nearly as much as green; the dyes of Romanowsky stains weaken green far more. Fitted on
# BloodMNIST's smears: this multiple of the blue density makes red cells vanish, and cytoplasm stay.
_BLUE = 1.4
_BARE = 0.10  # green density (natural logarithm) below which a pixel is bare ground

_LOG = np.log(np.arange(256) + 1.0).astype(np.float32)


def width(pixels_at_96: float, side: int) -> int:
    """Returns a length given for images of 96 pixels a side in pixels of images of `side`, at least 1."""
    return max(1, round(pixels_at_96 * side / 96))


def smoothed(planes: np.ndarray, reach: float) -> np.ndarray:
    """Returns the mean over a square that reaches `reach` pixels (of 96) to each side; float32 [N, H, W]."""
    size = 2 * width(reach, min(planes.shape[1:])) + 1
    return ndimage.uniform_filter(planes, (0, size, size), mode="nearest")


def ground(images: np.ndarray) -> np.ndarray:
    """Returns the colour of the bare slide in each image, float32 [N, 3] in grey levels.

    It is the mean of the pixels that are brighter than 88 % of the image's, without the brightest 2 % (glare, dead
    pixels): a picture of one cell has that much ground.

    Args:
      images: uint8 [N, H, W, 3].
    """
    step = 2 if min(images.shape[1:3]) >= 64 else 1  # a quarter of the pixels has the same ranks
    pixels = images[:, ::step, ::step].reshape(len(images), -1, 3)
    brightness = pixels.sum(axis=2, dtype=np.int16)
    last = brightness.shape[1] - 1
    ranks = [int(0.88 * last), int(0.98 * last)]
    limits = np.partition(brightness, ranks, axis=1)[:, ranks]
    bright = (brightness >= limits[:, :1]) & (brightness <= limits[:, 1:])
    sums = np.stack([(pixels[..., channel] * bright).sum(axis=1, dtype=np.int64) for channel in range(3)], axis=1)
    return (sums / bright.sum(axis=1)[:, None]).astype(np.float32)


def densities(images: np.ndarray, bare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the optical densities of green and blue light, each float32 [N, H, W], 0 where the ground is bare.

    Args:
      images: uint8 [N, H, W, 3].
      bare: the ground's colours [N, 3].
    """
    dark = np.log(bare + 1).astype(np.float32)[:, None, None]
    return dark[..., 1] - _LOG[images[..., 1]], dark[..., 2] - _LOG[images[..., 2]]


def covered(green: np.ndarray) -> np.ndarray:
    """Returns where something lies on the slide, a red cell or any other; bool [N, H, W] of green densities."""
    return green > _BARE


def stained(green: np.ndarray, blue: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pixels that the dyes have stained.

    Otsu's threshold lies between the nucleus and all else; cytoplasm is paler, so a share of it is taken.

    Args:
      green: optical densities [N, H, W].
      blue: the same.
      level: that share.

    Returns:
      Where there is stain, bool [N, H, W]; and how well the threshold parts the image in two, float64 [N] from 0 to 1
      (variance between the two kinds of pixels over the whole variance, Otsu's own measure).
    """
    index = smoothed(green - np.float32(_BLUE) * blue, 2)
    bins = np.clip(index * np.float32(BINS / _TOP), 0, BINS - 1).astype(np.uint8)
    counts = histograms(bins)
    cut, parted = otsu(counts)
    limit = ((cut + 1) * (level * _TOP / BINS)).astype(np.float32)
    return (index > limit[:, None, None]) & covered(green), parted


def histograms(bins: np.ndarray) -> np.ndarray:
    """Counts the values of each image; uint8 [N, H, W] gives int64 [N, 256]."""
    n = len(bins)
    codes = bins.reshape(n, -1).astype(np.int32) + BINS * np.arange(n, dtype=np.int32)[:, None]
    return np.bincount(codes.ravel(), minlength=n * BINS).reshape(n, BINS)


def otsu(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Otsu's threshold of many histograms at once (N. Otsu, IEEE Trans. SMC 9 (1979) 62).

    Args:
      counts: [N, B].

    Returns:
      The bin up to which values are of the lower class, int64 [N] (the lowest of equally good ones; 0 where all values
      are alike), and the variance between the classes over the whole variance, float64 [N] in 0..1.
    """
    weights = counts.astype(np.float64)
    value = np.arange(counts.shape[1])
    total, whole = weights.sum(axis=1, keepdims=True), (weights * value).sum(axis=1, keepdims=True)
    below, moment = weights.cumsum(axis=1), (weights * value).cumsum(axis=1)
    rest = below * (total - below)
    between = np.divide((whole * below - total * moment) ** 2, rest, out=np.zeros_like(weights), where=rest > 0)
    cut = between.argmax(axis=1)
    best = np.take_along_axis(between, cut[:, None], axis=1)[:, 0]
    spread = (weights * value**2).sum(axis=1) * total[:, 0] - whole[:, 0] ** 2
    return cut, np.divide(best, spread, out=np.zeros_like(best), where=spread > 0)
