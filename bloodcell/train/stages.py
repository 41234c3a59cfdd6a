"""Stages of fine-tuning: which part of the network learns, for how long, how fast, by which rules and on which images.

Here the text of `--stages` becomes `Stage` objects; setting the layers' flags is `models.freezing`.
"""

import dataclasses
from typing import Any

from bloodcell import augment, spec
from bloodcell.config import Config
from bloodcell.errors import InputError
from bloodcell.train import optimizers, schedules

_TIME = (
    spec.Param("epochs", int, low=1, high=100_000, unit="epochs"),
    spec.Param("lr", float, low=1e-9, high=10.0, unit="learning rate at its peak"),
)
_OWN = (
    spec.Param("augment", str, None, optional=True),
    spec.Param("mix", str, None, optional=True),
    spec.Param("optimizer", str, None, optional=True),
    spec.Param("schedule", str, None, optional=True),
    spec.Param("batch_size", int, None, 1, 65536, "images", optional=True),
    spec.Param("accumulate", int, 1, 1, 1024, "parts of a batch, whose gradients are summed"),
)
_LAYERS = (
    spec.Param("convs_only", bool, False),
    spec.Param("freeze_bn", bool, False),
    spec.Param("lr_decay", float, 1.0, 0.01, 1.0, "rate of a resolution's layers over that of the next smaller one's"),
)


@dataclasses.dataclass(frozen=True)
class Scope:
    """One name of a stages spec: what it takes, and what learns."""

    params: tuple[spec.Param, ...]
    summary: str


SCOPES = {
    "head": Scope((*_TIME, *_OWN), "The head alone."),
    "top": Scope((spec.Param("percent", float, None, 0.0, 100.0, "percent of the backbone's layers", optional=True),
                  *_TIME, spec.Param("layers", int, None, 1, 100_000, "layers of the backbone", optional=True),
                  *_OWN, *_LAYERS),
                 "The head and the backbone's last layers: a percentage or a number of them."),
    "from_layer": Scope((spec.Param("first", int, low=0, high=100_000, unit="layers of the backbone before it"),
                         *_TIME, *_OWN, *_LAYERS),
                        "The head and the backbone's layers from that number on, counted from 0 at the image."),
    "all": Scope((*_TIME, *_OWN, *_LAYERS), (
        "Everything. augment, mix, optimizer, schedule and batch_size take the place of the flags of these names; "
        "convs_only: of the backbone only convolutions learn; freeze_bn: its batch normalisation stays as it is.")),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage; what is None is as the flag of that name says.

    Attributes:
      scope: a name of `SCOPES`.
      epochs: passes over the training set, at least 1.
      lr: the learning rate at the schedule's peak.
      percent: 0..100, of a `top`; None where it counts layers.
      layers: of a `top`, how many; None where it is a percentage.
      first: of a `from_layer`, the number of the backbone's first layer that learns.
      convs_only: of the backbone only convolutions learn.
      freeze_bn: the backbone's batch normalisation keeps its statistics, scales and offsets.
      lr_decay: 0..1; see `freezing.learning_rate_factors`.
      augment, mix, optimizer, schedule: specs of the stage's own; empty for none, where that can be.
      batch_size: images a step.
      accumulate: parts of a replica's batch that go through the network one after the other, for want of memory; the
        step is that of the whole batch, but for batch normalisation, which sees a part.
    """

    scope: str
    epochs: int
    lr: float
    percent: float | None = None
    layers: int | None = None
    first: int | None = None
    convs_only: bool = False
    freeze_bn: bool = False
    lr_decay: float = 1.0
    augment: str | None = None
    mix: str | None = None
    optimizer: str | None = None
    schedule: str | None = None
    batch_size: int | None = None
    accumulate: int = 1

    def __str__(self) -> str:
        plural = "s" if self.epochs > 1 else ""
        said = [self.part, f"{self.epochs} epoch{plural}", f"lr {self.lr:g}"]
        said += [words for words, there in (
            ("convolutions only", self.convs_only), ("batch norm frozen", self.freeze_bn),
            (f"lr_decay {self.lr_decay:g}", self.lr_decay != 1.0),
            (f"batches of {self.batch_size}", self.batch_size is not None),
            (f"in {self.accumulate} parts", self.accumulate > 1)) if there]
        own = {"optimizer": self.optimizer, "schedule": self.schedule, "augment": self.augment, "mix": self.mix}
        return ", ".join(said + [f"{name} {text or 'nothing'}" for name, text in own.items() if text is not None])

    @property
    def part(self) -> str:
        """What learns, in a word or two."""
        if self.scope == "top":
            return f"top {self.percent:g}%" if self.percent is not None else f"top {self.layers} layers"
        return f"from layer {self.first}" if self.scope == "from_layer" else self.scope

    def freezing(self) -> dict[str, Any]:
        """Returns the keyword arguments for `models.freezing.apply`."""
        return {"scope": self.scope, "percent": 100.0 if self.percent is None else self.percent, "layers": self.layers,
                "first": self.first, "convs_only": self.convs_only, "freeze_bn": self.freeze_bn}

    def rules(self, config: Config) -> "Rules":
        """Returns what the stage trains by: its own where it has them, else the flags'."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Rules)}
        return Rules(**{name: getattr(config, name) if value is None else value for name, value in own.items()})


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a stage trains by, each as the flag of that name says it."""

    augment: str
    mix: str
    optimizer: str
    schedule: str
    batch_size: int


def parse(text: str) -> tuple[Stage, ...]:
    """Reads `"head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4, augment='flip | rotate(180)')"`.

    Raises:
      InputError: no stage, an unknown scope, a value out of range, or a spec of its own that cannot be read.
    """
    chain = spec.parse(text, what="stages")
    if not chain.terms:
        raise InputError("stages: expected at least one stage, received nothing, try \"all(epochs=5, lr=1e-3)\"")
    return tuple(_stage(term) for term in chain.terms)


def _stage(term: spec.Term) -> Stage:
    values = spec.bind(term, spec.lookup(term, SCOPES, what="stages").params, what="stages")
    if term.probability != 1.0:
        raise InputError(f"stages: expected no '@p', received '{spec.shorten(str(term))}'")
    if term.name == "top" and (values["percent"] is None) == (values["layers"] is None):
        raise InputError("stages: top expected percent=0..100 or layers=N, received "
                         f"{'neither' if values['percent'] is None else 'both'}, try top(percent=80, ...)")
    readers: dict[str, Any] = {"augment": augment.parse, "mix": augment.parse_mix, "optimizer": optimizers.parse,
                               "schedule": schedules.parse}
    for name, read in readers.items():
        if values[name] is not None:
            try:
                read(values[name])
            except InputError as error:
                said = str(error).partition(": ")
                raise InputError(f"stages: {term.name}: {name}: {said[2] or said[0]}") from None
    return Stage(term.name, **values)


def need_policies(plan: tuple[Stage, ...], augment_flag: str) -> None:
    """Raises InputError where a stage augments nothing, so that a loss that compares views would compare equal ones."""
    for stage in plan:
        if not (augment_flag if stage.augment is None else stage.augment).strip():
            raise InputError("--loss=jsd expected a policy in every stage, to compare views of an image, received "
                             f"none in '{stage}', try --augment='flip | rotate(180)', or --loss=cross_entropy")
