"""Divides one set into training, validation and test parts; each way of splitting is one entry of `SPLITS`.

Every way is stratified, and images of one picture stay together. Which images are worth keeping (audit) does not belong
here, nor what is done about unequal classes (`balance`); how a division is kept with a run is in `division`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bloodcell import spec
from bloodcell.data import similarity
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

_PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The parts of one set; `test` is None where the spec asks for two parts."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What a division looks at.

    labels: int64 [N]. group: int64 [N]; images of one group are one picture and must stay together. names: the classes.
    """

    labels: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]

    def subset(self, index: np.ndarray) -> "Pictures":
        """Returns the images at `index`, their groups numbered without gaps."""
        group = np.unique(self.group[index], return_inverse=True)[1].reshape(-1)
        return Pictures(self.labels[index], group, self.names)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of splitting.

    Attributes:
      summary: what it does, for people.
      params: what its spec takes.
      check: raises InputError where values do not fit together; called with the bound parameters.
      parts: called with (pictures, seed, bound parameters); returns an index array per part.
      shares: from the bound parameters, how often each copy of the training part is augmented; empty: one copy, always.
    """

    summary: str
    params: tuple[spec.Param, ...]
    check: Callable[[dict[str, Any]], None]
    parts: Callable[[Pictures, int, dict[str, Any]], list[np.ndarray]]
    shares: Callable[[dict[str, Any]], tuple[float, ...]] = lambda _: ()


def validate(text: str) -> None:
    """Checks a split's spec without data; InputError where it is wrong."""
    _bound(text)


def shares(text: str) -> tuple[float, ...]:
    """Returns the share of epochs in which each copy of the training part is augmented; empty: one copy, always.

    Args:
      text: a split's spec, or nothing.
    """
    if not text:
        return ()
    entry, values = _bound(text)
    return entry.shares(values)


def split(images: ImageSet, spec_text: str, seed: int, *, pictures: np.ndarray | None = None) -> Splits:
    """Divides a labelled set.

    Args:
      images: the set.
      spec_text: one of `SPLITS`, for example "fractions(0.83, 0.13, 0.04)".
      seed: the same seed and data give the same parts.
      pictures: int64 [N], a number per picture, where that is known already; None: `similarity.groups` finds out.

    Returns:
      The parts, each in the order of the source, with the source's ids. Images of one picture are in one part, and
      every class is in every part where it has that many different pictures.

    Raises:
      InputError: a bad spec, an unlabelled set, a part that would be empty, or a class with too few images.
    """
    entry, values = _bound(spec_text)
    if images.labels is None:
        raise InputError(f"--split: expected labelled images, received {images.origin} without labels")
    groups = similarity.in_order(similarity.groups(images) if pictures is None else pictures)
    indices = entry.parts(Pictures(images.labels, groups, images.class_names), seed, values)
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


# ---------------------------------------------------------------------------------------------------------------------
# The ways
# ---------------------------------------------------------------------------------------------------------------------


def _given_shares(values: dict[str, Any]) -> list[float]:
    return [values[part] for part in _PARTS if values[part] is not None]


def _check_fractions(values: dict[str, Any]) -> None:
    given = _given_shares(values)
    text = ", ".join(f"{share:g}" for share in given)
    if min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise InputError(f"--split: fractions expected shares above 0 that sum to 1, received {text} (sum "
                         f"{sum(given):g}); try fractions(0.8, 0.1, 0.1)")


def _fractions(pictures: Pictures, seed: int, values: dict[str, Any]) -> list[np.ndarray]:
    return _divide(pictures, seed, _given_shares(values))


def _check_kfold(values: dict[str, Any]) -> None:
    if values["fold"] >= values["k"]:
        raise InputError(f"--split: kfold({values['k']}) expected fold=0..{values['k'] - 1}, "
                         f"received {values['fold']}; folds count from 0")
    _check_open("kfold", test=values["test"])


def _kfold(pictures: Pictures, seed: int, values: dict[str, Any]) -> list[np.ndarray]:
    held: list[np.ndarray] = []
    rest = np.arange(len(pictures.labels))
    if values["test"] is not None:
        rest, test = _divide(pictures, seed, [1 - values["test"], values["test"]])
        held = [test]
    folds = _divide(pictures.subset(rest), seed, [1 / values["k"]] * values["k"])
    val = rest[folds[values["fold"]]]
    return [np.setdiff1d(rest, val, assume_unique=True), val, *held]


def _check_balanced_test(values: dict[str, Any]) -> None:
    _check_open("balanced_test", val=values["val"])


