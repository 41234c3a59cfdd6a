"""Leaving out what an audit removed: from its audit.json or its index file, or by an audit on the spot.

The index file is text: a line `# bloodcell index of N images, labels SHA-256 HEX`, then one kept position a line.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections import Counter
from typing import Any

import numpy as np

from bloodcell.data.audit.result import Audit
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

AUDIT_FILE = "audit.json"
INDEX_FILE = "kept.txt"

_HEADER = re.compile(r"# bloodcell index of (\d{1,12}) images, labels SHA-256 ([0-9a-f]{64})")
_MOST_BYTES = 2**30  # of a file that is read whole


def labels_sha256(images: ImageSet) -> str:
    """Returns the SHA-256 (hex) of the labels: it stays when the images are resized."""
    return hashlib.sha256(np.asarray(images.labels).astype("<i8").tobytes()).hexdigest()


def positions(text: str, count: int, flag: str) -> np.ndarray:
    """Reads a list such as "13202,13690-13700".

    Args:
      text: whole numbers and ranges (both ends count), separated by commas; may be empty.
      count: positions are below it.
      flag: for the error's line.

    Returns:
      int64 [M], ascending, each once.

    Raises:
      InputError: another text, or a position that there is not.
    """
    chosen: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d{1,12})(?:\s*-\s*(\d{1,12}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= count:
            raise InputError(f"{flag} expected positions 0..{count - 1} such as 5,10-19, received {part[:40]!r}; "
                             "try the indices in audit.json")
        chosen.update(range(first, last + 1))
    return np.asarray(sorted(chosen), np.int64)


def without(images: ImageSet, removed: dict[int, str]) -> ImageSet:
    """Returns the set without the images at these positions; `cleaned` then names each with its reason."""
    keep = np.ones(len(images), bool)
    keep[list(removed)] = False
    names = tuple((images.files[index], reason) for index, reason in sorted(removed.items()))
    return dataclasses.replace(images.subset(keep), cleaned=names)


def by_audit(images: ImageSet, found: Audit) -> ImageSet:
    """Returns the set without what the audit of it removed."""
    return without(images, {finding.index: f"{finding.rule}: {finding.reason}" for finding in found.removed})


def by_file(images: ImageSet, path: pathlib.Path) -> ImageSet:
    """Returns the set without what an earlier audit of it removed.

    Args:
      images: N labelled images.
      path: an audit.json or an index file of these N images.

    Raises:
      InputError: the file is missing, damaged, or of other data.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than 1 GiB")
        text = path.read_text(encoding="utf-8")
        count, digest, removed = _from_json(json.loads(text)) if text.lstrip().startswith("{") else _from_index(text)
    except OSError as error:
        raise InputError(f"--clean expected auto, none, an audit.json or an index file, received {path} "
                         f"({error.strerror or error}); try its full path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--clean expected an audit.json or an index file, received {path}, which is neither "
                         f"({str(error)[:80]}); try writing it again with --mode=audit") from None
    if count != len(images) or digest != labels_sha256(images):
        raise InputError(f"--clean expected an audit of the {len(images):,} images of {images.origin}, received {path} "
                         f"of {count:,} images or of others; try --mode=audit on this data")
    return without(images, removed)


def is_result(images: ImageSet, folder: pathlib.Path) -> bool:
    """Whether the audit.json of a folder tells of these images as the kept ones, by their number and labels."""
    path = folder / AUDIT_FILE
    try:
        if images.labels is None or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return False
        content = json.loads(path.read_text(encoding="utf-8"))
        return (content["kept"], content["kept_labels_sha256"]) == (len(images), labels_sha256(images))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # whatever it is, it is no audit of these


def to_index(found: Audit, images: ImageSet) -> str:
    """Returns the text of an index file."""
    header = f"# bloodcell index of {len(images)} images, labels SHA-256 {labels_sha256(images)}"
    return "\n".join([header, *map(str, found.kept)]) + "\n"


def summary(cleaned: tuple[tuple[str, str], ...]) -> str:
    """Returns how many images were left out by which rule: "1,800 repeats, 3 blur"; "none" where nothing was."""
    rules = Counter(reason.partition(":")[0] for _, reason in cleaned)
    return ", ".join(f"{count:,} {rule}" for rule, count in rules.most_common()) or "none"


def _from_json(content: dict[str, Any]) -> tuple[int, str, dict[int, str]]:
    removed = {int(each["index"]): f"{each['rule']}: {each['reason']}" for each in content["removed"]}
    count = int(content["images"])
    _check(np.fromiter(removed, np.int64, len(removed)), count)
    return count, str(content["labels_sha256"]), removed


def _from_index(text: str) -> tuple[int, str, dict[int, str]]:
    first, _, rest = text.partition("\n")
    match = _HEADER.fullmatch(first.strip())
    if not match:
        raise ValueError("the first line is no index's")
    count = int(match[1])
    kept = np.asarray([int(line) for line in rest.split()], np.int64)
    _check(kept, count)
    if len(np.unique(kept)) != len(kept):
        raise ValueError("a position twice")
    gone = np.setdiff1d(np.arange(count), kept)
    return count, match[2], dict.fromkeys(gone.tolist(), "index: not among the kept")


def _check(index: np.ndarray, count: int) -> None:
    if len(index) and not (index.min() >= 0 and index.max() < count):
        raise ValueError(f"positions outside 0..{count - 1}")
