"""Where the pixels come from that K nearest neighbours learn from: images with masks, or the set's own clear cells."""

import pathlib

import numpy as np

from bloodcell.data import decode, npz
from bloodcell.data.resize import to_square
from bloodcell.data.segment import nearest, shape, stain
from bloodcell.errors import InputError

SUFFIX = "_mask"  # NAME_mask.png beside NAME.png, .jpg, .jpeg or .bmp
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp")

PIXELS = 4000  # of each kind
LOOKED_AT, USED = 512, 128  # images of a set that are looked at for clear cells, and taken at most
_LEAST = 8  # clear cells that make a set one of cells
_MOST_FILES = 1000
_MOST_BYTES = 2**31  # of the images of masks
_LEAST_PARTED = 0.7  # of Otsu's measure: below, nucleus and ground are not two kinds of pixels
_BORDER = 0.05  # share of the border that a clear cell may touch


def from_set(images: np.ndarray, level: float) -> nearest.Seeds:
    """Takes seeds from clear cells that the stain threshold finds in the set itself.

    Clear is: nucleus and ground are two kinds of pixels, the cell takes 3 % to 60 % of the image and lies inside it.
    Images are looked at in even steps through the set.

    Args:
      images: uint8 [N, H, W, 3].
      level: see `stain.stained`.

    Raises:
      InputError: fewer than eight clear cells among at most 512 images.
    """
    few = images[np.unique(np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(np.int64))]
    green, blue = stain.densities(few, stain.ground(few))
    rough, parted = stain.stained(green, blue, level)
    masks = shape.central_object(rough, stain.covered(green))
    share = masks.mean(axis=(1, 2))
    border = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], axis=1).mean(axis=1)
    clear = np.flatnonzero((parted > _LEAST_PARTED) & (share > 0.03) & (share < 0.6) & (border < _BORDER))
    if len(clear) < min(_LEAST, len(few)):
        raise InputError(f"--segment: knn expected stained cells on a bright ground to learn from, received {len(few)} "
                         f"images with {len(clear)} clear ones among them; try masks='FOLDER' with images and masks")
    clear = clear[np.unique(np.linspace(0, len(clear) - 1, min(len(clear), USED)).astype(np.int64))]
    return _pixels(few[clear], masks[clear])


def from_files(path: str, size: int | None) -> tuple[nearest.Seeds, np.ndarray, np.ndarray]:
    """Takes seeds from images with masks.

    Args:
      path: a folder with NAME_mask.png beside each NAME.png (or .jpg, .jpeg, .bmp), or a .npz with `images` uint8
        [M,H,W,3] and `masks` bool or uint8 [M,H,W]. A mask is foreground where it is above half its range (bool: True;
        uint8: above 127, or above 0 where nothing is above 1).
      size: the side in pixels to which images and masks are brought (centred square); None: as they are.

    Returns:
      The seeds; the images uint8 [M,H,W,3] and their masks bool [M,H,W].

    Raises:
      InputError: nothing there, images without masks, shapes that do not fit, or masks without foreground or ground.
    """
    where = pathlib.Path(path).expanduser()
    if where.is_dir():
        pairs = _folder(where, size)
    elif where.suffix.lower() == ".npz" and where.is_file():
        pairs = _npz(where, size)
    else:
        raise InputError(f"--segment: expected masks='FOLDER' or masks='FILE.npz', received '{path}', where there is "
                         f"{'no such file' if not where.exists() else 'a file of another kind'}; try its full path")
    for name, _, mask in pairs:
        if not mask.any() or mask.all():
            raise InputError(f"--segment: {name}: expected a mask with foreground and ground, received "
                             f"{'foreground' if mask.all() else 'ground'} alone; try painting the cell white on black")
    images, masks = (np.stack([pair[place] for pair in pairs]) for place in (1, 2))
    return _pixels(images, masks), images, masks


