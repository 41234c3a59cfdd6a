"""The one little language of the command line: `op(arg, key=value)@p | op`.

A spec is a chain of terms joined by `|`. A term is a name with optional arguments and an optional gate `@p`
(applied with probability p). An argument is a Python literal or another chain, so policies nest:
`oneof(flip | rotate(30), cutout(0.5))@0.8`. The text is read by Python's own parser and only literals, names and
calls are accepted; nothing is ever evaluated.

What belongs here: reading, printing and binding specs. What a name means belongs to whoever registers it.
"""

import ast
import dataclasses
import io
import math
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Union

from bloodcell.errors import InputError, did_you_mean

Value = Union[None, bool, int, float, str, tuple, "Chain"]

MAX_LENGTH = 10_000  # characters; a longer spec is a mistake or an attack on the parser
MAX_DEPTH = 20  # nested calls
MAX_NAME = 60  # characters of an op or a key, so that an error that quotes it stays one readable line


@dataclasses.dataclass(frozen=True)
class Term:
    """One name with its arguments and the probability (0..1) that gates it."""

    name: str
    args: tuple[Value, ...] = ()
    kwargs: tuple[tuple[str, Value], ...] = ()
    probability: float = 1.0

    def __str__(self) -> str:
        parts = [_print(value) for value in self.args]
        parts += [f"{key}={_print(value)}" for key, value in self.kwargs]
        call = f"{self.name}({', '.join(parts)})" if parts else self.name
        return call if self.probability == 1.0 else f"{call}@{self.probability!r}"


@dataclasses.dataclass(frozen=True)
class Chain:
    """Terms applied left to right; `str(chain)` parses back to an equal chain."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return " | ".join(str(term) for term in self.terms)


def parse(text: str, *, what: str = "spec") -> Chain:
    """Reads a spec.

    Args:
      text: the spec; line breaks and spaces do not matter. Empty text is the empty chain.
      what: the flag's name, for the error's line.

    Raises:
      InputError: the text is no spec; the line quotes the part that is wrong.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"{what}: expected at most {MAX_LENGTH} characters, received {len(text)}")
    flat = " ".join(text.splitlines()).strip()
    if not flat:
        return Chain(())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python only warns of '\d' in a string or of 1if; here both are mistakes
            tree = ast.parse(flat, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, Warning) as error:
        where = getattr(error, "offset", None)
        near = f" near {flat[max(0, where - 12):where + 8]!r}" if where else ""
        raise InputError(f"{what}: expected 'op(arg, key=value) | op', received {shorten(flat)!r}; "
                         f"it cannot be read{near}") from None
    tokens = tokenize.generate_tokens(io.StringIO(flat).readline)
    if "#" in flat and any(token.type == tokenize.COMMENT for token in tokens):  # Python would drop what follows it
        raise InputError(f"{what}: expected no '#' outside quotes, received {shorten(flat)!r}; no comments")
    chain = _chain(tree, what, 0)
    if len(printed := str(chain)) > MAX_LENGTH:  # what is printed must be readable again
        raise InputError(f"{what}: expected at most {MAX_LENGTH} characters with spaces, received {len(printed)}")
    return chain


def _chain(node: ast.expr, what: str, depth: int) -> Chain:
    links: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        links.append(node.right)
        node = node.left
    links.append(node)
    terms: list[Term] = []
    for link in reversed(links):
        if isinstance(link, ast.BinOp) and isinstance(link.op, ast.BitOr):  # parentheses inside a chain
            terms.extend(_chain(link, what, depth + 1).terms)
        else:
            terms.append(_term(link, what, depth))
    return Chain(tuple(terms))


def _term(node: ast.expr, what: str, depth: int) -> Term:
    if depth > MAX_DEPTH:
        raise InputError(f"{what}: expected at most {MAX_DEPTH} nested calls, received more")
    probability = 1.0
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        gate = _literal(node.right)
        if isinstance(gate, bool) or not isinstance(gate, (int, float)) or not 0 <= gate <= 1:
            raise InputError(f"{what}: expected a probability 0..1 after '@', received {_source(node.right)!r}")
        probability, node = float(gate), node.left
    if isinstance(node, ast.Name):
        return Term(_name(node.id, what), probability=probability)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = _name(node.func.id, what)
        args = tuple(_value(arg, what, depth + 1) for arg in node.args)
        kwargs: list[tuple[str, Value]] = []
        for keyword in node.keywords:
            if keyword.arg is None:
                raise InputError(f"{what}: expected 'key=value' in {name}(...), received '**'")
            key = _name(keyword.arg, what)
            if key in dict(kwargs):
                raise InputError(f"{what}: {name}(...) received '{key}' twice")
            kwargs.append((key, _value(keyword.value, what, depth + 1)))
        return Term(name, args, tuple(kwargs), probability)
    raise InputError(f"{what}: expected 'op' or 'op(arg, key=value)', received {_source(node)!r}")


def _name(name: str, what: str) -> str:
    if len(name) > MAX_NAME:
        raise InputError(f"{what}: expected names of at most {MAX_NAME} characters, received {shorten(name)!r}")
    return name


