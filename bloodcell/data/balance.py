"""What is done about classes of unequal size in the training part; each way is one entry of `BALANCES`.

A way gives classes weights in the loss, or says which rows an epoch shows (`rows.Rows`): images again under further
ids, or images made for the purpose (`synthetic`, `smote`). No way copies an image that is there. How a policy augments
comes from outside; a division into parts is `split`'s business.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell import spec
from bloodcell.data.dataset import ImageSet
from bloodcell.data.rows import MADE, Extra, Rows, generator
from bloodcell.errors import InputError
from bloodcell.spec import Param

Augmenter = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uint8 [M, H, W, 3], their ids int64 [M] -> the same shape

POLICY = "flip | rotate(180) | zoom(0.2) | brightness(0.2) | contrast(0.2) | noise(8)"  # `synthetic`'s own
_CHUNK = 64  # images made at a time

# Numbers that keep one use of the generator apart from the others.
_REPEATED, _NEIGHBOURS = 0x72657065, 0x736D6F74


@dataclasses.dataclass(frozen=True)
class Request:
    """What a way works on.

    labels: int64 [R], of the rows. values: its parameters. augmenter: runs `policy`'s policy; None where it never does.
    """

    rows: Rows
    images: ImageSet
    labels: np.ndarray
    values: dict[str, Any]
    seed: int
    augmenter: Augmenter | None

    def lacking(self) -> list[tuple[int, np.ndarray, int]]:
        """Returns (label, its rows, how many more it needs to have n) for each class that needs more.

        Without n the largest class says how many. A class without any row gets none.
        """
        counts = np.bincount(self.labels)
        target = int(counts.max()) if self.values["n"] is None else self.values["n"]
        return [(label, np.flatnonzero(self.labels == label), target - int(count))
                for label, count in enumerate(counts) if 0 < count < target]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One way of balancing.

    Attributes:
      summary: what it does, for people.
      params: what its spec takes.
      rows: from a request to the rows to train on; None: those of the request.
      weights: whether classes have weights in the loss.
    """

    summary: str
    params: tuple[Param, ...] = ()
    rows: Callable[[Request], Rows] | None = None
    weights: bool = False


def validate(text: str) -> None:
    """Checks a spec without data; InputError where it is wrong. What `policy` returns is for others to check."""
    _bound(text)


def policy(text: str) -> str:
    """Returns the policy that makes the new images, or "" where none are made by one."""
    _, values = _bound(text)
    return values.get("policy", "")


def rows(images: ImageSet, text: str, *, shares: tuple[float, ...] = (), seed: int = 0,
         augmenter: Augmenter | None = None) -> Rows:
    """Returns the rows to train on.

    Args:
      images: the labelled training part.
      text: one of `BALANCES`, for example "replicate(2000)".
      shares: from `split.shares`: the set is taken once for each.
      seed: of the run; with the images, all that the rows and the images made depend on.
      augmenter: augments by `policy(text)`; not needed only to look at the rows.

    Raises:
      InputError: a bad spec; an image to be made of images that are not in memory, or of a class with one image.
    """
    entry, values = _bound(text)
    if images.labels is None:
        raise ValueError("images: expected labels")
    single = Rows.of(images, shares)
    if entry.rows is None:
        return single
    return entry.rows(Request(single, images, images.labels[single.index], values, seed, augmenter))


