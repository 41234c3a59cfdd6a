"""Where the names of a space are in a `Config`: a flag, `FLAG.PARAM`, `FLAG.OP.PARAM`, `FLAG.OP.N.PARAM`, or `lr`.

`FLAG.PARAM` is a parameter of the one op of a flag's spec that has it, `FLAG.OP.PARAM` of the one op of that name, with
N, from 1, of the Nth of them; `p` is the probability of an op of a policy. `lr` is the largest learning rate of
`--stages`; where stages have several, they keep their ratios.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bloodcell import augment, config, spec
from bloodcell.config import Config
from bloodcell.data import balance, segment
from bloodcell.errors import InputError, did_you_mean
from bloodcell.models import heads
from bloodcell.search import methods, space
from bloodcell.search.space import Point, Value
from bloodcell.train import losses, optimizers, schedules, stages

LEARNING_RATE = "lr"

# The flags whose values are specs, and what their names take.
_POLICY: Mapping[str, Any] = {**augment.COMBINATORS, **augment.REGISTRY}
SPECS: dict[str, Mapping[str, Any]] = {
    "augment": _POLICY, "mix": {**augment.COMBINATORS, **augment.MIXES}, "stages": stages.SCOPES,
    "optimizer": optimizers.OPTIMIZERS, "schedule": schedules.SCHEDULES, "loss": losses.LOSSES,
    "balance": balance.BALANCES, "head": heads.OPERATIONS, "segment": segment.SEGMENTERS}
_GATED = ("augment", "mix")  # where `op@p` has a meaning
GATE = "p"

# The flags that decide what is learned. Others say what is measured (one trial's figure must mean what another's does),
# where it runs and where it is written.
FLAGS = ("model", "weights", "head", "stages", "augment", "mix", "optimizer", "schedule", "loss", "balance",
         "batch_size", "early_stopping", "segment", "image_size")

_OWN = ("mode", "search", "search_space", "search_pruning", "search_workers")


@dataclasses.dataclass(frozen=True)
class _Place:
    """A parameter of a spec: of the `number`th term, counted as `_terms` yields them."""

    name: str
    number: int
    param: str


def as_training(settings: Config) -> Config:
    """Returns the flags of a training that does what a search's flags say, without the search."""
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)
                                if field.name in _OWN}
    return dataclasses.replace(settings, **defaults)


def apply(settings: Config, point: Point) -> Config:
    """Returns the flags with a point's values in them: whole flags first, then what is inside of specs, in order.

    Raises:
      InputError: a name that is nowhere or in several places, or a value that its flag does not take.
    """
    flags = {name: value for name, value in point.items() if name in FLAGS}
    changed = dataclasses.replace(settings, **{name: _flag_value(name, value) for name, value in flags.items()})
    for name, value in point.items():
        if name in flags:
            continue
        flag = "stages" if name == LEARNING_RATE else name.partition(".")[0]
        if flag not in SPECS or (name != LEARNING_RATE and "." not in name):
            raise _unknown(name, changed)
        chain = spec.parse(getattr(changed, flag), what=flag)
        chain = _with_learning_rate(chain, value) if name == LEARNING_RATE else _with(chain, flag, name, value)
        text: dict[str, Any] = {flag: str(chain)}
        changed = dataclasses.replace(changed, **text)
    return changed


def validate(settings: Config) -> None:
    """Checks a search's flags: its specs, and that a training can have the values at the ends of every range.

    Raises:
      InputError: something that cannot be; the line says at which values.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--mode=search expected Optuna, received an installation without it; "
                         "try pip install 'bloodcell[search]'")
    method = methods.parse(settings.search)
    searched = space.parse(settings.search_space)
    if method.folds is not None and (settings.split or settings.val_data):
        given = f"--split={settings.split}" if settings.split else f"--val_data={settings.val_data}"
        raise InputError(f"--search: folds={method.folds} expected to divide --data itself, received {given} too; "
                         "try leaving one out")
    base = as_training(settings)
    for point in searched.corners():
        wrong = _refused(base, point)
        if wrong and wrong != _refused(base, {}):
            said = ", ".join(f"{name}={spec.shorten(str(value))}" for name, value in point.items())
            raise InputError(wrong if wrong.startswith(space.WHAT) else f"{space.WHAT}: with {said}: {wrong}")
        if wrong:  # whatever is searched
            raise InputError(wrong)


def _refused(base: Config, point: Point) -> str:
    """Returns why no training can have a point's values, "" where one can."""
    try:
        config.validate(apply(base, point))
    except InputError as error:
        return " ".join(str(error).split())
    return ""


def _flag_value(name: str, value: Value) -> Any:
    """Returns a whole flag's value, read as the command line's are."""
    parsed = config.parse(["", f"--{name}={value}"])
    assert parsed is not None  # only --help is None
    return getattr(parsed, name)


def _with_learning_rate(chain: spec.Chain, value: Value) -> spec.Chain:
    """Returns the stages with `value` as their largest lr, the others in proportion."""
    rates = {number: _read(term, stages.SCOPES, LEARNING_RATE) for number, term in enumerate(_terms(chain))}
    given = {number: rate for number, rate in rates.items()
             if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0}
    if not given or isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{LEARNING_RATE}: expected a number, and --stages whose stages have one, received {value!r} "
                         f"for --stages={spec.shorten(str(chain))!r}")
    largest = max(given.values())
    for number, rate in given.items():
        own = float(value) if rate == largest else float(f"{value * rate / largest:.6g}")
        chain = _edited(chain, _Place("", number, LEARNING_RATE), own, "stages", itertools.count())
    return chain


