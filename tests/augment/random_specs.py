"""Random policies as text, made by reflection over the registry and the combinators; and ways to spoil them.

A new op or combinator is covered from the moment it is registered. What no single parameter's range can say (that
`min` must not exceed `max`) stands here a second time, in words of the tests.
"""

import math

from hypothesis import strategies as st

from bloodcell import augment
from bloodcell.spec import Param

OPS = sorted(augment.REGISTRY)
COMBINATORS = sorted(augment.COMBINATORS)
_PARAMS = {**{name: op.params for name, op in augment.REGISTRY.items()},
           **{name: combinator.params for name, combinator in augment.COMBINATORS.items()}}
_WITH_PARAMS = [name for name, params in _PARAMS.items() if params]
_WITH_NUMBERS = [name for name, params in _PARAMS.items() if any(param.kind in (int, float) for param in params)]
_ORDERED = (("d_min", "d_max"), ("min", "max"))
_SPACES = ("", " ", "\n", "\t ", " \r\n  ")


def _has_branches(name: str) -> bool:
    return name in augment.COMBINATORS and augment.COMBINATORS[name].branches


# ---------------------------------------------------------------------------------------------------------------------
# Valid specs
# ---------------------------------------------------------------------------------------------------------------------


def _literals(param: Param, most: float) -> st.SearchStrategy[str]:
    """Returns the text of values that the parameter takes; whole numbers up to `most` where it takes those."""
    if param.choices:
        return st.sampled_from([quote + choice + quote for choice in param.choices for quote in "'\""])
    if param.kind is bool:
        return st.sampled_from(["True", "False"])
    if param.kind is float:
        values = st.floats(param.low, param.high) | st.sampled_from([param.low, param.high])
        whole = range(math.ceil(param.low), math.floor(param.high) + 1)
        return (values.map(repr) | st.sampled_from(whole).map(str)) if whole else values.map(repr)
    if param.kind is int:
        values = st.integers(int(param.low), int(max(param.low, min(param.high, most))))
        return values.map(str) | values.map(lambda value: f"{value}.0")
    raise NotImplementedError(f"write a strategy for parameters of kind {param.kind.__name__}, as '{param.name}' is")


@st.composite
def _terms(draw, depth: int, most: float) -> list[str]:
    """Returns the tokens of a term."""
    allowed = OPS + [name for name in COMBINATORS if depth or not _has_branches(name)]
    # Combinators are few: as likely as all ops together, or they would hardly be drawn.
    name = draw(st.sampled_from(allowed) | st.sampled_from([name for name in allowed if name in COMBINATORS]))
    params = _PARAMS[name]
    branches = [draw(_chains(depth - 1, most)) for _ in range(draw(st.integers(1, 3)))] if _has_branches(name) else []
    required = len(params) if branches else 0  # policies follow the parameters, so that none can be left out
    given = {param.name: draw(_literals(param, most)) for index, param in enumerate(params)
             if index < required or draw(st.booleans())}
    _make_consistent(name, given, len(branches))
    positional = 0
    while positional < len(given) and params[positional].name in given and (
            positional < required or draw(st.booleans())):
        positional += 1
    arguments = [[given[param.name]] for param in params[:positional]]
    arguments += [[param.name, "=", given[param.name]] for param in params[positional:] if param.name in given]
    arguments += branches
    tokens = [name]
    if arguments or draw(st.booleans()):
        tokens.append("(")
        for index, argument in enumerate(arguments):
            tokens += [","] * bool(index) + argument
        tokens.append(")")
    if draw(st.booleans()):
        tokens += ["@", draw(st.floats(0, 1).map(repr) | st.sampled_from(["0", "1", "0.5"]))]
    return tokens


def _make_consistent(name: str, given: dict[str, str], branches: int) -> None:
    """Mends in place what no single range can say."""
    defaults = {param.name: param.default for param in _PARAMS[name]}
    for low, high in _ORDERED:
        if low in defaults and float(given.get(low, defaults[low])) > float(given.get(high, defaults[high])):
            for end in (low, high):
                if end in given:
                    given[end] = repr(defaults[end])
    if name == "someof":
        given["k"] = str(min(int(float(given["k"])), branches))
    if name == "augmix" and float(given.get("depth", -1)) == 0:
        given["depth"] = "-1"


@st.composite
def _chains(draw, depth: int, most: float) -> list[str]:
    tokens: list[str] = []
    for index in range(draw(st.integers(1, 3 if depth else 2))):
        tokens += ["|"] * bool(index) + draw(_terms(depth, most))
    return tokens