def _pixels(images: np.ndarray, masks: np.ndarray) -> nearest.Seeds:
    """Draws as many pixels of the foreground as of the rest, alike from all images; the same at every call."""
    count, height, width = masks.shape
    where = np.broadcast_to(nearest.places(height, width), (count, height, width, 2))
    features = np.concatenate([nearest.colours(images, stain.ground(images)), where], axis=-1)
    generator = np.random.Generator(np.random.Philox(key=0))
    chosen, foreground = [], []
    for kind in (True, False):
        for image, of_kind in zip(features, masks == kind, strict=True):
            picked = generator.permutation(np.flatnonzero(of_kind))[:-(-PIXELS // count)]
            chosen.append(image.reshape(-1, 5)[np.sort(picked)])
            foreground.append(np.full(len(picked), kind))
    return nearest.Seeds(np.concatenate(chosen).astype(np.float32), np.concatenate(foreground))


def _binary(mask: np.ndarray) -> np.ndarray:
    return mask if mask.dtype == bool else mask > (127 if mask.max(initial=0) > 1 else 0)


def _brought(image: np.ndarray, mask: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    mask = _binary(mask)
    if size is None:
        return image, mask
    grey = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[None, ..., None], 3, axis=-1)
    return to_square(image[None], size)[0], to_square(grey, size)[0, ..., 0] > 127


def _folder(path: pathlib.Path, size: int | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    names = {entry.name: entry for entry in sorted(path.iterdir())
             if entry.is_file() and entry.suffix.lower() in _IMAGES and not entry.name.startswith(".")}
    masks = {entry.stem[:-len(SUFFIX)]: entry for entry in names.values() if entry.stem.endswith(SUFFIX)}
    images = {entry.stem: entry for entry in names.values() if not entry.stem.endswith(SUFFIX)}
    alone = sorted(images.keys() ^ masks.keys())
    if not masks or alone:
        received = (f"'{images.get(alone[0], masks.get(alone[0]))}' alone" if alone else "no image at all")
        raise InputError(f"--segment: {path}: expected pairs NAME.png and NAME{SUFFIX}.png, received {received}; "
                         "try a folder that holds such pairs and nothing else")
    if len(masks) > _MOST_FILES:
        raise InputError(f"--segment: {path}: expected a handful of masks, received {len(masks):,}; "
                         f"try at most {_MOST_FILES:,}")
    pairs = []
    for stem, entry in images.items():
        image, mask = _decoded(entry), _decoded(masks[stem])[..., 0]
        _same_shape(str(masks[stem]), image.shape[:2], mask.shape)
        pairs.append((str(masks[stem]), *_brought(image, mask, size)))
    sizes = {image.shape for _, image, _ in pairs}
    if len(sizes) > 1:
        raise InputError(f"--segment: {path}: expected images of one size, received {len(sizes)} sizes; "
                         "try --image_size")
    return pairs


def _same_shape(name: str, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image != mask:
        raise InputError(f"--segment: {name}: expected a mask of {image[0]}x{image[1]} pixels like its image, received "
                         f"{mask[0]}x{mask[1]}; try saving it at the image's size")


def _decoded(path: pathlib.Path) -> np.ndarray:
    image = decode.decode_file(path)
    if isinstance(image, str):
        raise InputError(f"--segment: expected an image file, received {path} ({image}); try saving it again as PNG")
    return image


def _npz(path: pathlib.Path, size: int | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    images, masks = npz.arrays(path, ("images", "masks"), _MOST_BYTES).values()
    received = f"images {images.dtype} {list(images.shape)} and masks {masks.dtype} {list(masks.shape)}"
    if (images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images)
            or masks.dtype not in (np.dtype(bool), np.dtype(np.uint8)) or masks.shape != images.shape[:3]):
        raise InputError(f"--segment: {path}: expected images uint8 [M,H,W,3] and masks bool or uint8 [M,H,W], "
                         f"received {received}; try np.savez(images=images, masks=masks)")
    return [(f"{path}: mask {index}", *_brought(image, mask, size))
            for index, (image, mask) in enumerate(zip(images, masks, strict=True))]
