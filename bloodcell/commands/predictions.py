"""What `--mode=predict` writes: a row an image, as CSV, as JSON lines or as arrays.

What a row says and how it is written belong here; what is known of an image comes from `predict`, and how a file is
gone on with after its process has ended from `part_file`.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from bloodcell.commands import common
from bloodcell.data.stream import Item
from bloodcell.errors import InputError
from bloodcell.evaluate.novelty import FLAG as NOVEL
from bloodcell.files import write_atomically
from bloodcell.part_file import PartFile

ENDINGS = (".csv", ".jsonl", ".npz")
LOW_CONFIDENCE = 0.5  # below this largest probability an image is flagged
LOW, UNREADABLE = "low_confidence", "unreadable"
FLAGS = (NOVEL, LOW, UNREADABLE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows are written.

    Attributes:
      ending: of `ENDINGS`.
      class_names: C names, in the order of the labels.
      topk: how many of the most probable classes a row names besides, at most C.
    """

    ending: str
    class_names: tuple[str, ...]
    topk: int = 0

    def __post_init__(self) -> None:
        if self.topk > len(self.class_names):
            raise InputError(f"--topk expected at most the {len(self.class_names)} classes of the model, received "
                             f"{self.topk}; try --topk={len(self.class_names)}")

    def columns(self) -> list[str]:
        """Returns the CSV's columns."""
        return ["file", "label", "name", *(f"p{c}" for c in range(len(self.class_names))), "confidence", "novelty",
                "flag", *(f"top{k}_{what}" for k in range(1, self.topk + 1) for what in ("name", "p"))]

    def header(self) -> bytes:
        """Returns what stands before the first row."""
        return (",".join(self.columns()) + "\n").encode() if self.ending == ".csv" else b""

    def rows(self, items: Sequence[Item], probabilities: np.ndarray, novelty: np.ndarray, novel: np.ndarray
             ) -> tuple[bytes, dict[str, int]]:
        """Returns a line for each image, and how many have which of `FLAGS`.

        Args:
          items: the images in their order, of which R can be read.
          probabilities: float32 [R,C].
          novelty: float [R] in 0..1.
          novel: bool [R], whether that is to be flagged.
        """
        text = io.StringIO()
        write = self._csv if self.ending == ".csv" else self._json
        counts = dict.fromkeys(FLAGS, 0)
        row = 0
        for item in items:
            if item.reason:
                counts[UNREADABLE] += 1
                write(text, item.file, None, 0.0, f"{UNREADABLE}: {item.reason}")
                continue
            own = probabilities[row]
            flag = NOVEL if novel[row] else LOW if own.max() < LOW_CONFIDENCE else ""
            if flag:
                counts[flag] += 1
            write(text, item.file, own, float(novelty[row]), flag)
            row += 1
        return text.getvalue().encode(), counts

    def finish(self, part: PartFile) -> None:
        """Makes the complete file of the rows: the part itself, or arrays read from it.

        Raises:
          InputError: the disk refuses; the rows stay, and the same command finishes them.
        """
        if self.ending != ".npz":
            part.rename()
            return
        part.commit()
        write_atomically(part.final, lambda file: self._write_arrays(file, part.path))
        part.discard()

    def _csv(self, text: io.StringIO, file: str, own: np.ndarray | None, novelty: float, flag: str) -> None:
        writer = csv.writer(text, lineterminator="\n")
        if own is None:
            writer.writerow([file, *[""] * (len(self.class_names) + 4), flag, *[""] * (2 * self.topk)])
            return
        label = int(own.argmax())
        tops = [each for c in _top(own, self.topk) for each in (self.class_names[c], f"{own[c]:.6f}")]
        writer.writerow([file, label, self.class_names[label], *(f"{p:.6f}" for p in own), f"{own[label]:.6f}",
                         f"{novelty:.6f}", flag, *tops])

    def _json(self, text: io.StringIO, file: str, own: np.ndarray | None, novelty: float, flag: str) -> None:
        row: dict[str, Any] = {"file": file}
        if own is None:
            row |= dict.fromkeys(("label", "name", "probabilities", "confidence", "novelty"))
        else:
            label = int(own.argmax())
            row |= {"label": label, "name": self.class_names[label], "probabilities": [_number(p) for p in own],
                    "confidence": _number(own[label]), "novelty": round(novelty, 9)}
        row["flag"] = flag
        if self.topk:
            row["top"] = [] if own is None else [
                {"name": self.class_names[c], "p": _number(own[c])} for c in _top(own, self.topk)]
        text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def _write_arrays(self, file: BinaryIO, rows: pathlib.Path) -> None:
        """Writes arrays of N images; where one cannot be read, label is -1 and its numbers are NaN."""
        count, name, flag = 0, 1, 1
        for row in _json_rows(rows):
            count, name, flag = count + 1, max(name, len(row["file"])), max(flag, len(row["flag"]))
        arrays: dict[str, Any] = {
            "files": np.zeros(count, f"U{name}"), "labels": np.full(count, -1, np.int64),
            "probabilities": np.full((count, len(self.class_names)), np.nan, np.float32),
            "confidence": np.full(count, np.nan, np.float32), "novelty": np.full(count, np.nan),
            "flag": np.zeros(count, f"U{flag}")}
        for at, row in enumerate(_json_rows(rows)):
            arrays["files"][at], arrays["flag"][at] = row["file"], row["flag"]
            if row["label"] is not None:
                arrays["labels"][at], arrays["novelty"][at] = row["label"], row["novelty"]
                arrays["probabilities"][at], arrays["confidence"][at] = row["probabilities"], row["confidence"]
        if self.topk:
            arrays["top_labels"] = np.where(arrays["labels"][:, None] < 0, -1, _top(arrays["probabilities"], self.topk))
            arrays["top_probabilities"] = np.take_along_axis(arrays["probabilities"],
                                                             np.maximum(arrays["top_labels"], 0), axis=1)
        np.savez(file, class_names=np.asarray(self.class_names, str), **arrays)


def check(path: str) -> str:
    """Returns the ending of `--predictions`; raises InputError where nothing can be written there."""
    ending = pathlib.Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"--predictions expected a name that ends in {', '.join(ENDINGS)}, received {path}; try "
                         "--predictions=out.csv")
    common.check_output(path, "--predictions")
    parent = pathlib.Path(path).absolute().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--predictions expected a folder that can be written, received {parent}; try another")
    return ending


def _top(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Returns the most probable classes, best first, of ties the lower label first: int [..., count]."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :count]


def _number(value: np.float32) -> float:
    """Returns the shortest number that is this float32."""
    return float(str(value))


def _json_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)
