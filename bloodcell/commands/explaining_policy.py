"""`--explain=augment`: what a policy does to the training images, as a sheet, and what it draws."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.commands import common, parts, segmenting
from bloodcell.config import Config
from bloodcell.data import demo
from bloodcell.data.dataset import ImageSet
from bloodcell.evaluate.contact_sheet import Bar, contact_sheet_png
from bloodcell.files import write_atomically

SHEET = "explain_augment.png"
EPOCHS = 8
LEAST_ROWS, MOST_ROWS = 8, 24  # every class has a row, up to the latter
COUNTED = 4096  # training images whose draws are counted, at most


def explain_augment(config: Config) -> None:
    """Writes `explain_augment.png` into the run's folder, and prints what each op's share of the images is.

    The images are training's own: the training part of `--data` with the ids, seed and epochs that `--mode=train` has
    under the same flags. So the column "epoch 3" shows what the step sees in the third epoch, to the pixel but for
    single grey levels where compiled and eager arithmetic round differently. A stage's own policy is not looked at.
    Of the demo set few images are rendered, and `--segment` learns from these.
    """
    policy = augment.parse(config.augment)
    images, ids = training_images(config)
    print(f"data: {config.data}: {len(ids):,} training images, {images.images.shape[1]}x{images.images.shape[2]}, "
          f"{images.num_classes} classes | seed: {config.seed} | epochs: 1 to {EPOCHS}", flush=True)
    common.print_left_out({"train": images})
    common.print_cleaned({"train": images})
    images = segmenting.in_training({"train": images}, config)[0]["train"]

    few = images.subset(rows_of_every_class(np.asarray(images.labels)))
    originals = few.images[:]  # of images that stay in files, these alone are read
    versions = [originals]
    for epoch in range(1, EPOCHS + 1):
        augmented = policy(tf.constant(originals), tf.constant(few.ids), epoch=epoch, seed=config.seed)
        versions.append(np.rint(augmented.numpy()).astype(np.uint8))
    drawn = shares(policy, ids[:COUNTED], seed=config.seed)

    counted = min(len(ids), COUNTED)
    shown = len(np.unique(np.asarray(few.labels)))
    some = f" ({shown} of them shown)" if shown < images.num_classes else ""
    path = config.run_dir / SHEET
    write_atomically(path, contact_sheet_png(
        np.stack(versions, axis=1), rows=[few.class_names[label] for label in np.asarray(few.labels)],
        columns=["original", *(f"epoch {epoch}" for epoch in range(1, EPOCHS + 1))],
        title="What the policy does to the training images", code=str(policy),
        lines=[f"{config.data}: {len(ids):,} training images of {images.images.shape[1]}x{images.images.shape[2]} "
               f"pixels, {images.num_classes} classes{some}; seed {config.seed}"],
        table_title=f"Share of images that draw each op, and the range drawn ({counted:,} images, {EPOCHS} epochs)",
        bars=drawn))
    width = max(len(bar.name) for bar in drawn)
    for bar in drawn:
        print(f"  {bar.name:<{width}}  {100 * bar.share:5.1f} %  {bar.remark:<26}  {bar.place}".rstrip())
    print(f"wrote {path}", flush=True)


def training_images(config: Config) -> tuple[ImageSet, np.ndarray]:
    """Returns images that training under these flags would learn from, and the ids of all that it would.

    They are the same but for the demo set, whose images take a while to render: the first ones hold every class.
    """
    if config.data == "demo" and not (config.split or config.val_data):
        count, whole = 64, demo.PART_SIZES["train"]
        pictures, labels = demo.render(count, seed=config.seed, size=config.image_size)
        files = tuple(f"demo/train#{index}" for index in range(count))
        return ImageSet(pictures, labels, np.arange(count, dtype=np.int64), demo.CLASS_NAMES, config.data,
                        files), np.arange(whole, dtype=np.int64)
    images = parts.load(config)["train"]
    return images, images.ids


def rows_of_every_class(labels: np.ndarray) -> np.ndarray:
    """Returns the index of the images to show, by class: one of each, and further ones in turn while rows are few."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    wanted = min(max(len(by_class), LEAST_ROWS), MOST_ROWS)
    in_turn = [rows[turn] for turn in range(wanted) for rows in by_class if turn < len(rows)]
    chosen = np.asarray(in_turn[:wanted])
    return chosen[np.argsort(labels[chosen], kind="stable")]


def shares(policy: augment.Policy, ids: np.ndarray, *, seed: int) -> list[Bar]:
    """Counts what `policy` draws.

    Args:
      policy: its draws hold, by the place of each op, `on` with a last axis [N] and any axes before it; what holds no
        `on` is no op.
      ids: int64 [N].
      seed: of the run.

    Returns:
      For each op, in the policy's order, the share of the images of epochs 1 to 8 that draw it, and the range of its
      strength; last, the share of those that draw none.
    """
    found: dict[str, _Count] = {}
    untouched = 0
    for epoch in range(1, EPOCHS + 1):
        any_op = np.zeros(len(ids), bool)
        for path, draws in policy.draw(tf.constant(ids), epoch=epoch, seed=seed).items():
            if "on" not in draws:
                continue
            each = np.asarray(draws["on"])
            on = np.any(each.reshape(-1, len(ids)), axis=0)
            any_op |= on
            found.setdefault(path, _Count()).add(on, each, draws)
        untouched += int((~any_op).sum())
    total = EPOCHS * len(ids)
    bars = []
    for path in sorted(found, key=_order):  # stable: ops of one layer keep the order of the draws
        name, place = described(path)
        bars.append(Bar(name, place, found[path].images / total, found[path].range_text(name)))
    return [*bars, Bar("no op at all", "", untouched / total)]


class _Count:
    """How often one op was drawn, and between which values its numeric parameters lay."""

    def __init__(self) -> None:
        self.images = 0
        self._ranges: dict[str, tuple[float, float]] = {}

    def add(self, on: np.ndarray, each: np.ndarray, draws: Mapping[str, Any]) -> None:
        """Adds an epoch: `on` [N]; `each` [..., N], where the parameters of `draws` count."""
        self.images += int(on.sum())
        for name, tensor in draws.items():
            values = np.asarray(tensor)
            if name == "on" or values.dtype == bool or values.shape[:each.ndim] != each.shape or not each.any():
                continue
            low, high = self._ranges.get(name, (np.inf, -np.inf))
            self._ranges[name] = (min(low, float(values[each].min())), max(high, float(values[each].max())))

    def range_text(self, op: str) -> str:
        """Returns "name low..high" of the op's strength; where no draw has its name, of the first that is not 0."""
        first = [param.name for param in augment.REGISTRY[op].params[:1]] if op in augment.REGISTRY else []
        moving = [name for name, ends in self._ranges.items() if ends != (0.0, 0.0)]
        for name in [name for name in (*first, *moving) if name in self._ranges][:1]:
            low, high = (_number(value) for value in self._ranges[name])
            return f"{name} {low}" if low == high else f"{name} {low}..{high}"
        return ""


def described(path: str) -> tuple[str, str]:
    """Returns an op's name, and where it stands, of a place such as `2.oneof/1/1.randaugment/rotate`."""
    words: list[str] = []
    for part in path.split("/"):
        if part.isdigit() and words:
            words[-1] += f" {part}"
        else:
            words.append(re.sub(r"^\d+\.", "", part))
    return words[-1], " > ".join(words[:-1])


def _order(path: str) -> list[int]:
    return [int(match[0]) if (match := re.match(r"\d+", part)) else 0 for part in path.split("/")]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 or value.is_integer() else f"{value:.2f}"
