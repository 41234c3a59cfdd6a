"""The rules of an audit: what each looks for, its parameters, and whether it removes what it finds or only reports it.

A rule sees the images that no earlier rule has removed. What a finding looks like belongs to `result`, the search for
copies to `data.similarity`, and the features that distances are measured in are given.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell import spec
from bloodcell.data.audit import outliers, quality
from bloodcell.data.audit.result import Finding, Pair
from bloodcell.data.similarity import Similar

DEFAULT = ("repeats | examples | duplicates | near_duplicates | conflicts | centroid | mahalanobis | background | blur "
           "| exposure")


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What the rules look at.

    Attributes:
      images: uint8 [N, H, W, 3] array-like.
      labels: int64 [N].
      class_names: a name per class.
      similar: which images are one picture.
      features: float32 [N, D], rows of unit length.
      examples: float32 [E, D], features of the given contaminants; E may be 0.
      example_names: E names, for the reasons.
      pairs: equal and near-equal pairs of all images, without those of repeated pictures.
    """

    images: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    similar: Similar
    features: np.ndarray
    examples: np.ndarray
    example_names: tuple[str, ...]
    pairs: tuple[Pair, ...]


Found = list[Finding]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      name: as written in `--audit_rules`.
      summary: one sentence for people: what is named, and in what unit it is measured.
      params: what its spec takes, beside `remove`.
      remove: whether it removes by default; a rule that may name rare but true cells only reports.
      find: called with (evidence, indices of the images that are left, bound parameters).
    """

    name: str
    summary: str
    params: tuple[spec.Param, ...]
    remove: bool
    find: Callable[[Evidence, np.ndarray, dict[str, Any]], Found]

    @property
    def all_params(self) -> tuple[spec.Param, ...]:
        """The parameters with `remove`, as `spec.bind` wants them."""
        return (*self.params, spec.Param("remove", bool, self.remove))


def parse(text: str) -> tuple[tuple[Rule, dict[str, Any]], ...]:
    """Reads `--audit_rules`, empty for `DEFAULT`; InputError names an unknown rule or parameter."""
    chosen = []
    for term in spec.parse(text or DEFAULT, what="--audit_rules").terms:
        rule = spec.lookup(term, RULES, what="--audit_rules")
        spec.only_term(spec.Chain((term,)), what="--audit_rules")  # no gate
        chosen.append((rule, spec.bind(term, rule.all_params, what="--audit_rules")))
    return tuple(chosen)


def _repeats(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    found: Found = []
    for everywhere in evidence.similar.repeated:
        same = np.intersect1d(everywhere, left)
        if len(same) < values["copies"]:
            continue
        names = len(np.unique(evidence.labels[same]))
        equal = len(np.unique(evidence.similar.equal[same])) == 1
        reason = (f"one of {len(same):,} {'identical' if equal else 'near-identical'} images, under {names} "
                  f"label{'s' if names > 1 else ''}")
        found += [Finding(int(index), "repeats", reason, float(len(same))) for index in same]
    return found


def _examples(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    if not len(evidence.examples):
        return []
    cosine = evidence.features[left] @ evidence.examples.T
    nearest = cosine.argmax(axis=1)
    best = cosine[np.arange(len(left)), nearest]
    return [Finding(int(left[at]), "examples",
                    f"like the given contaminant {evidence.example_names[nearest[at]]}, cosine {best[at]:.2f}",
                    float(best[at]))
            for at in np.flatnonzero(best >= values["similarity"] - 1e-6)]


def _pairs_of(evidence: Evidence, left: np.ndarray, *, equal: bool) -> list[Pair]:
    here = set(left.tolist())
    return [pair for pair in evidence.pairs
            if (pair.similarity == 1) == equal and pair.first in here and pair.second in here]


def _duplicates(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    return [Finding(pair.second, "duplicates", f"equal to image {pair.first}, pixel for pixel", 1.0)
            for pair in _pairs_of(evidence, left, equal=True)]


def _near_duplicates(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    return [Finding(pair.second, "near_duplicates", f"the picture of image {pair.first}, encoded, shifted or coloured "
                    f"otherwise (correlation {pair.similarity:.3f})", pair.similarity)
            for pair in _pairs_of(evidence, left, equal=False)]


def _conflicts(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    found = []
    for pair in _pairs_of(evidence, left, equal=True) + _pairs_of(evidence, left, equal=False):
        ours, theirs = (evidence.class_names[evidence.labels[index]] for index in (pair.first, pair.second))
        if ours != theirs:
            found += [Finding(one, "conflicts", f"labelled {name}, image {other} of the same picture {otherwise}",
                              pair.similarity)
                      for one, name, other, otherwise in ((pair.first, ours, pair.second, theirs),
                                                          (pair.second, theirs, pair.first, ours))]
    return found


def _centroid(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    labels = evidence.labels[left]
    deviations = outliers.centroid_deviations(evidence.features[left], labels)
    return [Finding(int(left[at]), "centroid",
                    f"{deviations[at]:.1f} standard deviations farther than usual from the centre of "
                    f"{evidence.class_names[labels[at]]}", float(deviations[at]))
            for at in np.flatnonzero(deviations > values["k"])]


def _mahalanobis(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    labels = evidence.labels[left]
    inside, outside = outliers.mahalanobis(evidence.features[left], labels, values["components"])
    found = []
    for at in np.flatnonzero(np.maximum(inside, outside) > values["k"]):
        worst = max(inside[at], outside[at])
        where = "within the principal components" if inside[at] >= outside[at] else "away from the principal components"
        found.append(Finding(int(left[at]), "mahalanobis", f"{worst:.1f} robust deviations farther from "
                             f"{evidence.class_names[labels[at]]} than usual, {where}", float(worst)))
    return found


def _background(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    colours, chroma = quality.background(evidence.images, left), quality.chroma(evidence.images, left)
    rarity = quality.distance_to_common(colours, share=values["share"])
    found = []
    for at, index in enumerate(left):
        if chroma[at] < values["grey"]:
            found.append(Finding(int(index), "background", f"grey: {chroma[at]:.1f} grey levels between the channels",
                                 float(values["grey"] - chroma[at])))
        elif rarity[at] > values["radius"]:
            colour = ", ".join(f"{value:.0f}" for value in colours[at])
            found.append(Finding(int(index), "background", f"a background of RGB {colour}, {rarity[at]:.0f} grey "
                                 "levels from the nearest common one", float(rarity[at])))
    return found


def _blur(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    deviations = quality.blur_deviations(evidence.images, left, evidence.labels[left])
    return [Finding(int(left[at]), "blur", f"edges {deviations[at]:.1f} robust deviations weaker than is usual for "
                    f"{evidence.class_names[evidence.labels[left[at]]]}", float(deviations[at]))
            for at in np.flatnonzero(deviations > values["k"])]


def _exposure(evidence: Evidence, left: np.ndarray, values: dict[str, Any]) -> Found:
    mean, deviation = quality.exposure(evidence.images, left)
    found = []
    for at, index in enumerate(left.tolist()):
        for beyond, words, value in (
                (values["dark"] - mean[at], "dark: mean grey level", mean[at]),
                (mean[at] - values["bright"], "bright: mean grey level", mean[at]),
                (values["flat"] - deviation[at], "flat: deviation of grey levels", deviation[at])):
            if beyond > 0:
                found.append(Finding(index, "exposure", f"{words} {value:.1f}", float(beyond)))
                break
    return found



RULES: dict[str, Rule] = {rule.name: rule for rule in (
    Rule("repeats", "one picture in so many images or more: far beyond chance, hence no specimen",
         (spec.Param("copies", int, 10, low=2, high=10**6, unit="images"),), True, _repeats),
    Rule("examples", "features like those of an image given by --contaminants: cosine similarity",
         (spec.Param("similarity", float, 0.8, low=0.0, high=1.0, unit="cosine"),), True, _examples),
    Rule("duplicates", "pixels equal to those of an earlier image", (), False, _duplicates),
    Rule("near_duplicates", "an earlier image's picture, encoded, shifted or coloured otherwise", (), False,
         _near_duplicates),
    Rule("conflicts", "one picture under two labels", (), False, _conflicts),
    Rule("centroid", "far from its class's mean in feature space: standard deviations of the class's distances",
         (spec.Param("k", float, 4.5, low=1.0, high=100.0, unit="standard deviations"),), False, _centroid),
    Rule("mahalanobis", "far out of its class by PCA, within its components (robust covariance) or away from them",
         (spec.Param("k", float, 7.0, low=1.0, high=1000.0, unit="robust deviations"),
          spec.Param("components", int, 32, low=2, high=256, unit="components")), False, _mahalanobis),
    Rule("background", "hardly any colour, or a background that hardly any other image has: grey levels",
         (spec.Param("radius", float, 20.0, low=0.0, high=442.0, unit="grey levels"),
          spec.Param("share", float, 0.001, low=0.0, high=1.0, unit="of the images"),
          spec.Param("grey", float, 8.0, low=0.0, high=255.0, unit="grey levels")), False, _background),
    Rule("blur", "edges weaker than is usual for the class: robust deviations of log Laplacian variance",
         (spec.Param("k", float, 5.0, low=1.0, high=100.0, unit="robust deviations"),), False, _blur),
    Rule("exposure", "too dark, too bright or flat: mean and standard deviation of grey levels",
         (spec.Param("dark", float, 40.0, low=0.0, high=255.0, unit="grey levels"),
          spec.Param("bright", float, 245.0, low=0.0, high=255.0, unit="grey levels"),
          spec.Param("flat", float, 6.0, low=0.0, high=128.0, unit="grey levels")), False, _exposure),
)}
