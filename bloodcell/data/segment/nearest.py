"""K nearest neighbours on colour and position, as a table: which pixels look like the foreground of the seeds.

A query of the neighbours for every pixel of a set would take hours, so colour and position are cut into small boxes and
a box is asked once, at its middle, when a pixel first falls into it. The answer of a box depends on the seeds alone,
not on which images came before. Where seeds come from is `seeds`' business.
"""

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from bloodcell.data.segment import stain

_COLOURS, _PLACES = 64, 8  # boxes along each colour channel, and along each half side
_BRIGHTEST = 1.125  # of the ground: brighter colours fall into the last box
_UNKNOWN = 2
_REACH = 2  # pixels (of 96) to each side over which colour is averaged: single pixels carry the camera's noise


def colours(images: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """Returns colours as shares of the bare ground's, 1 where it is bare: float32 [N, H, W, 3].

    Slides are dyed and lit differently; against their ground they are alike.

    Args:
      images: uint8 [N, H, W, 3].
      bare: the ground's colours [N, 3].
    """
    bare = np.maximum(bare, 1)
    return np.stack([stain.smoothed(images[..., channel].astype(np.float32), _REACH) / bare[:, channel, None, None]
                     for channel in range(3)], axis=-1)


def places(height: int, width: int) -> np.ndarray:
    """Returns how far each pixel is from the middle, across and down, in half sides: float32 [H, W, 2] in 0..1.

    A cell has neither top nor left, so a pixel and its mirror images are at one place.
    """
    down, across = (np.abs((2 * np.arange(side) + 1) / side - 1).astype(np.float32) for side in (height, width))
    return np.stack(np.broadcast_arrays(across[None, :], down[:, None]), axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """Pixels whose kind is known.

    Attributes:
      features: float32 [S, 5]: red, green, blue (see `colours`), across, down (see `places`).
      foreground: bool [S].
    """

    features: np.ndarray
    foreground: np.ndarray


class Table:
    """Answers for every pixel whether most of its `k` nearest seeds are foreground."""

    def __init__(self, seeds: Seeds, *, k: int, position: float) -> None:
        """Takes the seeds.

        Args:
          seeds: at least `k`.
          k: neighbours, an odd number, so that no vote is a tie.
          position: what half a side counts, in colour ranges (from black to the ground).
        """
        self._weights = np.array([1, 1, 1, position, position], np.float32)
        self._tree = cKDTree(seeds.features * self._weights)
        self._foreground, self._k = seeds.foreground, k
        self._known = np.full(_COLOURS**3 * _PLACES**2, _UNKNOWN, np.uint8)

    def exact(self, features: np.ndarray) -> np.ndarray:
        """Returns the vote of the `k` nearest seeds; float32 [M, 5] gives bool [M]."""
        nearest = self._tree.query(features * self._weights, self._k, workers=-1)[1].reshape(len(features), self._k)
        return self._foreground[nearest].sum(axis=1) * 2 > self._k

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        """Returns the vote for each pixel's box.

        Args:
          shares: float32 [N, H, W, 3], from `colours`.

        Returns:
          bool [N, H, W].
        """
        boxes = np.clip(shares * np.float32(_COLOURS / _BRIGHTEST), 0, _COLOURS - 1).astype(np.int32)
        codes = (boxes[..., 0] * _COLOURS + boxes[..., 1]) * _COLOURS + boxes[..., 2]
        where = np.minimum(places(*shares.shape[1:3]) * _PLACES, _PLACES - 1).astype(np.int32)
        codes = codes * _PLACES**2 + (where[..., 0] * _PLACES + where[..., 1])
        answers = self._known[codes]
        new = np.unique(codes[answers == _UNKNOWN])
        if len(new):
            self._known[new] = self.exact(_middles(new))
            answers = self._known[codes]
        return answers.astype(bool)


def _middles(codes: np.ndarray) -> np.ndarray:
    """Returns the features in the middle of boxes; int32 [M] gives float32 [M, 5]."""
    place, colour = codes % _PLACES**2, codes // _PLACES**2
    box = np.stack([colour // _COLOURS**2, colour // _COLOURS % _COLOURS, colour % _COLOURS], axis=1)
    spot = np.stack([place // _PLACES, place % _PLACES], axis=1)
    return np.concatenate([(box + 0.5) * (_BRIGHTEST / _COLOURS), (spot + 0.5) / _PLACES], axis=1).astype(np.float32)
