"""What a report says in plain words, computed from its figures: for readers who know blood and not statistics.

Every sentence says what was counted. Figures belong to `metrics`; what a page looks like to `report_page`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.evaluate import bootstrap

MOST_CONFUSIONS = 3  # named in a sentence
FEW_IMAGES = 30  # of a class, below which its figures are said to be uncertain
CLOSE = 0.02  # by which mean confidence and accuracy may differ and count as equal

_PARTS = {"test": "a test part that was kept out of training",
          "val": "the validation part, which was kept out of training but chose the best epoch, so that the figures "
                 "lean upwards a little"}


def name(class_name: str) -> str:
    """Returns a class's name as people write it."""
    return class_name.replace("_", " ")


def origin(report: Mapping[str, Any]) -> str:
    """Returns where the measured images came from."""
    return str(report["data"]["parts"].get(report["part"], report["data"])["origin"])


def percent(share: float) -> str:
    """Returns a probability as people read it; only 1 itself is 100%."""
    return "over 99.9%" if 0.999 < share < 1 else f"{100 * share:.{1 if 0.99 <= share < 1 else 0}f}%"


def confusions(report: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """Returns the confusions, the commonest first: true class, predicted class, images, images of the true class."""
    matrix = np.asarray(report["confusion"])
    wrong = matrix - np.diag(np.diag(matrix))
    support = matrix.sum(axis=1)
    rows = [(int(true), int(predicted), int(wrong[true, predicted]), int(support[true]))
            for true, predicted in zip(*np.nonzero(wrong), strict=True)]
    return sorted(rows, key=lambda row: (-row[2], row[3], row[:2]))  # of as many, the larger share first


def summary(report: Mapping[str, Any]) -> list[str]:
    """Returns the paragraphs, plain text, the most important first.

    Args:
      report: JSON values as `report.write` takes them.
    """
    parts = (_right(report), _confused(report), _missed(report), _confidence(report), _robust(report), _strange(report),
             _measured_on(report))
    return [" ".join(sentences) for each in parts if (sentences := list(each))]


def _right(report: Mapping[str, Any]) -> Iterator[str]:
    matrix = np.asarray(report["confusion"])
    right, count, ends = int(np.trace(matrix)), int(matrix.sum()), report["intervals"]["accuracy"]
    if right == count:
        yield f"All {count:,} cells that were looked at got the right name. That does not mean that the next one will."
        return
    accuracy = right / count
    of = 100 if accuracy < 0.995 else 1000 if accuracy < 0.9995 else 10_000
    interval = "" if ends is None else \
        f"; {bootstrap.LEVEL:.0%} interval: {of * ends[0]:.3g} to {of * ends[1]:.3g} of {of:,}"
    yield (f"Of {of:,} cells like these, about {round(of * accuracy):,} get the right name ({right:,} of the {count:,} "
           f"that were looked at{interval}).")
    balanced = report["balanced_accuracy"]
    if abs(balanced - accuracy) >= CLOSE:
        yield f"With each class counted alike, whatever its number of images, it is {100 * balanced:.0f} of 100."


def _confused(report: Mapping[str, Any]) -> Iterator[str]:
    found, names = confusions(report), list(report["per_class"])
    if found:
        said = [f"{name(names[true])} taken for {name(names[predicted])} ({images:,} of {support:,})"
                for true, predicted, images, support in found[:MOST_CONFUSIONS]]
        many = "The commonest mistake" if len(said) == 1 else "The commonest mistakes"
        yield f"{many}: {_listed(said)}."


def _missed(report: Mapping[str, Any]) -> Iterator[str]:
    present = {each: values for each, values in report["per_class"].items() if values["support"]}
    if len(present) > 1:
        worst = min(present, key=lambda each: present[each]["recall"])
        recall, support = present[worst]["recall"], present[worst]["support"]
        if recall < 1:
            few = ", few images, so the true share may be quite another" if support < FEW_IMAGES else ""
            yield f"The class it misses most: {name(worst)}, of which it found {round(recall * support):,} of " \
                  f"{support:,} ({100 * recall:.0f}%{few})."
    absent = [name(each) for each in report["per_class"] if each not in present]
    if absent:
        yield f"Nothing can be said of {_listed(absent)}: there was no image."


def _confidence(report: Mapping[str, Any]) -> Iterator[str]:
    filled = [each for each in report["calibration"] if each["images"]]
    count = sum(each["images"] for each in filled)
    sure = sum(each["images"] * each["confidence"] for each in filled) / count
    right, ece = report["accuracy"], report["ece"]
    said = f"on average it says {100 * sure:.0f}%, and {100 * right:.0f}% of the names are right"
    if sure - right >= CLOSE:
        yield f"It is surer than it should be: {said}. A high confidence alone is no reason to trust a name."
    elif right - sure >= CLOSE:
        yield f"It is less sure than it could be: {said}."
    elif ece >= CLOSE:
        yield (f"Its confidence is right on average alone: {said}, but at one level or another it is off by "
               f"{100 * ece:.0f} points.")
    else:
        yield f"Its confidence can be taken at its word for images like these: {said}."


def _robust(report: Mapping[str, Any]) -> Iterator[str]:
    measured = report.get("corruptions")
    if not measured:
        yield "How it does on blurred, recoloured or badly lit images was not measured here."
        return
    mean, clean = measured.get("mean"), 100 * report["balanced_accuracy"]
    if mean:
        each = {key: values for key, values in measured.items() if key in mean["of"]}
        worst = min(each, key=lambda key: each[key]["balanced_accuracy"])
        yield (f"On images made worse on purpose it names {100 * mean['balanced_accuracy']:.0f} of 100 right on "
               f"average, with each class counted alike; on the same images as they are, {clean:.0f}.")
        if len(each) > 1:
            yield f"It suffers most from {name(worst)}: {100 * each[worst]['balanced_accuracy']:.0f} of 100."
    for key, values in measured.items():
        if key != "mean" and not (mean and key in mean["of"]):
            under = "several strong transforms at once (heavy)" if key == "heavy" else name(key)
            yield (f"Under {under} it names {100 * values['balanced_accuracy']:.0f} of 100 right, with each class "
                   f"counted alike; on the same images as they are, {clean:.0f}.")


def _strange(report: Mapping[str, Any]) -> Iterator[str]:
    novelty = report.get("novelty") or {}
    flagged, which = novelty.get("flagged_here"), "of these images"
    if flagged is None:
        flagged, which = novelty.get("val_flagged"), "of the validation images"
    if flagged is not None:
        yield (f"It also says whether an image looks unlike anything in training, as what is no blood cell should; "
               f"{which} it says so of {100 * flagged:.1f} in 100.")


def _measured_on(report: Mapping[str, Any]) -> Iterator[str]:
    count = int(np.sum(report["confusion"]))
    trained = report["config"].get("mode", "train") == "train"
    which = _PARTS.get(report["part"], f"the {report['part']} part") if trained else \
        "whether any of them was used in training is not known here"
    policy = report["config"].get("val_augment")
    under = f", each transformed by the policy {policy}" if policy else ""
    yield (f"Measured on {count:,} images of {origin(report)} ({which}){under}. Other microscopes, stains, "
           "laboratories and patients may give other figures.")


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
