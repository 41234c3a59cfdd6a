"""Removed images grouped for people, by rule and by picture: 1,600 copies are one entry. And indices in few words."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bloodcell.data.audit.result import Finding
from bloodcell.evaluate import thumbnails


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that one rule removed and that show one picture.

    Attributes:
      rule: its name.
      findings: a finding per image, by index.
      pictures: the first index of each of them that differs in any pixel.
    """

    rule: str
    findings: tuple[Finding, ...]
    pictures: tuple[int, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The images, ascending."""
        return tuple(finding.index for finding in self.findings)

    @property
    def reasons(self) -> dict[str, tuple[int, ...]]:
        """The images for each reason, the commonest reason first."""
        by_reason: dict[str, list[int]] = {}
        for finding in self.findings:
            by_reason.setdefault(finding.reason, []).append(finding.index)
        return {reason: tuple(found) for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))}


def groups(findings: Iterable[Finding], images: Any, pictures: np.ndarray) -> list[Group]:
    """Groups removed images by rule and picture, the largest group first.

    Args:
      findings: at most one an image.
      images: uint8 [N, H, W, 3], anything that gives an array for an array of indices.
      pictures: int64 [N], the same for images of one picture (`Audit.pictures`).
    """
    ordered = sorted(findings, key=lambda finding: finding.index)
    indices = np.array([finding.index for finding in ordered], np.int64)
    first, place = thumbnails.distinct(images, indices)
    together: dict[tuple[str, int], dict[int, Finding]] = {}
    for finding in ordered:
        together.setdefault((finding.rule, int(pictures[finding.index])), {})[finding.index] = finding
    example = dict(zip(indices.tolist(), first[place].tolist(), strict=True))
    result = [Group(rule, tuple(found.values()), tuple(dict.fromkeys(example[index] for index in found)))
              for (rule, _), found in together.items()]
    return sorted(result, key=lambda group: (-len(group.findings), group.indices[0]))


def runs(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    """Writes ascending indices as (first, last, step): 3, 5, 7, 20 is [(3, 7, 2), (20, 20, 1)]."""
    result = []
    start = 0
    while start < len(indices):
        end = start + 1
        step = indices[end] - indices[start] if end < len(indices) else 1
        while end < len(indices) and indices[end] - indices[end - 1] == step:
            end += 1
        if end - start == 2:  # two numbers are no row: the second may begin one
            end, step = start + 1, 1
        result.append((int(indices[start]), int(indices[end - 1]), int(step)))
        start = end
    return result


def range_text(indices: Sequence[int]) -> str:
    """Returns ascending indices for people: "3 to 7 step 2, 20". An index is a name: it has no thousands separator."""
    return ", ".join(str(first) if first == last else f"{first} to {last}" + (f" step {step}" if step != 1 else "")
                     for first, last, step in runs(indices))
