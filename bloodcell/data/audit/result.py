"""What an audit finds, as data: `Audit`, its parts and audit.json. Finding belongs to `rules`, pages to `evaluate`."""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from bloodcell import __version__


@dataclasses.dataclass(frozen=True)
class Finding:
    """One image that a rule speaks of.

    Attributes:
      index: its position in the set that was audited.
      rule: the rule's name, for example "repeats".
      reason: one clause for people, for example "1 of 1,600 near-identical images, under 8 labels".
      score: what the rule measured, in the rule's unit; more is worse.
    """

    index: int
    rule: str
    reason: str
    score: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images that are one picture: `first` < `second`; similarity 1 where the pixels are equal."""

    first: int
    second: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class RuleSummary:
    """What a rule was asked, and what came of it.

    Attributes:
      name: the rule's name.
      spec: as the user could type it, with every parameter.
      summary: one sentence: what it looks for and in what unit.
      action: "remove" or "report".
      found: images that it names.
      note: why it found nothing or could not run; "" where it ran.
    """

    name: str
    spec: str
    summary: str
    action: str
    found: int
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """The result of auditing a set of N images.

    Attributes:
      origin: what the user typed.
      fingerprint: of the audited set (`ImageSet.fingerprint`).
      labels_sha256: of its labels alone, which stay when images are resized.
      shape: [N, H, W, 3].
      labels: int64 [N].
      class_names: a name per class.
      removed: images left out of the clean set, one finding each (the first rule that named it), by index.
      suspects: images that stay in but that somebody should look at; an image may have several.
      duplicates: pairs with equal pixels among the images that are kept, or were until a rule about copies.
      near_duplicates: likewise pairs that are one picture but for encoding, a shift or colours.
      conflicts: those of both kinds whose labels differ.
      rules: what was asked and what came of it, in order.
      asked_to_keep: images that a rule would have removed but for --audit_keep.
      pictures: int64 [N], a number per picture, the same for all its images.
      features: which network's features the distances are of.
      seconds: how long it took.
    """

    origin: str
    fingerprint: str
    labels_sha256: str
    shape: tuple[int, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    removed: tuple[Finding, ...]
    suspects: tuple[Finding, ...]
    duplicates: tuple[Pair, ...]
    near_duplicates: tuple[Pair, ...]
    conflicts: tuple[Pair, ...]
    rules: tuple[RuleSummary, ...]
    asked_to_keep: tuple[int, ...]
    pictures: np.ndarray
    features: str
    seconds: float

    @property
    def kept(self) -> np.ndarray:
        """The indices of the clean set, int64 [K], ascending."""
        keep = np.ones(len(self.labels), bool)
        keep[[finding.index for finding in self.removed]] = False
        return np.flatnonzero(keep)

    def to_json(self) -> str:
        """Returns audit.json: `images` and `kept` are numbers of images, indices are positions in the audited set."""
        before = np.bincount(self.labels, minlength=len(self.class_names))
        after = np.bincount(self.labels[self.kept], minlength=len(self.class_names))

        def findings(found: tuple[Finding, ...]) -> list[dict[str, Any]]:
            return [{**dataclasses.asdict(each), "label": int(self.labels[each.index])} for each in found]

        content = {
            "bloodcell": __version__, "data": self.origin, "fingerprint": self.fingerprint,
            "labels_sha256": self.labels_sha256,
            "kept_labels_sha256": hashlib.sha256(self.labels[self.kept].astype("<i8").tobytes()).hexdigest(),
            "shape": list(self.shape),
            "images": len(self.labels), "kept": len(self.kept), "removed": findings(self.removed),
            "suspects": findings(self.suspects), "conflicts": [[pair.first, pair.second] for pair in self.conflicts],
            "duplicates": [[pair.first, pair.second] for pair in self.duplicates],
            "near_duplicates": [dataclasses.asdict(pair) for pair in self.near_duplicates],
            "classes": {name: {"before": int(old), "after": int(new)}
                        for name, old, new in zip(self.class_names, before, after, strict=True)},
            "rules": [dataclasses.asdict(rule) for rule in self.rules], "asked_to_keep": list(self.asked_to_keep),
            "features": self.features, "seconds": self.seconds}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
