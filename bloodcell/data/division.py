"""How a run's data was divided, kept in its folder as `split.json`: checked when the run goes on, and used again.

Dividing belongs to `split`; here is only what came of it. The file holds the split's spec (empty where the data has
parts of its own), the seed, and of each part the number of images, their fingerprint, their ids ("0-4,7,9-12") and
whether the split made it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.files import write_atomically

FILE = "split.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """One part: its images' fingerprint, ids in the source (int64 [N], in the part's order), and who made it."""

    fingerprint: str
    ids: np.ndarray
    by_split: bool


@dataclasses.dataclass(frozen=True)
class Division:
    """What a run's data was divided into, and by what: a split's spec, or "" where the data has parts of its own."""

    spec: str
    seed: int
    parts: dict[str, Part]

    @classmethod
    def of(cls, parts: Mapping[str, ImageSet], spec: str, seed: int, by_split: tuple[str, ...]) -> "Division":
        """Returns the division of loaded parts, of which the split made those named by `by_split`."""
        return cls(spec, seed, {name: Part(images.fingerprint(), images.ids, name in by_split)
                                for name, images in parts.items()})

    def differences(self, other: "Division") -> list[str]:
        """Returns what the other has otherwise, in words; what lies in this division is called "was"."""
        found = []
        if self.spec != other.spec:
            found.append(f"the split (was '{self.spec}', now '{other.spec}')")
        if self.seed != other.seed and (self.spec or other.spec):
            found.append(f"--seed (was {self.seed}, now {other.seed})")
        for name in sorted(self.parts.keys() | other.parts.keys()):
            if name not in other.parts or name not in self.parts:
                found.append(f"the {name} part (now {'there' if name in other.parts else 'missing'})")
                continue
            was, now = self.parts[name], other.parts[name]
            if not np.array_equal(was.ids, now.ids):
                both = len(np.intersect1d(was.ids, now.ids))
                found.append(f"the {name} part (was {len(was.ids):,} images, now {len(now.ids):,}, {both:,} of them "
                             "the same)")
            elif was.fingerprint != now.fingerprint:
                found.append(f"the pixels or labels of the {name} part")
        return found


def write(run_dir: pathlib.Path, division: Division) -> None:
    """Writes `split.json`; raises InputError where the disk refuses."""
    parts = {name: {"images": len(part.ids), "by_split": part.by_split, "fingerprint": part.fingerprint,
                    "ids": ranges(part.ids)} for name, part in division.parts.items()}
    text = json.dumps({"spec": division.spec, "seed": division.seed, "parts": parts}, indent=2) + "\n"
    write_atomically(run_dir / FILE, text.encode())


def read(run_dir: pathlib.Path) -> Division:
    """Reads `split.json`; raises InputError where it is missing or damaged."""
    path = run_dir / FILE
    if not path.is_file():
        raise InputError(f"{path}: expected the division of a run's data, received nothing there; "
                         "try the --workdir of a training, or --split as it was there")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {str(name): _part(each) for name, each in content["parts"].items()}
        return Division(str(content["spec"]), int(content["seed"]), parts)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise InputError(f"{path}: expected what bloodcell wrote there, received a damaged file; "
                         "try the copy of another run, or a new --workdir") from None


def check(run_dir: pathlib.Path, division: Division) -> None:
    """Raises InputError where a run that goes on would divide its data otherwise than it began; the line says how."""
    if not (run_dir / FILE).is_file():
        return  # a run of an older version: the checkpoint knows its fingerprints
    if found := read(run_dir).differences(division):
        raise InputError(f"--workdir: expected data divided as {run_dir / FILE} says, received another division: "
                         f"{'; '.join(found)}; try the first flags and data again, or a new --workdir")


def held_out(run_dir: pathlib.Path, images: ImageSet, origin: str) -> tuple[str, ImageSet]:
    """Returns the part of a run's data on which it is measured: its test part, or where it has none its validation.

    Args:
      run_dir: the run's folder.
      images: all of the source that was divided.
      origin: what the user typed for it.

    Raises:
      InputError: no split made that part, or the images are not those that the run divided.
    """
    division = read(run_dir)
    name = "test" if "test" in division.parts else "val"
    part = division.parts.get(name)
    if part is None or not part.by_split:
        raise InputError(f"--split=run expected a run whose --split made its {name} part, received {run_dir}, whose "
                         "data has one of its own; try leaving --split out")
    chosen = images_of(part, images)
    if chosen is None:
        raise InputError(f"--split=run expected the data that {run_dir} was trained on, received {origin} with other "
                         f"images or labels; try the --data in {run_dir / 'config.cfg'}")
    return name, chosen


def images_of(part: Part, images: ImageSet) -> ImageSet | None:
    """Returns a part's images out of those that were divided, in its order; None where they are others by now."""
    order = np.argsort(images.ids, kind="stable")
    place = np.searchsorted(images.ids, part.ids, sorter=order)
    chosen = images.subset(order[np.minimum(place, len(order) - 1)])
    same = np.array_equal(chosen.ids, part.ids) and chosen.fingerprint() == part.fingerprint
    return chosen if same else None


def ranges(ids: np.ndarray) -> str:
    """Returns ids as text, in their order: runs of consecutive ones as "first-last", joined by commas."""
    if not len(ids):
        return ""
    breaks = np.flatnonzero(np.diff(ids) != 1)
    firsts, lasts = ids[np.concatenate([[0], breaks + 1])], ids[np.concatenate([breaks, [len(ids) - 1]])]
    return ",".join(str(first) if first == last else f"{first}-{last}"
                    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True))


def from_ranges(text: str, most: int) -> np.ndarray:
    """Returns the ids, int64 [N], that `ranges` wrote; ValueError where it is no such text or of more than `most`."""
    pieces, total = [], 0
    for each in text.split(",") if text else []:
        first, _, last = each.partition("-")
        low, high = int(first), int(last or first)
        total += high - low + 1
        if not low <= high or total > most:  # before memory is taken
            raise ValueError(each)
        pieces.append(np.arange(low, high + 1))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _part(content: Any) -> Part:
    ids = from_ranges(str(content["ids"]), int(content["images"]))
    if len(ids) != content["images"]:
        raise ValueError(content["images"])
    return Part(str(content["fingerprint"]), ids, bool(content["by_split"]))