def _with(chain: spec.Chain, flag: str, name: str, value: Value) -> spec.Chain:
    """Returns a chain with the value in the one place that a name means."""
    op, number, param = _parts(name)
    places = _places(chain, flag)
    found = [place for place in places if place.param == param and op in ("", place.name.split(".")[1])]
    if number:
        found = found[number - 1:number]
    if not found:
        known = {short for place in places for short in (place.name, f"{flag}.{place.param}")}
        raise InputError(f"{space.WHAT}: {name}: expected a parameter of --{flag}={spec.shorten(str(chain))!r}; "
                         f"{did_you_mean(name, known) if known else 'it has none'}")
    if len(found) > 1:
        raise InputError(f"{space.WHAT}: {name} expected one place in --{flag}, received "
                         f"{', '.join(place.name for place in found)}; try one of these")
    return _edited(chain, found[0], value, flag, itertools.count())


def _parts(name: str) -> tuple[str, int, str]:
    """Splits FLAG.PARAM, FLAG.OP.PARAM or FLAG.OP.N.PARAM into op ("": any), number (0: the only one) and param."""
    parts = name.split(".")[1:]
    if len(parts) == 3 and parts[1].isdecimal() and int(parts[1]):
        return parts[0], int(parts[1]), parts[2]
    if len(parts) > 2:
        raise InputError(f"{space.WHAT}: expected FLAG.PARAM, FLAG.OP.PARAM or FLAG.OP.N.PARAM, received {name!r}")
    return (parts[0] if len(parts) == 2 else ""), 0, parts[-1]


def _places(chain: spec.Chain, flag: str) -> list[_Place]:
    """Returns every parameter of a spec, under the shortest name that says the op."""
    terms = list(_terms(chain))
    names = [term.name for term in terms]
    found = []
    for number, term in enumerate(terms):
        params = [param.name for param in _params(flag, term.name)]
        if flag in _GATED and GATE not in params:
            params.append(GATE)
        nth = f".{names[:number + 1].count(term.name)}" if names.count(term.name) > 1 else ""
        found += [_Place(f"{flag}.{term.name}{nth}.{param}", number, param) for param in params]
    return found


def _params(flag: str, op: str) -> Sequence[spec.Param]:
    return SPECS[flag][op].params if op in SPECS[flag] else ()


def _terms(chain: spec.Chain) -> Iterator[spec.Term]:
    """Yields all terms, each before those inside of it."""
    for term in chain.terms:
        yield term
        for value in (*term.args, *(value for _, value in term.kwargs)):
            if isinstance(value, spec.Chain):
                yield from _terms(value)


def _edited(chain: spec.Chain, place: _Place, value: Value, flag: str, numbers: Iterator[int]) -> spec.Chain:
    """Returns a chain with a value in one place; `numbers` counts the terms as `_terms` yields them."""

    def inner(each: spec.Value) -> spec.Value:
        return _edited(each, place, value, flag, numbers) if isinstance(each, spec.Chain) else each

    terms = []
    for term in chain.terms:
        here = next(numbers) == place.number
        term = dataclasses.replace(term, args=tuple(map(inner, term.args)),  # noqa: PLW2901 (the same term, edited)
                                   kwargs=tuple((key, inner(each)) for key, each in term.kwargs))
        terms.append(_written(term, _params(flag, term.name), place.param, value) if here else term)
    return spec.Chain(tuple(terms))


def _written(term: spec.Term, params: Sequence[spec.Param], name: str, value: Value) -> spec.Term:
    """Returns a term with a parameter's value where it stands already, or else added to it."""
    names = [param.name for param in params]
    if name not in names:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{space.WHAT}: {term.name}: expected a probability 0..1 for {GATE}, received {value!r}")
        return dataclasses.replace(term, probability=float(value))
    position = names.index(name)
    if position < len(term.args):
        return dataclasses.replace(term, args=(*term.args[:position], value, *term.args[position + 1:]))
    return dataclasses.replace(term, kwargs=tuple({**dict(term.kwargs), name: value}.items()))


def _read(term: spec.Term, scopes: Mapping[str, Any], name: str) -> spec.Value:
    """Returns what a term says of a parameter; None where it is silent or unknown."""
    names = [param.name for param in scopes[term.name].params] if term.name in scopes else []
    given = {**dict(zip(names, term.args, strict=False)), **dict(term.kwargs)}
    return given.get(name)


def _unknown(name: str, settings: Config) -> InputError:
    """Says why nothing is searched under a name, and which is near."""
    first = name.partition(".")[0]
    every = [field.name for field in dataclasses.fields(Config) if field.metadata]
    if first in every and first not in FLAGS:
        return InputError(f"{space.WHAT}: expected a flag that decides what is learned, received {name!r}, which says "
                          f"what is measured, where or how it runs; known: {', '.join(FLAGS)}, {LEARNING_RATE}")
    if first in FLAGS:
        return InputError(f"{space.WHAT}: {name}: expected a parameter of a spec, received one of --{first}, which is "
                          f"none; try {first} itself")
    places = [place.name for flag in SPECS for place in _places(spec.parse(getattr(settings, flag), what=flag), flag)]
    return InputError(f"{space.WHAT}: unknown flag '{name}'; "
                      f"{_nearest(name, (*FLAGS, LEARNING_RATE), places)}")


def _nearest(name: str, flags: Sequence[str], places: Sequence[str]) -> str:
    same = [place.split(".") for place in places if place.rpartition(".")[2] == name]
    if same:  # FLAG.PARAM where that is one place
        of_flag = [parts for parts in same if parts[0] == same[0][0]]
        return f"did you mean '{'.'.join(same[0]) if len(of_flag) > 1 else f'{same[0][0]}.{name}'}'?"
    near = did_you_mean(name, (*flags, *places))
    return near if near.startswith("did") else did_you_mean(name, flags)