def _balanced_test(pictures: Pictures, seed: int, values: dict[str, Any]) -> list[np.ndarray]:
    """Takes single images at random, and copies together only where a class has too few single ones.

    A picture under two labels is never in the test part.
    """
    n = values["n"]
    sizes = np.bincount(pictures.group)
    first = np.full(len(sizes), len(pictures.names))
    np.minimum.at(first, pictures.group, pictures.labels)
    one_label = np.bincount(pictures.group, weights=pictures.labels != first[pictures.group]) == 0
    order = _order(len(sizes), seed)
    chosen = np.zeros(len(sizes), bool)
    for label, name in enumerate(pictures.names):
        own = order[(first[order] == label) & one_label[order]]
        single, several = own[sizes[own] == 1], own[sizes[own] > 1]
        lacking = n
        for group in several:
            if lacking > len(single) and sizes[group] <= lacking:
                chosen[group] = True
                lacking -= sizes[group]
        if lacking > len(single) or chosen[own].sum() + lacking > len(own) - _LEFT_PICTURES:
            count = int(np.count_nonzero(pictures.labels == label))
            raise InputError(f"--split: balanced_test({n}) expected {n} images of every class for the test part and "
                             f"{_LEFT_PICTURES} pictures beside them, received {count} images of {len(own)} pictures "
                             f"of {name}; try a smaller number")
        chosen[single[:lacking]] = True
    in_test = chosen[pictures.group]
    rest = np.flatnonzero(~in_test)
    train, val = _divide(pictures.subset(rest), seed, [1 - values["val"], values["val"]])
    return [rest[train], rest[val], np.flatnonzero(in_test)]


_LEFT_PICTURES = 2  # of each class, one for training and one for validation


def _check_two_copies(values: dict[str, Any]) -> None:
    _check_open("two_copies", val=values["val"], test=values["test"])
    if values["val"] + (values["test"] or 0) >= 1:
        raise InputError(f"--split: two_copies expected val and test that leave something to train on, received "
                         f"{values['val']:g} and {values['test']:g}; try two_copies(0.6, 1.0, val=0.13, test=0.04)")


def _two_copies(pictures: Pictures, seed: int, values: dict[str, Any]) -> list[np.ndarray]:
    held = [values["val"]] if values["test"] is None else [values["val"], values["test"]]
    return _divide(pictures, seed, [1 - sum(held), *held])


def _check_open(name: str, **given: float | None) -> None:
    for key, share in given.items():
        if share is not None and not 0 < share < 1:
            raise InputError(f"--split: {name} expected {key} between 0 and 1, received {share:g}; try {key}=0.1")


# ---------------------------------------------------------------------------------------------------------------------
# What they share
# ---------------------------------------------------------------------------------------------------------------------


def _order(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).permutation(count)


def _divide(pictures: Pictures, seed: int, shares: Sequence[float]) -> list[np.ndarray]:
    """Stratified: large groups first, then single images in random order, each to where its class lacks most.

    Args:
      pictures: to divide.
      seed: of the order.
      shares: of each part; they sum to 1.

    Returns:
      For each part the indices of its images, ascending.
    """
    labels, group = pictures.labels, pictures.group
    num_parts, num_classes, num_groups = len(shares), int(labels.max()) + 1, int(group.max()) + 1
    counts = np.zeros((num_groups, num_classes), np.int64)  # images of each class in each group
    np.add.at(counts, (group, labels), 1)
    lacking = np.stack([_targets(total, np.asarray(shares)) for total in counts.sum(0)], axis=1)  # [part, class]
    order = _order(num_groups, seed)
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


def _share(name: str, *default: float | None) -> spec.Param:
    if not default:
        return spec.Param(name, float, low=0.0, high=1.0, unit="of the images")
    return spec.Param(name, float, default[0], low=0.0, high=1.0, unit="of the images", optional=default[0] is None)


SPLITS: dict[str, Entry] = {
    "fractions": Entry(
        summary="Shares of every class for training, validation and test; they sum to 1. Without test two parts.",
        params=(_share("train"), _share("val"), _share("test", None)),
        check=_check_fractions,
        parts=_fractions),
    "kfold": Entry(
        summary="One of k equal parts is for validation, the others train; test is taken off before, alike for all "
                "folds. Folds of one k, test and seed have no image in common, and together all.",
        params=(spec.Param("k", int, low=2, high=100, unit="parts"),
                spec.Param("fold", int, 0, low=0, high=99, unit="from 0"), _share("test", None)),
        check=_check_kfold,
        parts=_kfold),
    "balanced_test": Entry(
        summary="Exactly n images of every class are for the test; val is the share of the rest for validation.",
        params=(spec.Param("n", int, low=1, high=10**6, unit="images a class"), _share("val", 0.1)),
        check=_check_balanced_test,
        parts=_balanced_test),
    "two_copies": Entry(
        summary="The training part is taken twice: first is the share of epochs in which an image of the one copy is "
                "augmented and mixed, second that of the other. Validation and test are single.",
        params=(spec.Param("first", float, low=0.0, high=1.0, unit="of the epochs"),
                spec.Param("second", float, low=0.0, high=1.0, unit="of the epochs"),
                _share("val", 0.13),
                spec.Param("test", float, 0.04, low=0.0, high=1.0, unit="of the images", optional=True)),
        check=_check_two_copies,
        parts=_two_copies,
        shares=lambda values: (values["first"], values["second"])),
}