@st.composite
def policies(draw, *, depth: int = 2, most: float = 64) -> str:
    """Returns the text of a valid policy.

    Args:
      draw: Hypothesis's own.
      depth: how deep policies may nest in policies.
      most: the largest whole number to write for a parameter that takes one; the cost of running grows with it.
    """
    spaces = draw(st.lists(st.sampled_from(_SPACES), min_size=1, max_size=4))
    tokens = draw(_chains(depth, most))
    return "".join(token + spaces[index % len(spaces)] for index, token in enumerate(tokens))


# ---------------------------------------------------------------------------------------------------------------------
# Specs with one fault
# ---------------------------------------------------------------------------------------------------------------------

# What may stand where a term or a value is expected in Python, but never in a spec.
HOSTILE = (
    "__import__('os').system('true')", "().__class__.__bases__[0].__subclasses__()", "flip.__globals__",
    "open('/etc/passwd').read()", "(lambda: 0)()", "lambda x: x", "[flip for _ in (1, 2)]", "{flip: 1}", "{1, 2}",
    "f'{flip}'", "f'a\\n{1}'", "b'flip'", "(x := 1)", "(yield)", "await flip", "*flip", "**flip", "flip[0]", "flip[:]",
    "flip()()", "-flip", "not flip", "flip if 1 else gray", "flip or gray", "flip < gray", "flip + gray",
    "1 if 1 else 2", "9**9**9**9", "'flip' * 10**9", "1 << 99999", "1j", "...", "1e999", "-1e999", "nan()()",
    "eval('1')['a']", "'" + "a" * 5000 + "'.x", "0x" + "f" * 5000, "1" + "0" * 4500, "(" * 300, "not " * 2000 + "flip",
    "-" * 3000 + "1", "x" + ".y" * 3000, "x" + "[0]" * 2500, "f" + "()" * 3000, "a" * 9000, "+".join("1" * 4000),
    "'\\d'.x", "1if 1else 2", "flip # gray", "flip; gray", "flip = gray", "flip == gray", "flip\\\n| gray", "flip gray",
    "fl\0ip", "\ufeffflip", "flip\u00a0|gray", "flip\u202e", "flip\ud800", "\U0001f9ab", "白血球", "raise SystemExit",
    "print 'x'", "import os", "flip -> gray", "flip !", "$HOME", "`id`", "<script>", "%s", "flip@@0.5", "flip@0.5@0.5",
    "flip | | gray", "(flip | gray)@0.5", "'''flip", "flip(", "flip)", "|", "@0.5", ",", "()", "[]", "flip()(1)",
    "flip(,)", "a.b(1)")

_GATES = ("1.5", "-0.1", "'x'", "True", "None", "nan", "inf", "1e999", "(0.5,)", "[0.5]", "flip", "0.5j", "",
          "0.5 flip", "--", "'" + "a" * 9000 + "'", "0x" + "f" * 5000)
_NO_NUMBERS = ("'1'", "True", "None", "(1, 2)", "[1]", "flip", "flip | gray", "gray(1)", "{}", "b'1'", "''", "nan",
               "inf", "1j", "1e999", "-1e999", "1" + "0" * 400, "'" + "a" * 5000 + "'")
_NO_WORDS = ("1", "0.5", "True", "None", "('edge',)", "flip", "'no such'", "''", "'\\n'", "b'edge'",
             "'" + "a" * 5000 + "'")
_PREFIXES = ("| ", ")", "(", "@0.5 | ", "not ", "-", "*", "lambda: ", "await ", "~", ".", "= ", "1 ", "'", "flip ")
_SUFFIXES = (" |", ")", "(", ",", "@", "=", " | | flip", " flip", "||flip", ";", " # more", "\\", ".", "'", "[0]", " &",
             "@2")


def _call(name: str, key: str, value: str) -> str:
    """Returns a term that gives one parameter."""
    return f"{name}({value}, flip, gray)" if _has_branches(name) else f"{name}({key}={value})"


def _is_new(name: str) -> bool:
    return name not in _PARAMS


_words = st.from_regex(r"[a-z_][a-z_0-9]{0,20}", fullmatch=True)


@st.composite
def _misspelt(draw) -> str:
    name = draw(st.sampled_from([name for name in _PARAMS if len(name) > 3]))
    at = draw(st.integers(0, len(name) - 1))
    return draw(st.sampled_from([
        name[:at] + name[at + 1:], name[:at] + name[at] + name[at:], name[:at] + "x" + name[at:], name.upper(),
        name[:at] + name[at:at + 2][::-1] + name[at + 2:]]).filter(_is_new))


