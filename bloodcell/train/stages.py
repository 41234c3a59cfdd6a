"""Stages of fine-tuning: which part of the network learns, for how many epochs, at which peak learning rate.

Here the text of `--stages` becomes `Stage` objects; setting the layers' flags is `models.freezing`.
"""

import dataclasses

from bloodcell import spec
from bloodcell.errors import InputError

_EPOCHS = spec.Param("epochs", int, low=1, high=100_000, unit="epochs")
_LR = spec.Param("lr", float, low=1e-9, high=10.0, unit="learning rate at its peak")
_PERCENT = spec.Param("percent", float, low=0.0, high=100.0, unit="percent of the backbone's layers, from the top")

PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "head": (_EPOCHS, _LR),
    "top": (_PERCENT, _EPOCHS, _LR),
    "all": (_EPOCHS, _LR),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      scope: `head` (the backbone is frozen), `top` (its last `percent` of layers learn too) or `all`.
      percent: 0..100, the part of the backbone that learns.
      epochs: passes over the training set, at least 1.
      lr: the learning rate at the schedule's peak.
    """

    scope: str
    percent: float
    epochs: int
    lr: float

    def __str__(self) -> str:
        part = f"top {self.percent:g}%" if self.scope == "top" else self.scope
        plural = "s" if self.epochs > 1 else ""
        return f"{part}, {self.epochs} epoch{plural}, lr {self.lr:g}"


def parse(text: str) -> tuple[Stage, ...]:
    """Reads `"head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4)"`.

    Raises:
      InputError: no stage, an unknown scope, or a value out of range.
    """
    chain = spec.parse(text, what="stages")
    if not chain.terms:
        raise InputError("stages: expected at least one stage, received nothing, try \"all(epochs=5, lr=1e-3)\"")
    stages = []
    for term in chain.terms:
        values = spec.bind(term, spec.lookup(term, PARAMS, what="stages"), what="stages")
        if term.probability != 1.0:
            raise InputError(f"stages: expected no '@p', received '{term}'")
        percent = values.get("percent", 0.0 if term.name == "head" else 100.0)
        stages.append(Stage(term.name, percent, values["epochs"], values["lr"]))
    return tuple(stages)
