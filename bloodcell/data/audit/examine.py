"""The audit of a labelled set: copies first, then each rule in turn over what the rules before it have left."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from bloodcell.data import similarity
from bloodcell.data.audit import cleaning, rules
from bloodcell.data.audit.result import Audit, Finding, Pair, RuleSummary
from bloodcell.data.dataset import ImageSet
from bloodcell.spec import Term

_OF_COPIES = ("duplicates", "near_duplicates", "conflicts")
_MOST_REPEATED = 0.5  # of the images: beyond it the set itself is made of copies, and repetition says nothing


def examine(images: ImageSet, *, rules_text: str, features: np.ndarray, features_name: str = "",
            examples: np.ndarray | None = None, example_names: Sequence[str] = (), keep: Collection[int] = (),
            on_step: Callable[[str], None] | None = None) -> Audit:
    """Audits a set.

    Args:
      images: N labelled images.
      rules_text: `--audit_rules`.
      features: float32 [N, D], rows of unit length; D may be 0 where no rule needs them (`needs_features`).
      features_name: which network's.
      examples: float32 [E, D], features of known contaminants.
      example_names: E names of them.
      keep: indices that are never removed.
      on_step: called with a few words before each long step.

    Returns:
      What was found; equal arguments give an equal audit but for its seconds.

    Raises:
      InputError: a bad spec.
    """
    began = time.monotonic()
    chosen = rules.parse(rules_text)
    if images.labels is None:
        raise ValueError("expected labelled images")
    say = on_step or (lambda words: None)
    say("looking for copies")
    copies = next((values["copies"] for rule, values in chosen if rule.name == "repeats"), similarity.COPIES)
    similar = similarity.find(images, copies=copies)
    evidence = rules.Evidence(
        images=images.images, labels=images.labels, class_names=images.class_names, similar=similar, features=features,
        examples=np.zeros((0, features.shape[1]), np.float32) if examples is None else examples,
        example_names=tuple(example_names), pairs=tuple(_pairs(similar)))

    left = np.ones(len(images), bool)
    removed: list[Finding] = []
    suspects: list[Finding] = []
    asked_to_keep: set[int] = set()
    summaries = []
    say("applying the rules")
    for rule, values in chosen:
        found = rule.find(evidence, np.flatnonzero(left), values)
        remove, note = values["remove"], ""
        if rule.name == "repeats" and len(found) > _MOST_REPEATED * len(images):
            remove, note = False, "more than half of the set is copies, which is no contamination: nothing removed"
        if rule.name == "examples" and not len(evidence.examples):
            note = "no examples given (--contaminants)"
        if remove:
            first = {finding.index: finding for finding in reversed(found)}
            kept = first.keys() & set(keep)
            asked_to_keep |= kept
            removed += [finding for index, finding in first.items() if index not in kept]
            left[[index for index in first if index not in kept]] = False
        elif rule.name not in _OF_COPIES:  # those are told as pairs
            suspects += found
        summaries.append(RuleSummary(rule.name, _spec(rule.name, values), rule.summary,
                                     "remove" if remove else "report", len({finding.index for finding in found}), note))
    by_copy = {finding.index for finding in removed if finding.rule in _OF_COPIES}
    shown = [pair for pair in evidence.pairs
             if all(left[index] or index in by_copy for index in (pair.first, pair.second))]
    return Audit(
        origin=images.origin, fingerprint=images.fingerprint(),
        labels_sha256=cleaning.labels_sha256(images), shape=tuple(images.images.shape), labels=images.labels,
        class_names=images.class_names, removed=tuple(sorted(removed, key=lambda finding: finding.index)),
        suspects=tuple(suspects), duplicates=tuple(pair for pair in shown if pair.similarity == 1),
        near_duplicates=tuple(pair for pair in shown if pair.similarity < 1),
        conflicts=tuple(pair for pair in shown if images.labels[pair.first] != images.labels[pair.second]),
        rules=tuple(summaries), asked_to_keep=tuple(sorted(asked_to_keep)), pictures=similar.groups(),
        features=features_name,
        seconds=round(time.monotonic() - began, 1))


def needs_features(rules_text: str, *, given: bool) -> bool:
    """Whether a rule of the spec looks at features; `given`: whether there are examples to compare with."""
    names = {rule.name for rule, _ in rules.parse(rules_text)}
    return bool(names & {"centroid", "mahalanobis"}) or (given and "examples" in names)


def removing(rules_text: str) -> str:
    """Returns the spec with only those rules that remove what they find."""
    return " | ".join(_spec(rule.name, values) for rule, values in rules.parse(rules_text) if values["remove"])


def _spec(name: str, values: dict[str, Any]) -> str:
    return str(Term(name, (), tuple(values.items())))


def _pairs(similar: similarity.Similar) -> list[Pair]:
    """Pairs of images that are one picture: each further equal image with the first, then the nearly equal ones."""
    often = np.zeros(len(similar.equal), bool)
    for same in similar.repeated:
        often[same] = True
    first = np.unique(similar.equal, return_index=True)[1][similar.equal]
    pairs = [Pair(int(first[index]), int(index), 1.0)
             for index in np.flatnonzero((first != np.arange(len(first))) & ~often)]
    near = [Pair(int(a), int(b), min(float(value), 0.9999))  # 1 is for equal pixels
            for (a, b), value in zip(similar.pairs, similar.similarity, strict=True)]
    return pairs + near
