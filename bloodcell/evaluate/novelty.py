"""How unlike its training images an image is to a network: the distance to the nearest of them, by its features.

The score is the k nearest neighbours' of Sun et al. (2022, arXiv 2204.06507): the distance from an image's features, on
the unit sphere, to the k-th nearest of a bank of training images'. Before that each feature is raised to a power below
one, sign kept (the power normalisation of Perronnin et al. 2010): which features answer counts for more, how strongly
for less, and that is what a cell keeps when it is transformed. `docs/novelty.md` says what other scores reached.

What belongs here: the score, its threshold, and the file that keeps both beside the weights they were fitted for. Which
images go in is `commands.novelty_fitting`'s business.
"""

import dataclasses
import functools
import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bloodcell.errors import InputError
from bloodcell.files import write_atomically

FILE = "novelty.npz"  # in a run's folder
FLAGGED = 0.5  # an image is flagged from this score on
FLAG = "novel"
K = 10
POWER = 0.3
_STEEPNESS = 8  # distances of cells and of anything else are between a half and twice the threshold
_MARGIN = 1e-6
_CHUNK = 1024  # images whose distances are in memory at once
_BANK, _META = "bank", "meta"


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Images that are cells, which the network has not learned from.

    Attributes:
      policy: what was done to them, in the form of `--augment`; empty: nothing.
      share: of them that must stay unflagged, above 0 and below 1.
      features: float32 [N,D], N at least 1.
    """

    policy: str
    share: float
    features: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Novelty:
    """A bank of training images' features, and from which distance on an image is novel.

    Attributes:
      bank: float16 [R,D], rows of `normalised` features.
      k: which neighbour's distance counts, 1..R.
      threshold: the distance of score 0.5, above 0.
      weights_sha256: of the network.
      fitted_on: JSON values: `augment` (the policies of the bank's images), and `known`, a list of `policy`, `images`,
        `share` (that must stay unflagged) and `flagged` (the share that is flagged nevertheless).
    """

    bank: np.ndarray
    k: int
    threshold: float
    weights_sha256: str
    fitted_on: dict[str, Any]

    @classmethod
    def fit(cls, bank: Sequence[tuple[str, np.ndarray]], known: Sequence[Known], *, weights_sha256: str, k: int = K
            ) -> "Novelty":
        """Returns the score whose threshold is as low as the shares of known images allow that must stay unflagged.

        Args:
          bank: a policy, as in `Known`, and features float32 [N,D] of training images under it; one or several.
          known: one or several; the first as they are, the last as strongly transformed as may be.
          weights_sha256: of the network whose features these are.
          k: less where the bank is smaller.
        """
        rows = np.concatenate([normalised(features) for _, features in bank]).astype(np.float16)
        fitted = cls(rows, min(k, len(rows)), 1.0, weights_sha256, {})
        distances = [fitted.distances(each.features) for each in known]
        threshold = max(_above(one, each.share) for one, each in zip(distances, known, strict=True))
        said = [{"policy": each.policy, "images": len(one), "share": each.share,
                 "flagged": float((one >= threshold).mean())} for one, each in zip(distances, known, strict=True)]
        return dataclasses.replace(fitted, threshold=threshold,
                                   fitted_on={"augment": [policy for policy, _ in bank], "known": said})

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Returns float64 [N], 0..2, the distance to the k-th nearest of the bank.

        Args:
          features: float [N,D], of the network that it was fitted for. A row that is not finite is as far as one of
            zeros.
        """
        result = np.empty(len(features))
        bank, squares = self._rows
        for start in range(0, len(features), _CHUNK):
            own = normalised(features[start:start + _CHUNK])
            product = own @ bank.T
            product *= -2
            product += squares
            nearest = np.partition(product, self.k - 1, axis=1)[:, self.k - 1].astype(np.float64)
            # a row of zeros is as far from all as a right angle is
            length = np.where(own.any(axis=1), np.einsum("nd,nd->n", own, own), 1.0)
            result[start:start + _CHUNK] = np.sqrt(np.maximum(nearest + length, 0.0))
        return result

    @functools.cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The bank in float32, and the square of each row's length: a batch alone would take as long for them."""
        bank = self.bank.astype(np.float32)
        return bank, np.einsum("rd,rd->r", bank, bank)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Returns float64 [N], 0 (as known as can be) to 1: r^8 / (1 + r^8), r being the distance over the threshold.

        It grows with the distance, is 0.5 exactly at the threshold, and an image is novel from there on (`FLAGGED`).
        """
        powers = (self.distances(features) / self.threshold) ** _STEEPNESS
        return powers / (1 + powers)

    def named(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns each of `fitted_on["known"]` with a name for people, in the order of `fit`."""
        known = self.fitted_on["known"]
        names = ("as they are", *["augmented"] * (len(known) - 2), "strongly transformed")
        return list(zip(names, known, strict=False))

    def facts(self) -> dict[str, Any]:
        """Returns what a report says of it, as flat JSON values; `val_flagged` is of validation images as they are."""
        (_, first), *others = self.named()
        return {"val_flagged": first["flagged"],
                **{f"val_flagged_{name.replace(' ', '_')}": each["flagged"] for name, each in others},
                "val_images": first["images"], "training_vectors": len(self.bank), "neighbour": self.k,
                "threshold": self.threshold}

    def save(self, run_dir: pathlib.Path, which: str = "best") -> None:
        """Writes it into a run's folder, beside those of the run's other weights.

        Args:
          run_dir: the run's folder.
          which: "best", "last" or "average": whose place in the file it takes.

        Raises:
          InputError: the disk refuses; the file before is untouched.
        """
        try:
            others = {name: value for name, value in _read(run_dir).items() if name.partition("/")[0] != which}
        except InputError:  # nothing in it can be used any more
            others = {}
        meta = json.dumps({"k": self.k, "threshold": self.threshold, "weights_sha256": self.weights_sha256,
                           "fitted_on": self.fitted_on}, allow_nan=False)
        arrays: dict[str, Any] = {**others, f"{which}/{_BANK}": self.bank, f"{which}/{_META}": np.array(meta)}
        write_atomically(run_dir / FILE, lambda file: np.savez_compressed(file, **arrays))


def load(run_dir: pathlib.Path, weights_sha256: str) -> Novelty | None:
    """Returns what `save` wrote for these weights; None where there is nothing, or for other weights.

    Raises:
      InputError: a damaged file.
    """
    arrays = _read(run_dir)
    for name, value in arrays.items():
        if name.endswith(f"/{_META}"):
            try:
                found = _checked(json.loads(str(value)), arrays[f"{name.partition('/')[0]}/{_BANK}"])
            except (ValueError, KeyError, TypeError):
                raise _damaged(run_dir) from None
            if found.weights_sha256 == weights_sha256:
                return found
    return None


def mean_score(judges: Sequence[Novelty | None], features: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns float64 [N], the mean of the scores of those networks that have one; None where none has.

    Args:
      judges: of each network.
      features: of each network, float [N,D].
    """
    scores = [judge.score(own) for judge, own in zip(judges, features, strict=True) if judge]
    return np.mean(scores, axis=0) if scores else None


def normalised(features: np.ndarray) -> np.ndarray:
    """Returns float32 [N,D]: sign(x) |x|^0.3 on the unit sphere; zeros where a row is zeros or is not finite."""
    values = np.asarray(features, np.float32)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.float32(0))
    powers = np.sign(values) * np.abs(values) ** np.float32(POWER)
    return powers / np.maximum(np.linalg.norm(powers, axis=1, keepdims=True), np.float32(1e-12))


def _above(distances: np.ndarray, share: float) -> float:
    """Returns a number above as many distances as the share asks for, in the middle of the gap to the next.

    It is above by a millionth at least: the same image in another batch may be as far by another last bit.
    """
    count = max(1, math.ceil(share * len(distances) - 1e-9))
    ordered = np.sort(distances)
    last = float(ordered[count - 1])
    middle = (last + float(ordered[count])) / 2 if count < len(ordered) else last
    return max(middle, last * (1 + _MARGIN), _MARGIN)


def _checked(meta: dict[str, Any], bank: np.ndarray) -> Novelty:
    """Returns what these values say; raises ValueError, KeyError or TypeError where that cannot be."""
    found = Novelty(bank, int(meta["k"]), float(meta["threshold"]), str(meta["weights_sha256"]),
                    dict(meta["fitted_on"]))
    whole = bank.dtype == np.float16 and bank.ndim == 2 and 1 <= found.k <= len(bank) and np.isfinite(bank).all()
    if not (whole and math.isfinite(found.threshold) and found.threshold > 0):
        raise ValueError("other values")
    return found


def _read(run_dir: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(run_dir / FILE, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            AttributeError, TypeError, MemoryError):  # the last but one: a lone .npy is an array, no archive
        raise _damaged(run_dir) from None


def _damaged(run_dir: pathlib.Path) -> InputError:
    return InputError(f"{run_dir / FILE}: expected the novelty score of a run, received a damaged file; try deleting "
                      "it (images are then not flagged as novel), or training again")
