"""Stages of fine-tuning: which part of the network learns, for how many epochs, how fast, and on which images.

Here the text of `--stages` becomes `Stage` objects; setting the layers' flags is `models.freezing`.
"""

import dataclasses

from bloodcell import augment, spec
from bloodcell.errors import InputError

_EPOCHS = spec.Param("epochs", int, low=1, high=100_000, unit="epochs")
_LR = spec.Param("lr", float, low=1e-9, high=10.0, unit="learning rate at its peak")
_PERCENT = spec.Param("percent", float, low=0.0, high=100.0, unit="percent of the backbone's layers, from the top")
_AUGMENT = spec.Param("augment", str, None, optional=True)
_MIX = spec.Param("mix", str, None, optional=True)

PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "head": (_EPOCHS, _LR, _AUGMENT, _MIX),
    "top": (_PERCENT, _EPOCHS, _LR, _AUGMENT, _MIX),
    "all": (_EPOCHS, _LR, _AUGMENT, _MIX),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      scope: `head` (the backbone is frozen), `top` (its last `percent` of layers learn too) or `all`.
      percent: 0..100, the part of the backbone that learns.
      epochs: passes over the training set, at least 1.
      lr: the learning rate at the schedule's peak.
      augment: the policy's spec, empty for none; None for the flag's.
      mix: what mixes images, in the same way.
    """

    scope: str
    percent: float
    epochs: int
    lr: float
    augment: str | None = None
    mix: str | None = None

    def __str__(self) -> str:
        part = f"top {self.percent:g}%" if self.scope == "top" else self.scope
        plural = "s" if self.epochs > 1 else ""
        own = "".join(f", {name} {text or 'nothing'}" for name, text in (("augment", self.augment), ("mix", self.mix))
                      if text is not None)
        return f"{part}, {self.epochs} epoch{plural}, lr {self.lr:g}{own}"


def parse(text: str) -> tuple[Stage, ...]:
    """Reads `"head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4, augment='flip | rotate(180)')"`.

    Raises:
      InputError: no stage, an unknown scope, a value out of range, or a policy that cannot be read.
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
        if values["augment"] is not None:
            augment.parse(values["augment"], what=f"stages: {term.name}: augment")
        if values["mix"] is not None:
            augment.parse_mix(values["mix"], what=f"stages: {term.name}: mix")
        stages.append(Stage(term.name, percent, values["epochs"], values["lr"], values["augment"], values["mix"]))
    return tuple(stages)


def policies(stage: Stage, augment_flag: str, mix_flag: str) -> tuple[str, str]:
    """Returns the specs of a stage's policy and of its mixing: its own, or the flags' where it has none."""
    return (augment_flag if stage.augment is None else stage.augment, mix_flag if stage.mix is None else stage.mix)


def need_policies(plan: tuple[Stage, ...], augment_flag: str) -> None:
    """Raises InputError where a stage augments nothing, so that a loss that compares views would compare equal ones."""
    for stage in plan:
        if not policies(stage, augment_flag, "")[0].strip():
            raise InputError("--loss=jsd expected a policy in every stage, to compare views of an image, received "
                             f"none in '{stage}', try --augment='flip | rotate(180)', or --loss=cross_entropy")
