"""Which images are one picture: equal pixels, or the same picture encoded, shifted or coloured a little differently.

A perceptual hash finds the candidates, and pixels decide: the correlation of grey levels at the shift where the two
agree best, first small and smooth, then of fine structure alone. The band between two Gaussians matters: any two
lymphocytes are a dark disc on a light ground and correlate by 0.95, but their chromatin has nothing in common. What is
to be done about copies belongs to `audit` and `split`.
"""

import dataclasses

import numpy as np
import scipy.ndimage
import tensorflow as tf
import threadpoolctl

from bloodcell.data.dataset import ImageSet

NEAR = 0.93  # least correlation of the fine structure of two images of one picture; unrelated cells reach 0.89
COPIES = 10  # images of one picture that are no accident: in 11,959 real cells no picture has more than two

_SMALL, _SHIFT = 48, 6  # side of the small grey images, and how far two may be shifted there: an eighth of the side
_FINE = 96  # side of the fine ones, twice the small
_BAND = (1.0, 3.0)  # standard deviations of the two Gaussians, in pixels of the fine side
_CANDIDATE, _CANDIDATE_MEMBER = 0.9, 0.8  # least small correlation, smoothed, for a look at the fine structure
# Least fine correlation with one of a picture's images: to count as a copy of it, and to belong to it once it has been
# found to be repeated. Unrelated images reach 0.4 then, badly encoded and recoloured copies fall to 0.75.
_LINK, _MEMBER = 0.8, 0.7
_STRUCTURE = 0.5  # grey levels: least deviation within what is compared
_HAMMING = 12  # of 64 bits, for candidates: two unrelated cells differ in 30, one pair in 10,000 in 12 or fewer
_TRIED = (-2, 0, 2)  # small pixels: shifts of rows and columns at which an image's hash is compared with the others'
_PATIENCE, _MOST_LEADERS = 3, 24  # of the search for all images of an often repeated picture
_LEAST = 24  # pixels; smaller images have no structure to compare
_CHUNK = 512
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True, eq=False)
class Similar:
    """Which of N images are one picture.

    Attributes:
      equal: int64 [N], a number per image; the same where the pixels are.
      pairs: int64 [P, 2], indices (first < second) of images that are nearly the same picture, with unequal pixels: one
        pair for each two groups of equal pixels, by the first image of each, and none of the repeated pictures.
      similarity: float32 [P], the fine correlation of each pair.
      repeated: indices (ascending) of all images of each picture that occurs at least `copies` times.
    """

    equal: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray
    repeated: tuple[np.ndarray, ...]

    def groups(self) -> np.ndarray:
        """Returns int64 [N]: a number per picture, in order of appearance; equal, near and repeated images share it."""
        parent = np.arange(int(self.equal.max(initial=-1)) + 1)

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = int(parent[node])
            return node

        links = [self.equal[self.pairs]] + [self.equal[np.stack([np.full(len(same), same[0]), same], 1)]
                                            for same in self.repeated]
        for first, second in np.concatenate(links).tolist():
            parent[root(first)] = root(second)
        return in_order(np.asarray([root(node) for node in range(len(parent))], np.int64)[self.equal])


# Products of many small matrices: threads of BLAS cost more than they save here, and a lot where cores are busy.
@threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")
def find(images: ImageSet, *, copies: int = COPIES) -> Similar:
    """Finds the images that are one picture.

    Tolerated are lossy encoding, shifts up to an eighth of the side, and changes of colour, brightness and contrast
    that leave the grey structure; not rotations and flips. Images below 24 pixels a side must be equal. The hash is 64
    low frequencies of a discrete cosine transform against their median (C. Zauner, "Implementation and benchmarking of
    perceptual image hash functions", 2010).

    Args:
      images: N images; labels play no part.
      copies: from how many images on a picture counts as repeated, at least 2.

    Returns:
      What was found. Deterministic; memory grows with N by 5 KB an image.
    """
    equal = equal_pixels(images)
    first = np.unique(equal, return_index=True)[1]  # groups are numbered in order of appearance
    weight = np.bincount(equal, minlength=len(first))
    finder = _Finder(images, first, weight, copies)
    if min(images.images.shape[1:3]) >= _LEAST:
        finder.run()
    else:  # only what is equal can be told
        finder.clusters = [np.asarray([number]) for number in np.flatnonzero(weight >= copies)]
    pairs = np.asarray(finder.pairs, np.int64).reshape(-1, 2)
    alone = ~finder.absorbed[pairs].any(axis=1)
    order = np.lexsort(pairs[alone].T[::-1])
    members = [np.flatnonzero(np.isin(equal, cluster)) for cluster in finder.clusters]
    return Similar(equal, first[pairs[alone]][order], np.asarray(finder.similarity, np.float32)[alone][order],
                   tuple(sorted(members, key=lambda same: (-len(same), int(same[0])))))


def groups(images: ImageSet) -> np.ndarray:
    """Returns int64 [N]: a number per picture; see `find`."""
    return find(images).groups()


