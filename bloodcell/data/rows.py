"""Which images an epoch shows, how often, and under which ids: the rows of a training set.

A row points at an image, so a set whose rare classes are repeated, or that is taken twice, holds no pixel twice. What
belongs here: rows and the order of ids. Which rows a flag asks for is `balance`'s and `split`'s business; reading and
batching images is `pipeline`'s.

Sample ids. All that augmentation draws depends on a sample's id, so two rows never share one: an image keeps its
position in the source (below `STRIDE`), its k-th further row has that position plus `k * STRIDE`, and the n-th image
that was made rather than read has `MADE + n`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bloodcell.data.dataset import ImageSet

STRIDE = 2**40  # from the id of one copy of an image to that of the next
MADE = 2**62  # ids of images that are in no source begin here


@dataclasses.dataclass(frozen=True, eq=False)
class Extra:
    """Images that are in no source.

    Attributes:
      labels: int64 [E].
      write: fills a given uint8 [E, H, W, 3]; called once, where the images are to lie, so that they take their memory
        once. The same pixels at every call.
    """

    labels: np.ndarray
    write: Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a set.

    Attributes:
      index: int64 [R]; below N, the number of the set's images, one of them, from N on one of `extra`'s.
      ids: int64 [R], all different.
      share: float32 [R], the share of epochs, 0..1, in which the row is augmented at all; None: in all of them.
      extra: images beside the set's; None: none.
      classes: int64 [R], the label of each row, where an epoch draws as many rows as there are with all classes alike;
        None: an epoch shows each row once.
      copies: how many copies of one image the ids may count already; those of one more begin at `copies * STRIDE`.
    """

    index: np.ndarray
    ids: np.ndarray
    share: np.ndarray | None = None
    extra: Extra | None = None
    classes: np.ndarray | None = None
    copies: int = 1

    @classmethod
    def of(cls, images: ImageSet, shares: Sequence[float] = ()) -> "Rows":
        """Returns each image once; with shares, once for each of them, augmented in that share of the epochs.

        Raises:
          ValueError: ids that leave no room for further copies.
        """
        count = len(images)
        if count and not (images.ids.min() >= 0 and images.ids.max() < STRIDE):
            raise ValueError(f"ids: expected 0..{STRIDE - 1}, received {images.ids.min()}..{images.ids.max()}")
        if not shares:
            return cls(np.arange(count), images.ids)
        return cls(index=np.tile(np.arange(count), len(shares)),
                   ids=np.concatenate([images.ids + copy * STRIDE for copy in range(len(shares))]),
                   share=np.repeat(np.asarray(shares, np.float32), count), copies=len(shares))

    def __len__(self) -> int:
        return len(self.index)

    def take(self, order: np.ndarray, repeat: np.ndarray | None = None) -> "Rows":
        """Returns the rows at `order` (int64 [M]).

        Args:
          order: which.
          repeat: int64 [M], 0 for a row itself and 1, 2, ... for what stands beside it and must have an id of its own.
        """
        ids = self.ids[order]
        if repeat is not None:
            ids = ids + repeat * (self.copies * STRIDE)
        return dataclasses.replace(self, index=self.index[order], ids=ids,
                                   share=None if self.share is None else self.share[order],
                                   classes=None if self.classes is None else self.classes[order])

    def epoch(self, seed: int, epoch: int) -> "Rows":
        """Returns the rows of one epoch, in no particular order: a pure function of (seed, epoch)."""
        if self.classes is None:
            return self
        labels = np.unique(self.classes)
        each, over = divmod(len(self), len(labels))
        orders, repeats = [], []
        for place, label in enumerate(labels):
            # What is left over goes round the classes, so that over the epochs they are shown equally often.
            first, last = (at * each + -((place - at * over) // len(labels)) for at in (epoch, epoch + 1))
            rows = np.flatnonzero(self.classes == label)
            cycle, at = np.divmod(np.arange(first, last), len(rows))
            for number in np.unique(cycle):
                order = generator(seed, int(label), int(number)).permutation(len(rows))
                orders.append(rows[order[at[cycle == number]]])
                repeats.append(np.full(len(orders[-1]), number - cycle[0]))
        return self.take(np.concatenate(orders), np.concatenate(repeats))

    def per_class(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns int64 [num_classes], the rows of each class in an epoch (in the first, where epochs draw theirs).

        Args:
          labels: int64 [N], of the set's images.
          num_classes: how many there are.
        """
        every = labels if self.extra is None else np.concatenate([labels, self.extra.labels])
        return np.bincount(every[self.epoch(0, 0).index], minlength=num_classes)


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """Returns a generator for one use: the same for the same seed and numbers, and unrelated to any other."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, *numbers])))