@st.composite
def _out_of_range(draw) -> str:
    name = draw(st.sampled_from(_WITH_NUMBERS))
    param = draw(st.sampled_from([param for param in _PARAMS[name] if param.kind in (int, float)]))
    above, below = (st.floats(min_value=param.high, exclude_min=True, allow_infinity=False),
                    st.floats(max_value=param.low, exclude_max=True, allow_infinity=False))
    values = (above | below).map(repr) | st.integers(min_value=math.floor(param.high) + 1).map(str)
    if param.kind is int:
        values |= st.floats(param.low, param.high).filter(lambda value: not value.is_integer()).map(repr)
    return _call(name, param.name, draw(values))


@st.composite
def _of_the_wrong_kind(draw) -> str:
    name = draw(st.sampled_from(_WITH_PARAMS))
    param = draw(st.sampled_from(_PARAMS[name]))
    values = _NO_NUMBERS if param.kind in (int, float) else _NO_WORDS
    return _call(name, param.name, draw(st.sampled_from(
        [value for value in values if not (param.optional and value == "None")])))


@st.composite
def _wrongly_called(draw) -> str:
    """Too many arguments, an unknown key, or one given twice."""
    name = draw(st.sampled_from([name for name in _PARAMS if not _has_branches(name)]))
    params = _PARAMS[name]
    defaults = [repr(param.default) for param in params]
    choices = [f"{name}({', '.join([*defaults, *['1'] * draw(st.integers(1, 5))])})",
               f"{name}({draw(_words.filter(lambda key: key not in {param.name for param in params}))}=1)"]
    if params:
        first = f"{params[0].name}={defaults[0]}"
        choices += [f"{name}({first}, {first})", f"{name}({defaults[0]}, {first})", f"{name}({first}, {defaults[0]})"]
    return draw(st.sampled_from(choices))


@st.composite
def _without_policies(draw) -> str:
    """A combinator of policies with none, with a key, or with a number among them."""
    name = draw(st.sampled_from([name for name in COMBINATORS if _has_branches(name)]))
    own = [str(math.ceil(param.low)) for param in _PARAMS[name]]
    tail = draw(st.sampled_from([[], ["0.5"], ["'flip'"], ["None"], ["a=flip"], ["flip", "0.5"], ["flip", "b=gray"],
                                 ["flip", "'" + "a" * 5000 + "'"]]))
    return f"{name}({', '.join([*own, *tail])})"


_faulty_terms = st.one_of(
    _words.filter(_is_new), _misspelt(), _out_of_range(), _of_the_wrong_kind(), _wrongly_called(), _without_policies(),
    st.sampled_from(_GATES).map(lambda gate: f"flip@{gate}"),
    st.sampled_from(["gridmask(d_min=0.9, d_max=0.2)", "resized_crop(0.9, 0.5)", "someof(3, flip, gray)",
                     "augmix(depth=0)"]))


@st.composite
def faulty(draw) -> str:
    """Returns the text of a policy with one wrong term, somewhere among good ones."""
    term = draw(_faulty_terms)
    good = draw(policies(depth=1))
    return draw(st.sampled_from(["{term}", "{good} | {term}", "{term} | {good}", "oneof({good}, {term})",
                                 "someof(1, {term}, {good})@0.5", "oneof(oneof(oneof({good} | {term})))"])).format(
        term=term, good=good)


@st.composite
def unreadable(draw) -> str:
    """Returns a policy that became no spec: a piece too many, too deep or too long."""
    good = draw(policies(depth=1))
    depth = draw(st.integers(22, 90))
    return draw(st.sampled_from(
        [prefix + good for prefix in _PREFIXES] + [good + suffix for suffix in _SUFFIXES]
        + ["oneof(" * depth + good + ")" * depth, " | ".join([good] * (10_000 // len(good) + 1))]))


@st.composite
def hostile(draw) -> str:
    """Returns Python that is no spec, alone or where a term, a value, a key or a probability belongs."""
    return draw(st.sampled_from(["{}", "{} | flip", "flip | {}", "rotate({})", "rotate(degrees={})", "rotate({}=1)",
                                 "oneof(flip, {})", "flip@{}", "oneof(rotate({}))"])).format(
        draw(st.sampled_from(HOSTILE)))


@st.composite
def scribbled(draw) -> str:
    """Returns a valid policy with one character put in, taken out or changed, which may or may not spoil it."""
    good = draw(policies(depth=1))
    at = draw(st.integers(0, len(good)))
    what = draw(st.characters() | st.sampled_from("|(),=@.0'\"#\\ \n{}[]:*-"))
    return draw(st.sampled_from([good[:at] + what + good[at:], good[:at] + good[at + 1:],
                                 good[:at] + what + good[at + 1:]]))


texts = st.text(max_size=80) | st.text(alphabet="flipgray|(),=@.0123'\"#\\ \n\t[]{}:*-~", max_size=60)
