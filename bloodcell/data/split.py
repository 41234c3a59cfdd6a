"""Divides one set into training, validation and test parts; each way of splitting is one entry of `SPLITS`.

Which images are worth keeping (audit) does not belong here.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell import spec
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

_PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The parts of one set; `test` is None where the spec asks for two parts."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of splitting.

    Attributes:
      params: what its spec takes.
      check: raises InputError where values do not fit together; called with the bound parameters.
      parts: called with (labels int64 [N], group int64 [N], seed, bound parameters); returns an index array per part.
        Images of one group are copies of each other and must stay together.
    """

    params: tuple[spec.Param, ...]
    check: Callable[[dict[str, Any]], None]
    parts: Callable[[np.ndarray, np.ndarray, int, dict[str, Any]], list[np.ndarray]]


def validate(text: str) -> None:
    """Checks a split's spec without data; InputError where it is wrong."""
    _bound(text)


def split(images: ImageSet, spec_text: str, seed: int) -> Splits:
    """Divides a labelled set.

    Args:
      images: the set.
      spec_text: "fractions(train, val)" or "fractions(train, val, test)": shares that sum to 1, of every class.
      seed: the same seed and data give the same parts.

    Returns:
      The parts, each in the order of the source, with the source's ids. Images with equal pixels are in one part, and
      every class is in every part where it has that many different images.

    Raises:
      InputError: a bad spec, an unlabelled set, or a part that would be empty.
    """
    entry, values = _bound(spec_text)
    if images.labels is None:
        raise InputError(f"--split: expected labelled images, received {images.origin} without labels")
    indices = entry.parts(images.labels, _copies(images.images), seed, values)
    for name, index in zip(_PARTS, indices, strict=False):
        if not len(index):
            raise InputError(f"--split: expected at least one image for {name}, received none of {len(images)} by "
                             f"{spec_text}; try a larger share or more images")
    parts = [images.subset(index) for index in indices]
    return Splits(parts[0], parts[1], parts[2] if len(parts) > 2 else None)


def _bound(text: str) -> tuple[Entry, dict[str, Any]]:
    term = spec.only_term(spec.parse(text, what="--split"), what="--split")
    entry: Entry = spec.lookup(term, SPLITS, what="--split")
    values = spec.bind(term, entry.params, what="--split")
    entry.check(values)
    return entry, values


def _copies(images: np.ndarray) -> np.ndarray:
    """Numbers the different images: int64 [N], equal where the pixels are."""
    seen: dict[bytes, int] = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images)
    return np.asarray([seen.setdefault(digest, len(seen)) for digest in digests], np.int64)


def _shares(values: dict[str, Any]) -> list[float]:
    return [values[part] for part in _PARTS if values[part] is not None]


def _check_fractions(values: dict[str, Any]) -> None:
    shares = _shares(values)
    text = ", ".join(f"{share:g}" for share in shares)
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"--split: fractions expected shares above 0 that sum to 1, received {text} (sum "
                         f"{sum(shares):g}); try fractions(0.8, 0.1, 0.1)")


def _fractions(labels: np.ndarray, group: np.ndarray, seed: int, values: dict[str, Any]) -> list[np.ndarray]:
    """Stratified: large groups first, then single images in random order, each to where its class lacks most."""
    shares = np.asarray(_shares(values))
    num_parts, num_classes, num_groups = len(shares), int(labels.max()) + 1, int(group.max()) + 1
    counts = np.zeros((num_groups, num_classes), np.int64)  # images of each class in each group
    np.add.at(counts, (group, labels), 1)
    lacking = np.stack([_targets(total, shares) for total in counts.sum(0)], axis=1)  # [part, class]
    order = np.random.Generator(np.random.Philox(key=seed % 2**64)).permutation(num_groups)
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    part_of = np.empty(num_groups, np.int64)
    for g in order:
        classes = np.flatnonzero(counts[g])
        part = int(np.argmax(lacking[:, classes] @ counts[g, classes]))
        part_of[g] = part
        lacking[part] -= counts[g]
    _fill_empty(part_of, counts, order, num_parts)
    of_image = part_of[group]
    return [np.flatnonzero(of_image == part) for part in range(num_parts)]


def _targets(total: int, shares: np.ndarray) -> np.ndarray:
    """Largest remainders: whole numbers that sum to `total` in proportion to `shares`."""
    exact = total * shares
    target = np.floor(exact + 1e-9).astype(np.int64)
    rest = total - int(target.sum())
    target[np.argsort(target - exact, kind="stable")[:rest]] += 1
    return target


def _fill_empty(part_of: np.ndarray, counts: np.ndarray, order: np.ndarray, num_parts: int) -> None:
    """Moves the smallest group it can to each part that has none of a class, unless its own part would lose a class."""
    groups = np.zeros((num_parts, counts.shape[1]), np.int64)  # groups of each class in each part
    np.add.at(groups, part_of, (counts > 0).astype(np.int64))
    for part, label in np.argwhere(groups == 0):
        if groups[part, label]:
            continue  # an earlier move brought it
        for g in reversed(order):
            held = counts[g] > 0
            if held[label] and np.all(groups[part_of[g], held] > 1):
                groups[part_of[g], held] -= 1
                groups[part, held] += 1
                part_of[g] = part
                break


SPLITS: dict[str, Entry] = {
    "fractions": Entry(
        params=(spec.Param("train", float, low=0.0, high=1.0, unit="of the images"),
                spec.Param("val", float, low=0.0, high=1.0, unit="of the images"),
                spec.Param("test", float, None, low=0.0, high=1.0, unit="of the images", optional=True)),
        check=_check_fractions,
        parts=_fractions),
}
