"""A small audit made by hand, for the tests of its page: one of each thing that a page can show."""

import numpy as np

from bloodcell.data.audit.result import Audit, Finding, Pair, RuleSummary
from bloodcell.evaluate.audit_page import Map

NAMES = ("basophil", "</script><img src=x onerror=alert(1)>", '"><b>bold', "immature_granulocyte")
COPIES = range(20, 40)  # one picture, under every label
SECOND = (41, 44, 47)  # another one


def images() -> np.ndarray:
    """60 plain pictures [60, 24, 32, 3], each of a colour of its own but for the copies; 5 and 9 are equal."""
    colours = np.random.default_rng(0).permutation(np.stack(np.meshgrid(*[range(20, 240, 55)] * 3), -1).reshape(-1, 3))
    made = np.repeat(colours[:60, None], 24 * 32, axis=1).reshape(60, 24, 32, 3).astype(np.uint8)
    made[list(COPIES)] = made[20]
    made[list(SECOND)] = made[41]
    made[9] = made[5]
    return made


def maps() -> dict[str, Map]:
    """Two maps: a grid of 10 columns, and the same mirrored and half of it."""
    index = np.arange(60)
    xy = np.stack([index % 10, index // 10], axis=1).astype(float)
    return {"PCA": Map(index, xy), "t-SNE <i>": Map(index[::2], -xy[::2])}


def audit() -> Audit:
    """Returns the audit of `images`."""
    labels = np.arange(60) % 4
    removed = [Finding(i, "repeats", "1 of 20 near-identical images, under 4 labels", 20.0) for i in COPIES]
    removed += [Finding(i, "far", f"{i / 10} standard deviations <away>", i / 10) for i in SECOND]
    suspects = (Finding(3, "blur", "sharpness 0.5 & below", 0.5), Finding(2, "blur", "sharpness 0.7", 0.7),
                Finding(3, "grey", "background of 5 levels", 5.0))
    pictures = np.arange(60)
    pictures[list(COPIES)], pictures[list(SECOND)], pictures[9], pictures[10] = 20, 41, 5, 6
    rules = (RuleSummary("repeats", "repeats(limit=20)", "pictures that come too often", "remove", 20),
             RuleSummary("far", "far(k=4)", "far from its class, in standard deviations", "remove", 3),
             RuleSummary("blur", "blur(limit=1)", "blurred images", "report", 2),
             RuleSummary("grey", "grey(limit=9)", "grey backgrounds", "report", 1),
             RuleSummary("examples", "examples(0.8)", "like given ones", "remove", 0, "no --contaminants given"))
    return Audit(origin="my <set>.npz", fingerprint="0" * 64, labels_sha256="0" * 64, shape=(60, 24, 32, 3),
                 labels=labels, class_names=NAMES, removed=tuple(removed), suspects=suspects,
                 duplicates=(Pair(5, 9, 1.0),), near_duplicates=(Pair(6, 10, 0.91), Pair(7, 8, 0.9)),
                 conflicts=(Pair(7, 8, 0.9),), rules=rules, asked_to_keep=(50,),
                 pictures=pictures, features="mobilenet_v2", seconds=12.3)