def class_weights(text: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float32 [num_classes]: ones, or with "class_weights" inversely proportional to a class's images.

    The weight of a class with `count` of `n` images is `n / (present * count)`, where `present` is how many classes
    have images at all: the mean over the set is 1, so the learning rate keeps its meaning. A class without images
    gets 1, which nothing uses.
    """
    weights = np.ones(num_classes, np.float32)
    if _bound(text)[0].weights:
        counts = np.bincount(labels, minlength=num_classes)
        present = counts > 0
        weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def _bound(text: str) -> tuple[Entry, dict[str, Any]]:
    term = spec.only_term(spec.parse(text, what="balance"), what="balance")
    entry: Entry = spec.lookup(term, BALANCES, what="balance")
    return entry, spec.bind(term, entry.params, what="balance")


# ---------------------------------------------------------------------------------------------------------------------
# The ways
# ---------------------------------------------------------------------------------------------------------------------


def _replicate(request: Request) -> Rows:
    order, repeat = [np.arange(len(request.rows))], [np.zeros(len(request.rows), np.int64)]
    for label, own, more in request.lacking():
        again, number = _cycled(own, more, request.seed, label)
        order.append(again)
        repeat.append(number + 1)
    return request.rows.take(np.concatenate(order), np.concatenate(repeat))


def _sampler(request: Request) -> Rows:
    return dataclasses.replace(request.rows, classes=request.labels)


def _synthetic(request: Request) -> Rows:
    pixels = _in_memory(request.images, "synthetic")
    bases, labels = _bases(request)
    ids = MADE + np.arange(len(labels))

    def write(out: np.ndarray) -> None:
        if request.augmenter is None:
            raise ValueError("augmenter: expected one that makes the images, received None")
        for start in range(0, len(out), _CHUNK):
            take = np.resize(np.arange(start, min(start + _CHUNK, len(out))), _CHUNK)  # one shape, compiled once
            made = request.augmenter(pixels[bases[take]], ids[take])
            out[start:start + _CHUNK] = made[:len(out) - start]

    return _with_extra(request, labels, write)


def _smote(request: Request) -> Rows:
    pixels = _in_memory(request.images, "smote")
    for label, own, _ in request.lacking():
        if len(np.unique(request.rows.index[own])) < 2:
            raise InputError(f"--balance: smote expected at least 2 images of every class, received 1 of "
                             f"{request.images.class_names[label]}; try replicate or synthetic")
    bases, labels = _bases(request)

    def write(out: np.ndarray) -> None:
        for label in np.unique(labels):
            new = np.flatnonzero(labels == label)
            own = np.flatnonzero(request.images.labels == label)
            neighbours = own[nearest(pixels[own], request.values["k"])]
            draw = generator(request.seed, _NEIGHBOURS, int(label))
            which = draw.integers(neighbours.shape[1], size=len(new))
            step = draw.random(len(new))
            partner = neighbours[np.searchsorted(own, bases[new]), which]
            for start in range(0, len(new), _CHUNK):
                part = slice(start, start + _CHUNK)
                out[new[part]] = between(pixels[bases[new[part]]], pixels[partner[part]], step[part])

    return _with_extra(request, labels, write)


def nearest(images: np.ndarray, k: int) -> np.ndarray:
    """Returns int64 [M, min(k, M - 1)]: for each image the places of its nearest others, by all grey levels (L2).

    Args:
      images: uint8 [M, H, W, 3], M at least 2. Their float32 copy is in memory while this runs.
      k: neighbours.
    """
    from sklearn.neighbors import NearestNeighbors  # here: a slow import that this way alone needs

    flat = images.reshape(len(images), -1).astype(np.float32)
    found = NearestNeighbors(n_neighbors=min(k, len(images) - 1), algorithm="brute").fit(flat)
    return found.kneighbors(return_distance=False)  # without an argument no image is its own neighbour


def between(images: np.ndarray, others: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns `images + step * (others - images)`, rounded: uint8 [M, H, W, 3] from two such and float [M] in 0..1."""
    first, second = images.astype(np.float32), others.astype(np.float32)
    weight = step.astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    return np.rint(first + weight * (second - first)).astype(np.uint8)


def _bases(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """Returns which image each new one begins with and its label, int64 [E]: the images of a class in turns."""
    bases, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for label, own, more in request.lacking():
        bases.append(request.rows.index[_cycled(own, more, request.seed, label)[0]])
        labels.append(np.full(more, label))
    return np.concatenate(bases), np.concatenate(labels)


def _cycled(own: np.ndarray, count: int, seed: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` of a class's rows, all of them in a random order again and again, and which round each is of."""
    order = generator(seed, _REPEATED, label).permutation(own)
    number, place = np.divmod(np.arange(count), len(own))
    return order[place], number


def _with_extra(request: Request, labels: np.ndarray, write: Callable[[np.ndarray], None]) -> Rows:
    before, new = request.rows, np.arange(len(labels))
    share = None if before.share is None else np.concatenate([before.share, np.ones(len(labels), np.float32)])
    return dataclasses.replace(before, index=np.concatenate([before.index, len(request.images) + new]),
                               ids=np.concatenate([before.ids, MADE + new]), share=share, extra=Extra(labels, write))


def _in_memory(images: ImageSet, way: str) -> np.ndarray:
    if not isinstance(images.images, np.ndarray):
        raise InputError(f"--balance: {way} expected images in memory, received {images.origin}, which is read as it "
                         "is needed; try replicate, sampler or class_weights")
    return images.images


def _target(unit: str) -> Param:
    return Param("n", int, None, low=1, high=10**7, unit=unit, optional=True)


BALANCES: dict[str, Entry] = {
    "none": Entry("Classes are as they are."),
    "class_weights": Entry("The loss of an image is weighted by its class, inversely to how many images that has.",
                           weights=True),
    "replicate": Entry("Classes with fewer than n images (without n: than the largest class) show theirs again in "
                       "every epoch, up to n rows, each augmented by itself.", (_target("rows a class"),), _replicate),
    "synthetic": Entry("Classes with fewer than n images get new ones up to n, made once, of theirs by a policy.",
                       (_target("images a class"), Param("policy", str, POLICY)), _synthetic),
    # Neighbours by pixels, not by a backbone's features: a blend of two images is a picture only where they lie close
    # pixel by pixel (images alike in features alone give a ghost of two cells); nothing must be trained or downloaded;
    # and it is what the method, and imbalanced-learn, do with the rows they are given.
    "smote": Entry("Classes with fewer than n images get new ones up to n, each at a random place between an image and "
                   "one of the k nearest of its class, by pixels (Chawla et al. 2002, arXiv 1106.1813).",
                   (Param("k", int, 5, low=1, high=100, unit="neighbours"), _target("images a class")), _smote),
    "sampler": Entry("Each epoch draws as many images as there are, classes all alike, and within a class each image "
                     "equally often over the epochs.", rows=_sampler),
}
