"""The peers as whole input pipelines: read, decode, augment image by image, batch; one file each.

Such a file says how its library is used, which is what its documentation recommends, and defines
`start(source, batch=, augment=) -> Feed`. All get the same images and the same task, in whatever order: two flips,
a turn by up to 180 degrees, a zoom by up to a fifth, and two random ops of RandAugment's at 4 of 10. What is not
installed is reported and left out.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

import numpy as np

from benchmarks.peers import Peer, importable
from benchmarks.timing import Contestant

DEGREES, ZOOM, OPS, MAGNITUDE = 180.0, 0.2, 2, 0.4  # of the task; the magnitude's range is 0..1
SHUFFLED = 2048  # images among which a library draws the next one, where it has a buffer for that

Batch = tuple[np.ndarray, np.ndarray]  # images [B, H, W, 3], labels [B]
Feed = Callable[[int], Iterator[Batch]]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A set as the pipelines find it: encoded images in files, or pixels in memory.

    Attributes:
      labels: int64 [N].
      shards: TFRecord files of encoded images; empty where `images` are given.
      files: the same encoded images, a file each, in the labels' order; for libraries that read no records.
      images: uint8 [N, H, W, 3] in memory; None where there are shards.
    """

    labels: np.ndarray
    shards: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    images: np.ndarray | None = None


class Implementation(Protocol):
    """What a peer's file here defines."""

    def start(self, source: Source, *, batch: int, augment: bool) -> Feed:
        """Returns a feed: from a number of batches to as many, each of `batch` images and their labels.

        It goes through the set in an order drawn anew, again from the start where the set ends, and never works ahead
        of the last batch that was asked for. A batch holds until the next one is asked for.
        """


@dataclasses.dataclass(frozen=True)
class Feeder(Peer):
    """A peer and how it works here. steps: batches of a run, about two seconds' work. augments: whether it can."""

    steps: int = 32
    augments: bool = True

    def feed(self) -> Implementation:
        """Imports the library; ImportError says what is missing."""
        return cast(Implementation, importlib.import_module(f"benchmarks.peers.feeds.{self.file}"))


FEEDERS = (
    Feeder("plain", "tf.data, no augmentation", "tfdata", "tensorflow",
           "records or rows shuffled, `map` over images on all cores, `batch`, `prefetch`: what the next two would "
           "reach if augmentation took nothing; uint8", 100, augments=False),
    Feeder("tfa", "tf.image + TFA", "tfa", "tfa-nightly",
           "the same pipeline, and the task as functions of an image in that `map`; every image draws its own; "
           "uint8", 16),
    Feeder("keras", "Keras 3", "keras3", "keras",
           "the same pipeline, and the task as layers over an image in that `map`; every image draws its own, but "
           "some in hand at once draw alike; float32", 4),
    Feeder("dali", "DALI (CPU)", "dali", "nvidia-dali-cuda120",
           "its TFRecord reader with shuffling (or `external_source` over the array), decoder and operators, a thread "
           "a core; every image draws its own; uint8", 32),
    Feeder("torch", "PyTorch DataLoader", "torch_", "torch",
           "a `Dataset` that opens an image file (or takes a row of a memory-mapped array), Pillow's transforms, no "
           "torchvision; `DataLoader` with shuffling, a persistent worker process a core; every image draws its own; "
           "uint8", 32),
)


def available() -> tuple[dict[str, Implementation], dict[str, str]]:
    """Returns the feeders that can be imported, by name, and why the others cannot."""
    return importable({feeder.name: feeder.feed for feeder in FEEDERS})


def about(present: Mapping[str, Implementation]) -> dict[str, dict[str, object]]:
    """Returns for each feeder what a page says of it: title, how, version (empty where it is not there)."""
    return {feeder.name: {"title": feeder.title, "how": feeder.how, "policies": {},
                          "version": feeder.version() if feeder.name in present else ""} for feeder in FEEDERS}


def contestant(case: str, feeder: Feeder, feed: Feed, *, batch: int, steps: int) -> Contestant:
    """Returns a feeder as it takes part in a race; it must deliver every image that it is counted for."""
    def times(count: int) -> Callable[[int], None]:
        def run(_: int) -> None:
            wanted = count * steps * batch
            delivered = sum(len(images) for images, _labels in feed(count * steps))
            if delivered != wanted:
                raise RuntimeError(f"{feeder.title}: expected {wanted} images, received {delivered}")
        return run

    return Contestant(case, feeder.name, steps * batch, times(1), times)
