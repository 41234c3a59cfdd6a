"""From pixels that look like cell to the one object in the middle: whole, without holes, without its neighbours."""

import numpy as np
from scipy import ndimage

from bloodcell.data.segment.stain import width

_PLANE = np.zeros((3, 3, 3), bool)  # neighbours: the four pixels beside, never those of another image
_PLANE[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]

_NECK = 3  # reach in pixels (of 96) of the disc that fits into whatever is kept: thinner bridges and specks go
_BAY = 5  # reach in pixels (of 96) of bays that are closed where something lies in them
_MIDDLE = 0.18  # standard deviation, as a share of the side, of the weight that prefers the middle
_SECOND = 0.5  # an object with this share of the best one's weight is a piece of the same cell


def central_object(rough: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Cleans masks up.

    Bridges and specks thinner than a small disc are removed; of what remains, the object with the largest weight stays
    (each pixel weighs more the nearer to the middle it is) and those with at least half of it, because a burst cell has
    several pieces; then bays are closed where the slide is covered, and holes are filled.

    Args:
      rough: pixels that look like cell, bool [N, H, W].
      covered: pixels that are not bare ground, bool [N, H, W].

    Returns:
      bool [N, H, W].
    """
    side = min(rough.shape[1:])
    mask = opened(rough, width(_NECK, side))
    mask = _heaviest(mask)
    reach = width(_BAY, side)
    mask |= _closed(mask, reach) & covered
    return filled(mask)


def outline(mask: np.ndarray) -> np.ndarray:
    """Returns the outermost pixels of each object, bool [N, H, W]."""
    return mask & ~_shifts(mask, _disc_rows(1), np.logical_and, outside=False)


def opened(mask: np.ndarray, reach: int) -> np.ndarray:
    """Returns what a disc of that reach covers when it lies wholly inside; beyond the border all is taken as inside."""
    rows = _disc_rows(reach)
    inside = _shifts(mask, rows, np.logical_and, outside=True)
    return mask & _shifts(inside, rows, np.logical_or, outside=False)


def filled(mask: np.ndarray) -> np.ndarray:
    """Adds what cannot be reached from the border without crossing the mask."""
    labels, count = ndimage.label(~mask, _PLANE)
    open_ = np.zeros(count + 1, bool)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        open_[edge.ravel()] = True
    open_[0] = False  # the mask itself
    return ~open_[labels]


def _heaviest(mask: np.ndarray) -> np.ndarray:
    height, wide = mask.shape[1:]
    labels, count = ndimage.label(mask, _PLANE)
    if not count:
        return mask
    y, x = ((np.arange(side) - (side - 1) / 2) / side for side in (height, wide))
    weight = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * _MIDDLE**2))
    sums = np.zeros(count + 1)
    keep = np.zeros(count + 1, bool)
    for image in labels:  # numbers rise from image to image, so each has a range of its own
        found = np.bincount(image.ravel(), weights=weight.ravel())
        own = np.flatnonzero(found)
        own = own[own > 0]
        if len(own):
            sums[own] = found[own]
            keep[own] = sums[own] >= _SECOND * sums[own].max()
    return keep[labels]


def _disc_rows(reach: int) -> list[tuple[int, int]]:
    """Returns (row, half width) of each row of a disc."""
    return [(dy, int(np.sqrt((reach + 0.5) ** 2 - dy**2))) for dy in range(-reach, reach + 1)]


def _shifts(mask: np.ndarray, rows: list[tuple[int, int]], join: np.ufunc, *, outside: bool) -> np.ndarray:
    """Joins the mask's copies shifted to every pixel of a disc, row by row: runs first, then the runs' sum."""
    reach = rows[-1][0]
    n, height, wide = mask.shape
    padded = np.full((n, height + 2 * reach, wide + 2 * reach), outside)
    padded[:, reach:-reach, reach:-reach] = mask
    run = padded[:, :, reach:reach + wide].copy()  # reach 0; grown to each half width in turn
    runs = {0: run}
    for half in range(1, reach + 1):
        run = join(join(run, padded[:, :, reach - half:reach - half + wide]),
                   padded[:, :, reach + half:reach + half + wide])
        runs[half] = run
    result = runs[rows[reach][1]][:, reach:reach + height].copy()
    for dy, half in rows:
        if dy:
            join(result, runs[half][:, reach + dy:reach + dy + height], out=result)
    return result


def _closed(mask: np.ndarray, reach: int) -> np.ndarray:
    """Returns the mask grown by a square and shrunk again; nothing lies beyond the border."""
    padded = np.pad(mask.astype(np.uint8), ((0, 0), (2 * reach, 2 * reach), (2 * reach, 2 * reach)))
    size = 2 * reach + 1
    for filter_ in (ndimage.maximum_filter1d, ndimage.minimum_filter1d):
        for axis in (1, 2):
            padded = filter_(padded, size, axis=axis, mode="constant", cval=0)
    return padded[:, 2 * reach:-2 * reach, 2 * reach:-2 * reach].astype(bool)