def equal_pixels(images: ImageSet) -> np.ndarray:
    """Numbers the different images in order of appearance: int64 [N], equal where the pixels are."""
    return in_order(np.unique(images.digests(), axis=0, return_inverse=True)[1].reshape(-1))


def in_order(numbers: np.ndarray) -> np.ndarray:
    """Returns int64 [N]: the same groups of equal numbers, numbered 0, 1, 2, ... in order of appearance."""
    _, first, number = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number.reshape(-1)]


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Returns float32 [N, 64] of -1 and 1: the signs of low frequencies of grey images [N, S, S] about their median.

    The inner product of two hashes is 64 minus twice their Hamming distance.
    """
    side = grey.shape[1]
    rows, columns = np.arange(1, 10)[:, None] - 1, np.arange(side)
    basis = np.cos(np.pi / side * rows * (columns + 0.5)).astype(np.float32)  # of DCT-II, frequencies 0..8
    spectrum = np.einsum("ui,nij,vj->nuv", basis, grey.astype(np.float32), basis, optimize=True).reshape(len(grey), 81)
    low = spectrum[:, 1:65]  # without the mean
    return np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32)


def fine_structure(images: np.ndarray) -> np.ndarray:
    """Returns luma between two Gaussians, float32 [N, 96, 96], of images [N, H, W, 3]: texture without shading."""
    grey = _grey(images, _FINE)
    narrow, wide = (scipy.ndimage.gaussian_filter(grey, (0, sigma, sigma), mode="nearest", truncate=3.0)
                    for sigma in _BAND)
    return narrow - wide


def correlation(first: np.ndarray, second: np.ndarray, *, around: tuple[int, int] = (0, 0), reach: int = 0) -> float:
    """Returns the largest Pearson correlation of two images [S, S] of one channel over whole shifts.

    Args:
      first: one image.
      second: the other; its middle three quarters are compared with windows of that size in `first`.
      around: the shift, in rows and columns, about which to look; at most an eighth of the side.
      reach: how far from there.
    """
    margin = first.shape[0] // 8
    side = first.shape[0] - 2 * margin
    inner = _unit(second[margin:margin + side, margin:margin + side].reshape(1, -1))
    rows, columns = (range(max(0, margin + at - reach), min(2 * margin, margin + at + reach) + 1) for at in around)
    windows = np.stack([first[row:row + side, column:column + side].reshape(-1) for row in rows for column in columns])
    return float((inner @ windows.T * _inverse_norms(windows)).max())


class _Finder:
    """Works on one image of each group of equal pixels; numbers below are of these groups."""

    def __init__(self, images: ImageSet, first: np.ndarray, weight: np.ndarray, copies: int):
        self._pixels, self._first, self._weight, self._copies = images.images, first, weight, copies
        self._small = np.empty((len(first), _SMALL, _SMALL), np.float16)
        for start in range(0, len(first), _CHUNK):
            chunk = self._pixels[first[start:start + _CHUNK]]
            self._small[start:start + _CHUNK] = _smooth(_grey(chunk, _SMALL))
        self._hash = self._hashes(0, 0)
        self.absorbed = np.zeros(len(first), bool)  # in a cluster
        self.clusters: list[np.ndarray] = []
        self.pairs: list[tuple[int, int]] = []
        self.similarity: list[float] = []

    def run(self) -> None:
        """Fills `clusters` and `pairs`."""
        count = self._weight.copy()  # images of the picture seen so far
        for number in np.flatnonzero(self._weight >= self._copies).tolist():
            if not self.absorbed[number]:
                self._grow(number)
        shifted = [self._hashes(down, right) for down in _TRIED for right in _TRIED]
        for start in range(0, len(self._first), _CHUNK):
            near = np.zeros((min(_CHUNK, len(self._first) - start), len(self._first) - start), bool)
            for hashes in shifted:
                near |= hashes[start:start + _CHUNK] @ self._hash[start:].T >= 64 - 2 * _HAMMING
            for at, row in enumerate(near):
                number = start + at
                if self.absorbed[number]:
                    continue
                others = np.flatnonzero(row[at + 1:]) + number + 1
                others = others[~self.absorbed[others]]
                if not len(others):
                    continue
                alike = self._similarity(number, others, _CANDIDATE)
                for other, value in zip(others[alike >= NEAR].tolist(), alike[alike >= NEAR].tolist(), strict=True):
                    self.pairs.append((number, other))
                    self.similarity.append(value)
                linked = others[alike >= _LINK]
                count[linked] += self._weight[number]
                count[number] += self._weight[linked].sum()
                if count[number] >= self._copies:
                    self._grow(number)

    def _hashes(self, down: int, right: int) -> np.ndarray:
        """The hashes of the small images, shifted by so many pixels with repeated edges."""
        rows, columns = (np.clip(np.arange(_SMALL) - by, 0, _SMALL - 1) for by in (down, right))
        return np.concatenate([perceptual_hash(self._small[start:start + _CHUNK][:, rows][:, :, columns])
                               for start in range(0, len(self._small), _CHUNK)])

    def _similarity(self, number: int, others: np.ndarray, least: float) -> np.ndarray:
        """The fine correlation of one image with others, float32 [M]; -1 where the small one is below `least`."""
        side = _SMALL - 2 * _SHIFT
        image = self._small[number].astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(image, (side, side)).reshape(-1, side * side)
        scale = _inverse_norms_of_windows(image, side)
        result = np.full(len(others), -1.0, np.float32)
        fine = None
        for start in range(0, len(others), _CHUNK):
            part = self._small[others[start:start + _CHUNK], _SHIFT:-_SHIFT, _SHIFT:-_SHIFT].astype(np.float32)
            small = _unit(part.reshape(len(part), -1)) @ windows.T * scale
            best = small.argmax(axis=1)
            candidates = np.flatnonzero(small[np.arange(len(part)), best] >= least)
            if not len(candidates):
                continue
            if fine is None:
                fine = fine_structure(self._pixels[self._first[[number]]])[0]
            wanted = fine_structure(self._pixels[self._first[others[start + candidates]]])
            finer = _FINE // _SMALL
            for at, other in zip(candidates.tolist(), wanted, strict=True):
                down, right = divmod(int(best[at]), 2 * _SHIFT + 1)
                result[start + at] = correlation(fine, other, reach=finer,
                                                 around=(finer * (down - _SHIFT), finer * (right - _SHIFT)))
        return result

    def _grow(self, number: int) -> None:
        """Collects all images of the picture: by likeness to one of them, then to the least alike of those, and on."""
        free = np.flatnonzero(~self.absorbed)
        best = np.full(len(free), -1.0, np.float32)
        asked = np.zeros(len(free), bool)
        leader, idle, members = int(np.searchsorted(free, number)), 0, 0
        for _ in range(_MOST_LEADERS):
            asked[leader] = True
            np.maximum(best, self._similarity(int(free[leader]), free, _CANDIDATE_MEMBER), out=best)
            best[leader] = 1.0
            found = int((best >= _MEMBER).sum())
            idle = 0 if found > members else idle + 1
            members = found
            left = np.flatnonzero((best >= _LINK) & ~asked)
            if idle == _PATIENCE or not len(left):
                break
            leader = int(left[best[left].argmin()])
        cluster = free[best >= _MEMBER]
        if self._weight[cluster].sum() >= self._copies:
            self.absorbed[cluster] = True
            self.clusters.append(cluster)


def _grey(images: np.ndarray, side: int) -> np.ndarray:
    """Luma of images [N, H, W, 3], each pixel the mean of the area it covers: float32 [N, side, side]."""
    grey = images.astype(np.float32) @ _LUMA
    if grey.shape[1:] == (side, side):
        return grey
    if grey.shape[1:] == (2 * side, 2 * side):
        return grey.reshape(-1, side, 2, side, 2).mean(axis=(2, 4))
    with tf.device("CPU:0"):
        return tf.image.resize(grey[..., None], (side, side), tf.image.ResizeMethod.AREA).numpy()[..., 0]


def _smooth(grey: np.ndarray) -> np.ndarray:
    """Binomial 3x3, so that half a pixel of shift does not matter; edges repeat."""
    for axis in (1, 2):
        low = np.concatenate([grey.take([0], axis), grey.take(range(grey.shape[axis] - 1), axis)], axis)
        high = np.concatenate([grey.take(range(1, grey.shape[axis]), axis), grey.take([-1], axis)], axis)
        grey = 0.5 * grey + 0.25 * (low + high)
    return grey


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and norm 1; rows without structure become 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred * _inverse_norms(rows)[:, None]


def _inverse_norms(rows: np.ndarray) -> np.ndarray:
    """One over the norm of each row less its mean; 0 where the row deviates from it by less than half a grey level.

    A centred row's product with a row and this number is their correlation: the other row needs no centring.
    """
    return _inverted(np.einsum("ij,ij->i", rows, rows, dtype=np.float64), rows.sum(axis=1, dtype=np.float64),
                     rows.shape[1])


def _inverse_norms_of_windows(image: np.ndarray, side: int) -> np.ndarray:
    """`_inverse_norms` of all windows of a square image, row by row, from sums over the rectangles at its corner."""
    sums = np.zeros((2, len(image) + 1, len(image) + 1))
    sums[:, 1:, 1:] = np.stack([np.square(image, dtype=np.float64), image]).cumsum(axis=1).cumsum(axis=2)
    rows = sums[:, side:] - sums[:, :-side]
    squares, total = (rows[:, :, side:] - rows[:, :, :-side]).reshape(2, -1)
    return _inverted(squares, total, side * side)


def _inverted(squares: np.ndarray, total: np.ndarray, count: int) -> np.ndarray:
    """One over the norms of centred rows, float32, from the sums of their squares and of their `count` numbers."""
    squares = squares - total ** 2 / count
    return np.where(squares >= _STRUCTURE ** 2 * count, 1 / np.sqrt(np.maximum(squares, 1e-9)), 0).astype(np.float32)