def _source(node: ast.expr) -> str:
    """Returns what a node says, cut short."""
    try:
        return shorten(ast.unparse(node))
    except (RecursionError, ValueError):  # too deep, or a number of thousands of digits
        return "something too long to print"


def _value(node: ast.expr, what: str, depth: int) -> Value:
    literal = _literal(node)
    if literal is not _NOT_LITERAL:
        return literal
    return _chain(node, what, depth)


_NOT_LITERAL: Any = object()


def _literal(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NOT_LITERAL
    return _plain(value)


def _plain(value: Any) -> Any:
    """Literals a spec may hold: None, bool, int, finite float, str, and tuples of them (a list becomes a tuple)."""
    if isinstance(value, (list, tuple)):
        items = tuple(_plain(item) for item in value)
        return _NOT_LITERAL if any(item is _NOT_LITERAL for item in items) else items
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_LITERAL
    if isinstance(value, int) and value.bit_length() > 1024:  # beyond float's range, and Python may refuse to print it
        return _NOT_LITERAL
    return value if value is None or isinstance(value, (bool, int, float, str)) else _NOT_LITERAL


def _print(value: Value) -> str:
    return str(value) if isinstance(value, Chain) else repr(value)


def shorten(text: str) -> str:
    """Returns the text cut to 60 characters, for an error that quotes what the user wrote."""
    return text if len(text) <= 60 else text[:57] + "..."


REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter of a registered name: its kind, default, range and unit.

    Attributes:
      name: as written in a spec.
      kind: `float`, `int`, `bool`, `str`, `tuple` or `Chain`.
      default: the value where a spec is silent; `REQUIRED` where it must speak.
      low, high: inclusive range of a number; either order in a docstring, `low <= high` here.
      unit: for people ("degrees", "grey levels", "fraction of the side").
      choices: what a `str` may be.
      optional: whether `None` is a value.
    """

    name: str
    kind: type
    default: Any = REQUIRED
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False

    def range_text(self) -> str:
        """Returns the values it takes, as a person would write them."""
        if self.choices:
            return " or ".join(repr(choice) for choice in self.choices)
        if self.kind in (int, float) and (math.isfinite(self.low) or math.isfinite(self.high)):
            return f"{self.low:g}..{self.high:g}" + (f" {self.unit}" if self.unit else "")
        return {int: "a whole number", float: "a number", str: "a quoted text", bool: "True or False",
                tuple: "a tuple", Chain: "a spec"}[self.kind]


def bind(term: Term, params: Sequence[Param], *, what: str = "spec") -> dict[str, Any]:
    """Matches a term's arguments to its declared parameters.

    Args:
      term: what the user wrote.
      params: what the name takes, in positional order.
      what: the flag's name, for the error's line.

    Returns:
      A value for every parameter, numbers converted to the declared kind.

    Raises:
      InputError: too many arguments, an unknown or repeated key, a missing one, or a value of the wrong kind or
        out of range; the line names the term, the range and the nearest key.
    """
    call = f"{what}: {term.name}"
    if len(term.args) > len(params):
        raise InputError(f"{call} expected at most {len(params)} arguments "
                         f"({', '.join(param.name for param in params) or 'it takes none'}), received {len(term.args)}")
    given: dict[str, Value] = dict(zip([param.name for param in params], term.args, strict=False))
    known = {param.name for param in params}
    for key, value in term.kwargs:
        if key not in known:
            raise InputError(f"{call} has no parameter '{key}'; {did_you_mean(key, known)}")
        if key in given:
            raise InputError(f"{call} received '{key}' twice")
        given[key] = value
    bound = {}
    for param in params:
        if param.name in given:
            bound[param.name] = _checked(given[param.name], param, call)
        elif param.default is REQUIRED:
            raise InputError(f"{call} expected {param.name}={param.range_text()}, received nothing")
        else:
            bound[param.name] = param.default
    return bound


def _checked(value: Value, param: Param, call: str) -> Value:
    if value is None and param.optional:
        return None
    bare = f", try quotes: '{shorten(_print(value))}'" if param.kind is str and isinstance(value, Chain) else ""
    wrong = InputError(f"{call}({param.name}) expected {param.range_text()}, "
                       f"received {shorten(_print(value))}{bare}")
    if param.kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise wrong from None
    if param.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, param.kind) or (param.kind is int and isinstance(value, bool)):
        raise wrong
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not param.low <= value <= param.high:
        raise wrong
    if param.choices and value not in param.choices:
        raise wrong
    return value


def lookup(term: Term, registry: Mapping[str, Any], *, what: str = "spec") -> Any:
    """Returns the registry's entry for `term.name`, or raises InputError naming the nearest one."""
    if term.name not in registry:
        raise InputError(f"{what}: unknown name '{term.name}'; {did_you_mean(term.name, registry)}")
    return registry[term.name]


def only_term(chain: Chain, *, what: str) -> Term:
    """Returns the single ungated term of a chain, for flags that take exactly one, or raises InputError."""
    if len(chain.terms) != 1:
        raise InputError(f"{what}: expected one term, received {len(chain.terms)} in {shorten(str(chain))!r}")
    if chain.terms[0].probability != 1.0:
        raise InputError(f"{what}: expected no '@p' here, received {shorten(str(chain))!r}")
    return chain.terms[0]
