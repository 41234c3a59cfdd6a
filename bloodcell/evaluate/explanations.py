"""What is shown of a trained model: cells with heat maps, a map of features, nearest training images.

Plain data. Making it belongs to `commands.explaining`, drawing it to `explanation_sheets`.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """K images of a set, and what a classifier makes of them.

    Attributes:
      rows: int64 [K], their positions in the set.
      ids: int64 [K].
      files: K names.
      images: uint8 [K,S,S,3], as the (first) network is shown them.
      heat: float32 [K,S,S] in 0..1, Grad-CAM for the class `predicted`.
      heat_of_label: the same for the class `labels`; where the two are one class, equal to `heat`.
      labels: int64 [K].
      predicted: int64 [K].
      probabilities: float32 [K,C].
    """

    rows: np.ndarray
    ids: np.ndarray
    files: tuple[str, ...]
    images: np.ndarray
    heat: np.ndarray
    heat_of_label: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def confidence(self) -> np.ndarray:
        """float32 [K], the probability of the predicted class."""
        return self.probabilities[np.arange(len(self)), self.predicted]

    def take(self, which: np.ndarray) -> "Cells":
        """Returns the cells at `which`, int64 [J], in that order."""
        return Cells(self.rows[which], self.ids[which], tuple(self.files[i] for i in which), self.images[which],
                     self.heat[which], self.heat_of_label[which], self.labels[which], self.predicted[which],
                     self.probabilities[which])

    def entries(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns JSON values of each cell, pictures left out; `names` are those of the classes."""
        return [{"row": int(self.rows[i]), "id": int(self.ids[i]), "file": self.files[i],
                 "label": names[self.labels[i]], "predicted": names[self.predicted[i]],
                 "confidence": _rounded(self.confidence[i]),
                 "probabilities": [_rounded(p) for p in self.probabilities[i]]}
                for i in range(len(self))]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMap:
    """M images of a set laid out by their features.

    Attributes:
      rows: int64 [M], positions in the set, ascending.
      ids: int64 [M].
      files: M names.
      points: float32 [M,2], of t-SNE.
      components: float32 [M,P], the features' first principal components.
      thumbnails: uint8 [M,t,t,3].
      labels: int64 [M].
      predicted: int64 [M].
      confidence: float32 [M], the probability of the predicted class.
    """

    rows: np.ndarray
    ids: np.ndarray
    files: tuple[str, ...]
    points: np.ndarray
    components: np.ndarray
    thumbnails: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def entries(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns JSON values of each image; `names` are those of the classes."""
        return [{"row": int(self.rows[i]), "id": int(self.ids[i]), "file": self.files[i],
                 "label": names[self.labels[i]], "predicted": names[self.predicted[i]],
                 "x": round(float(self.points[i, 0]), 3), "y": round(float(self.points[i, 1]), 3)}
                for i in range(len(self))]


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """Q cells, and of each the k training images whose features are nearest, the nearest first.

    Attributes:
      cells: the Q cells.
      images: uint8 [Q,k,S,S,3], as the (first) network is shown them.
      ids: int64 [Q,k], in the training data.
      files: Q times k names.
      labels: int64 [Q,k].
      similarity: float32 [Q,k], cosine of the features, -1..1.
      searched: how many training images there were.
      origin: whose they are.
    """

    cells: Cells
    images: np.ndarray
    ids: np.ndarray
    files: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    similarity: np.ndarray
    searched: int
    origin: str

    def entries(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns JSON values of each cell, `nearest` among them; `names` are those of the classes."""
        return [{**entry, "nearest": [{"id": int(self.ids[q, i]), "file": self.files[q][i],
                                       "label": names[self.labels[q, i]], "similarity": _rounded(self.similarity[q, i])}
                                      for i in range(self.ids.shape[1])]}
                for q, entry in enumerate(self.cells.entries(names))]


@dataclasses.dataclass(frozen=True, eq=False)
class Explanations:
    """All that was asked for; what was not, or could not be had, is None.

    Attributes:
      origin: whose images are explained.
      class_names: C names.
      counts: int64 [C], images of each class in the set.
      wrong: int64 [C], how many of these the classifier takes for another class.
      gradcam: of each class first cells that are right, then ones that are wrong.
      tsne: the map.
      mistakes: the most confident ones, the most confident first.
      neighbours: of a cell of each class that is right, and of one that is wrong.
      coarseness: a sentence that says how coarse the heat maps are.
      remarks: sentences about what could not be done.
    """

    origin: str
    class_names: tuple[str, ...]
    counts: np.ndarray
    wrong: np.ndarray
    gradcam: Cells | None
    tsne: FeatureMap | None
    mistakes: Cells | None
    neighbours: Neighbours | None
    coarseness: str
    remarks: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """Returns what the pictures show as JSON values."""
        def entries(part: Cells | FeatureMap | Neighbours | None) -> list[dict[str, Any]] | None:
            return None if part is None else part.entries(self.class_names)

        return {"origin": self.origin, "images": int(self.counts.sum()), "class_names": list(self.class_names),
                "counts": self.counts.tolist(), "wrong": self.wrong.tolist(), "coarseness": self.coarseness,
                "remarks": list(self.remarks), "gradcam": entries(self.gradcam), "mistakes": entries(self.mistakes),
                "neighbours": entries(self.neighbours), "tsne": entries(self.tsne)}


def _rounded(value: float) -> float:
    return round(float(value), 6)
