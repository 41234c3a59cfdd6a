"""The peers: the libraries people use today, one file each.

Such a file says in its docstring how its library is used, which is what its documentation recommends, and what differs
from ours. It defines

- `OPS`: for each op of our registry that the library has too, a function from our strength (the unit of the op's first
  parameter; the sign that the library calls positive) to the library's own thing;
- `POLICIES`: for each of our policies with a counterpart, its name for people and the thing;
- `start(thing, images) -> Run`: the thing over a batch of uint8 images in memory.

What is not installed is reported and left out.
"""

import dataclasses
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from benchmarks.timing import Contestant

CORES = len(os.sched_getaffinity(0))
FILL = 128  # grey level of what lies outside an image, as ours


class Run(NamedTuple):
    """call: from a number of batches to those batches, [images, H, W, 3] each, in host memory; it never works ahead.

    batches: the fewest that keep all cores busy. pipeline: it starts threads in each call, so a call must be long.
    """

    call: Callable[[int], list[np.ndarray]]
    images: int
    batches: int = 1
    pipeline: bool = False


class Implementation(Protocol):
    """What a peer's file defines."""

    OPS: Mapping[str, Callable[[float], Any]]
    POLICIES: Mapping[str, tuple[str, Any]]

    def start(self, thing: Any, images: np.ndarray) -> Run:
        """Returns how to run a thing of `OPS` or `POLICIES` over uint8 images [B, H, W, 3], again and again."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library: its name in rows, its title, its file here, the distribution that brings it, and how it is run."""

    name: str
    title: str
    file: str
    distribution: str
    how: str

    def load(self) -> Implementation:
        """Imports the library; ImportError says what is missing."""
        return cast(Implementation, importlib.import_module(f"benchmarks.peers.{self.file}"))

    def version(self) -> str:
        """Returns the version of the installed distribution."""
        return importlib.metadata.version(self.distribution)


PEERS = (
    Peer("keras", "Keras 3", "keras3", "keras",
         "a layer in `Dataset.map` over batches, on all cores; RandAugment draws its ops once a batch; float32"),
    Peer("tfa", "tf.image + TFA", "tfa", "tfa-nightly",
         "functions in `Dataset.map` over images, on all cores, then `batch`; uint8 or float32"),
    Peer("dali", "DALI (CPU)", "dali", "nvidia-dali-cuda120",
         "a CPU pipeline over batches, a thread a core; uint8"),
    Peer("albumentations", "albumentations", "albumentations_", "albumentations",
         "image by image, in one process (a loader runs one a core); uint8"),
    Peer("albumentations_all", "albumentations, a process a core", "albumentations_all", "albumentations",
         "image by image, in a process a core that takes its share of each batch; uint8"),
    Peer("pillow", "Pillow", "pillow", "pillow",
         "image by image, in one process (a loader runs one a core); uint8"),
)


def available() -> tuple[dict[str, Implementation], dict[str, str]]:
    """Returns the peers that can be imported, by name, and why the others cannot."""
    return importable({peer.name: peer.load for peer in PEERS})


def importable(loaders: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what can be imported, by name, and why the rest cannot."""
    present, missing = {}, {}
    for name, load in loaders.items():
        try:
            present[name] = load()
        except (ImportError, OSError) as error:  # OSError: a wheel's own library wants one that is not there
            why = str(error).splitlines() or [type(error).__name__]
            missing[name] = f"not installed: {why[0]}"
    return present, missing


def contestant(case: str, name: str, run: Run) -> Contestant:
    """Returns a peer as it takes part in a race."""
    images = run.batches * run.images

    def times(count: int) -> Callable[[int], list[np.ndarray]]:
        return lambda step: run.call(count * run.batches)

    return Contestant(case, name, images, times(1), times if run.pipeline else None)
