"""`--segment` in the commands: learned and applied in training, saved with the run, applied again with its model.

How an image is segmented belongs to `data.segment`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bloodcell.config import Config
from bloodcell.data import segment
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate.contact_sheet import Bar
from bloodcell.evaluate.segment_sheet import ACROSS, Examples, segment_sheet_png


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What a training's segmentation is and did.

    Attributes:
      segmenter: what was applied.
      lines: one for each part, for people.
      examples: cells of each class of the training part.
      shares: of each class's training images the mean foreground, where nine of ten lie, and how many were left whole.
      class_names: in the order of the labels.
    """

    segmenter: segment.Segmenter
    lines: tuple[str, ...]
    examples: Examples
    shares: tuple[Bar, ...]
    class_names: tuple[str, ...]

    def png(self) -> bytes:
        """Returns the sheet."""
        return segment_sheet_png(self.examples, class_names=self.class_names, spec=self.segmenter.spec,
                                 lines=self.lines, shares=self.shares)


def in_training(parts: Mapping[str, ImageSet], config: Config, *, resumed: bool = False,
                rows: int = 1) -> tuple[dict[str, ImageSet], Segmentation | None]:
    """Segments all parts of a training's data as `--segment` says, and prints a line for each.

    What there is to learn is learned from the training part alone, or read from the run's folder when it goes on.

    Args:
      parts: with "train" among them, labelled.
      config: the run's flags.
      resumed: whether the run's folder holds a training already.
      rows: rows of cells that the sheet has for each class.

    Returns:
      The parts, and what was done; the parts as they are and None without `--segment`.

    Raises:
      InputError: masks or images that cannot be used, or a set that is not in memory.
    """
    done = dict(parts)  # the originals go where nobody else holds them
    if not config.segment:
        return done, None
    if resumed and (config.run_dir / segment.FILE).is_file():
        segmenter = segment.load(config.run_dir, config.segment)
    else:
        segmenter = segment.learn(config.segment, parts["train"])
    train, lines = parts["train"], []
    labels = np.asarray(train.labels)
    chosen = np.concatenate([np.flatnonzero(labels == label)[:ACROSS * rows] for label in np.unique(labels)])
    originals = train.images[chosen]
    shares: tuple[Bar, ...] = ()
    for name in parts:
        result = segmenter.apply(done[name])
        done[name] = result.images
        lines.append(result.line(name))
        print(lines[-1], flush=True)
        if name == "train":
            shares = tuple(_bar(result, labels == label, train.class_names[label]) for label in np.unique(labels))
    examples = Examples(originals, segmenter.masks(originals), done["train"].images[chosen], labels[chosen])
    return done, Segmentation(segmenter, tuple(lines), examples, shares, train.class_names)


def of_run(run_dir: pathlib.Path, about: Mapping[str, Any], config: Config
           ) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what segments uint8 images [B,S,S,3] as a run's training did; None: it did not.

    Args:
      run_dir: the run's folder.
      about: the content of its `model.json`.
      config: the flags; an own `--segment` must be the run's.

    Raises:
      InputError: `--segment` contradicts the run, or the run's folder lacks what it learned.
    """
    run = str(about.get("segment", ""))
    if config.segment and not segment.same(run, config.segment):
        raise InputError(f"--segment expected {repr(run) if run else 'none'}, as {run_dir} was trained, "
                         f"received {config.segment!r}; try leaving it out")
    if not run:
        return None
    segmenter = segment.load(run_dir, run)
    return lambda images: segmenter.filled(images, segmenter.masks(images))


def _bar(result: segment.Result, own: np.ndarray, name: str) -> Bar:
    values = result.foreground[own & ~result.whole]
    left = int((own & result.whole).sum())
    if not len(values):
        return Bar(name, "", 1.0, "all left whole")
    low, high = np.quantile(values, (0.05, 0.95))
    return Bar(name, "", float(values.mean()), f"{low:.0%} to {high:.0%}" + (f", {left} whole" if left else ""))
