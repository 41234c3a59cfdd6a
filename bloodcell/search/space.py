"""The space of a search: `lr=log(1e-5, 1e-2), augment.m=int(2, 9), batch_size=choice(32, 64)`.

Here are its names, their ranges, and the points in them. What a name means in a `Config` is `places`' business, which
point is tried next is `sampling`'s.
"""

import dataclasses
import io
import itertools
import math
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bloodcell import spec
from bloodcell.errors import InputError

WHAT = "--search_space"
Value = bool | int | float | str | tuple | None
Point = dict[str, Value]  # a value for each name of a space

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_EXAMPLE = 'try "lr=log(1e-5, 1e-2), batch_size=choice(32, 64)"'
_CORNERS = 64  # so many corners at most are looked at one by one


@dataclasses.dataclass(frozen=True)
class Range:
    """Real numbers low..high, evenly or (log) by their logarithm; four digits say enough of them."""

    name: str
    low: float
    high: float
    log: bool

    params: ClassVar = {"log": (spec.Param("low", float, low=1e-300), spec.Param("high", float, low=1e-300)),
                        "uniform": (spec.Param("low", float), spec.Param("high", float))}
    count: ClassVar[float] = math.inf

    def __str__(self) -> str:
        return f"{self.name}={'log' if self.log else 'uniform'}({self.low!r}, {self.high!r})"

    def at(self, u: float) -> float:
        """Returns the number at `u`, 0..1, of the way from low to high."""
        if self.log:
            return self.rounded(math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))))
        return self.rounded(self.low + u * (self.high - self.low))

    def unit(self, value: Any) -> float:
        """Returns where a value is, 0..1: the inverse of `at`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def rounded(self, value: float) -> float:
        """Returns the number with four digits, or more where the range is narrow, so that people can read it."""
        if self.log:
            digits = 3 + max(0, math.ceil(-math.log10(math.log(self.high / self.low))))
            near = float(f"{value:.{min(digits, 16)}e}")
        else:
            near = round(value, 3 - math.floor(math.log10(self.high - self.low)))
        return min(max(near, self.low), self.high)

    def ends(self) -> tuple[Value, ...]:
        """Returns the values that must be possible for all of the range to be."""
        return self.low, self.high

    def grid(self, points: int) -> tuple[Value, ...]:
        """Returns `points` values, low and high among them, in equal steps."""
        return tuple(dict.fromkeys(self.at(step / (points - 1)) for step in range(points)))


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers low, low + step, ... high."""

    name: str
    low: int
    high: int
    step: int

    params: ClassVar = {"int": (spec.Param("low", int, low=-2**31, high=2**31 - 1),
                                spec.Param("high", int, low=-2**31, high=2**31 - 1),
                                spec.Param("step", int, 1, 1, 2**31 - 1))}

    @property
    def count(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def __str__(self) -> str:
        step = f", step={self.step}" if self.step > 1 else ""
        return f"{self.name}=int({self.low}, {self.high}{step})"

    def at(self, u: float) -> int:
        """Returns the number whose equal share of 0..1 holds `u`."""
        return self.low + self.step * min(int(u * self.count), self.count - 1)

    def unit(self, value: Any) -> float:
        """Returns the middle of a value's share of 0..1."""
        return ((value - self.low) / self.step + 0.5) / self.count

    def ends(self) -> tuple[Value, ...]:
        """See `Range.ends`."""
        return self.low, self.high

    def grid(self, points: int) -> tuple[Value, ...]:
        """Returns every value, or `points` of them, low and high among them, where there are more."""
        places = range(self.count) if self.count <= points else [
            round(place * (self.count - 1) / (points - 1)) for place in range(points)]
        return tuple(self.low + self.step * place for place in places)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, without any order."""

    name: str
    options: tuple[Value, ...]

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.options)

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands for each option; see `label`."""
        return tuple(map(label, self.options))

    def __str__(self) -> str:
        return f"{self.name}=choice({', '.join(map(repr, self.options))})"

    def at(self, u: float) -> Value:
        """Returns the option whose equal share of 0..1 holds `u`."""
        return self.options[min(int(u * self.count), self.count - 1)]

    def unit(self, value: Any) -> float:
        """Returns the middle of an option's share of 0..1."""
        return (self.labels.index(label(value)) + 0.5) / self.count  # by label: 1 equals True

    def ends(self) -> tuple[Value, ...]:
        """Returns every option: one tells nothing of another."""
        return self.options

    def grid(self, points: int) -> tuple[Value, ...]:
        """Returns every option."""
        return self.options


def label(value: Value) -> str:
    """Returns what stands for a value in the study and in tables: a text itself, anything else as it is written."""
    return value if isinstance(value, str) else repr(value)


Dimension = Range | Whole | Choice

KINDS = {
    "log": "real numbers low..high, low above 0, by their logarithm: learning rates, decays.",
    "uniform": "real numbers low..high.",
    "int": "whole numbers low, low + step, ... high.",
    "choice": "one of the values: numbers, quoted texts, and specs such as adamw(weight_decay=1e-3).",
}


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched, in the order it was written; `parse(str(space))` is the space again."""

    dimensions: tuple[Dimension, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.dimensions))

    @property
    def names(self) -> tuple[str, ...]:
        """The names, as written."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def size(self) -> float:
        """The number of points; infinite where there are real numbers."""
        return math.prod(dimension.count for dimension in self.dimensions)

    def at(self, units: Mapping[str, float]) -> Point:
        """Returns the point at a place of the unit cube."""
        return {dimension.name: dimension.at(units[dimension.name]) for dimension in self.dimensions}

    def grid(self, points: int) -> Iterator[Point]:
        """Yields the product of all dimensions' grids, the last name fastest."""
        return self._product([dimension.grid(points) for dimension in self.dimensions])

    def grid_size(self, points: int) -> int:
        """Returns how many points `grid` yields."""
        return math.prod(len(dimension.grid(points)) for dimension in self.dimensions)

    def corners(self) -> list[Point]:
        """Returns points that show whether the space is possible: all corners, or where those are many, some.

        Some are: all lows, all highs, and from the lows each end of one dimension.
        """
        ends = [dimension.ends() for dimension in self.dimensions]
        if math.prod(map(len, ends)) <= _CORNERS:
            return list(self._product(ends))
        lows = {name: values[0] for name, values in zip(self.names, ends, strict=True)}
        highs = {name: values[-1] for name, values in zip(self.names, ends, strict=True)}
        return [lows, highs, *({**lows, name: value} for name, values in zip(self.names, ends, strict=True)
                               for value in values[1:])]

    def _product(self, values: list[tuple[Value, ...]]) -> Iterator[Point]:
        return (dict(zip(self.names, combination, strict=True)) for combination in itertools.product(*values))


def parse(text: str) -> Space:
    """Reads a space.

    Raises:
      InputError: text that is no space, an unknown kind, an empty range, or a name that stands there twice.
    """
    dimensions: list[Dimension] = []
    for item in _items(text):
        name, equals, rest = (part.strip() for part in item.partition("="))
        if not equals or not _NAME.fullmatch(name) or len(name) > spec.MAX_NAME:
            raise InputError(f"{WHAT}: expected NAME=kind(...), received {spec.shorten(item)!r}; {_EXAMPLE}")
        if any(name == dimension.name for dimension in dimensions):
            raise InputError(f"{WHAT}: expected each name once, received {name!r} twice")
        dimensions.append(_dimension(name, rest))
    if not dimensions:
        raise InputError(f"{WHAT}: expected NAME=kind(...), received nothing; {_EXAMPLE}")
    return Space(tuple(dimensions))


def described() -> str:
    """Returns the kinds, for `--help`."""
    params: dict[str, tuple[spec.Param, ...]] = {**Range.params, **Whole.params}
    written = {name: ", ".join(param.name + ("" if param.default is spec.REQUIRED else f"={param.default}")
                               for param in params[name]) if name in params else "value, value, ..." for name in KINDS}
    return "".join(f"  NAME={name}({written[name]})\n      {text}\n" for name, text in KINDS.items())


def _items(text: str) -> list[str]:
    """Splits at the commas that stand in no brackets and no quotes. A name has dots, so this is no call of Python."""
    flat = " ".join(text.splitlines()).strip()
    if len(flat) > spec.MAX_LENGTH:
        raise InputError(f"{WHAT}: expected at most {spec.MAX_LENGTH} characters, received {len(flat)}")
    depth, begin, items = 0, 0, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(flat).readline):
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
                if token.string == "," and depth == 0:
                    items.append(flat[begin:token.start[1]].strip())
                    begin = token.end[1]
    except (tokenize.TokenError, SyntaxError):  # an open bracket or quote
        raise InputError(f"{WHAT}: expected closed brackets and quotes, received {spec.shorten(flat)!r}") from None
    last = flat[begin:].strip()
    return [*items, last] if last else items


def _dimension(name: str, text: str) -> Dimension:
    what = f"{WHAT}: {name}"
    term = spec.only_term(spec.parse(text, what=what), what=what)
    spec.lookup(term, KINDS, what=what)
    if term.name == "choice":
        if term.kwargs or not term.args:
            raise InputError(f"{what}: expected choice(value, value, ...), received {spec.shorten(str(term))!r}")
        # A spec without quotes stands for its text.
        options = tuple(str(value) if isinstance(value, spec.Chain) else value for value in term.args)
        choice = Choice(name, options)
        twice = next((label for label in choice.labels if choice.labels.count(label) > 1), None)
        if twice is not None:
            raise InputError(f"{what}: choice expected different values, received {spec.shorten(twice)!r} twice")
        return choice
    values = spec.bind(term, {**Range.params, **Whole.params}[term.name], what=what)
    low, high = values["low"], values["high"]
    if not low < high or not math.isfinite(high - low):
        raise InputError(f"{what}: {term.name} expected low < high, received {low!r}, {high!r}")
    if term.name == "int":
        return Whole(name, low, low + (high - low) // values["step"] * values["step"], values["step"])
    return Range(name, low, high, log=term.name == "log")
