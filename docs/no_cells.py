"""Pictures that are no blood cells, for `docs.novelty`: contaminants, photographs, text, noise, plain colours.

What an installation has beside it is used: scikit-image's, scikit-learn's and matplotlib's sample pictures. The rest is
drawn, and the same for one seed. How well they are told from cells is measured in `novelty`.
"""

import pathlib
import string
from collections.abc import Mapping

import matplotlib.cbook
import numpy as np
import scipy.ndimage
import skimage.data
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from bloodcell import augment
from bloodcell.errors import InputError
from bloodcell.evaluate import corruptions

RECOLOURED = "hue(0.5)@0.5 | channel_shift(0.3)@0.5 | channel_shuffle@0.25 | rotate(30) | translate(0.2)"
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
               "moon", "rocket")  # of scikit-image
TISSUE = ("cell", "immunohistochemistry", "retina", "microaneurysms")  # pictures from a microscope or an eye's camera

_LEAST_CROP = 0.25  # of the shorter side, and no less than the side of the images


def every(contaminants: Mapping[str, np.ndarray], *, size: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Returns sets of no-cells by name, each uint8 [count, size, size, 3].

    Args:
      contaminants: uint8 [size, size, 3] by name; each is a set, recoloured and shifted, and under `heavy` another.
      size: of the images, in pixels.
      count: images a set.
      seed: of what is drawn.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    ids = tf.range(count, dtype=tf.int64)
    policy = augment.parse(RECOLOURED)
    sets = {}
    for name, image in contaminants.items():
        copies = tf.constant(np.repeat(image[np.newaxis], count, axis=0))
        sets[f"{name}, recoloured and shifted"] = policy(copies, ids, epoch=0, seed=seed, dtype="uint8").numpy()
        sets[f"{name}, heavy"] = corruptions.heavy(copies, ids).numpy()
    sets["photographs"] = crops(photographs(), size=size, count=count, random=random)
    sets["tissue and retina"] = crops([_rgb(getattr(skimage.data, name)()) for name in TISSUE], size=size, count=count,
                                      random=random)
    sets["text"] = np.stack([_text(size, random) for _ in range(count)])
    sets["noise, uniform"] = random.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    sets["noise, Gaussian"] = np.stack([_noise(size, random) for _ in range(count)])
    sets["noise, blurred"] = np.stack([_clouds(size, random) for _ in range(count)])
    colours = random.integers(0, 256, (count, 1, 1, 3)).astype(np.uint8)
    sets["plain colours"] = np.broadcast_to(colours, (count, size, size, 3)).copy()
    return sets


def contaminants(folder: pathlib.Path, size: int) -> dict[str, np.ndarray]:
    """Returns the pictures of a folder by name, uint8 [size, size, 3].

    Raises:
      InputError: there is none.
    """
    found = {path.stem: np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
             for path in sorted(folder.glob("*.png"))}
    if not found:
        raise InputError(f"--contaminants expected a folder with PNG files, received {folder}; try another folder")
    return found


def photographs() -> list[np.ndarray]:
    """Returns the photographs that an installation brings, uint8 [H, W, 3] each."""
    of_skimage = [_rgb(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    portrait = Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return [*of_skimage, *sklearn.datasets.load_sample_images().images, np.asarray(portrait.convert("RGB"))]


def crops(pictures: list[np.ndarray], *, size: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns square parts of pictures, each picture in turn, uint8 [count, size, size, 3]."""
    result = np.empty((count, size, size, 3), np.uint8)
    for row in range(count):
        picture = pictures[row % len(pictures)]
        short = min(picture.shape[:2])
        side = int(random.integers(min(max(size, int(_LEAST_CROP * short)), short), short + 1))
        top, left = (int(random.integers(0, whole - side + 1)) for whole in picture.shape[:2])
        part = Image.fromarray(picture[top:top + side, left:left + side])
        result[row] = np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))
    return result


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(picture)).convert("RGB"))


def _text(size: int, random: np.random.Generator) -> np.ndarray:
    """Lines of random words in Pillow's own font, of 8 to 40 pixels, half of them black on white."""
    ink, paper = ((0, 0, 0), (255, 255, 255)) if random.random() < 0.5 else _apart(random)
    picture = Image.new("RGB", (size, size), paper)
    height = int(random.integers(8, 41))
    font, pen, letters = ImageFont.load_default(size=height), ImageDraw.Draw(picture), list(string.ascii_letters)
    for top in range(0, size, height + 2):
        words = ["".join(random.choice(letters, int(random.integers(2, 9)))) for _ in range(6)]
        pen.text((-int(random.integers(0, height)), top), " ".join(words), fill=ink, font=font)
    return np.asarray(picture)


def _apart(random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while True:
        one, other = random.integers(0, 256, (2, 3))
        if abs(int(one.sum()) - int(other.sum())) > 200:
            return tuple(one.tolist()), tuple(other.tolist())


def _noise(size: int, random: np.random.Generator) -> np.ndarray:
    """A plain colour under Gaussian noise of 10 to 100 levels."""
    colour, deviation = random.integers(0, 256, 3), random.uniform(10, 100)
    return np.clip(np.rint(colour + deviation * random.standard_normal((size, size, 3))), 0, 255).astype(np.uint8)


def _clouds(size: int, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise blurred by a 48th to a fifth of the side and stretched: coloured clouds."""
    field = scipy.ndimage.gaussian_filter(random.standard_normal((size, size, 3)),
                                          (*[size * random.uniform(1 / 48, 0.2)] * 2, 0), mode="wrap")
    field = (field - field.mean()) / max(field.std(), 1e-9)
    return np.clip(np.rint(128 + random.uniform(20, 90) * field), 0, 255).astype(np.uint8)
