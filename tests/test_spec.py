"""The spec language: reading, printing back, refusing what is no spec, binding arguments to parameters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.errors import InputError
from bloodcell.spec import Chain, Param, Term, bind, only_term, parse

NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True).filter(
    lambda name: name.isidentifier() and not __import__("keyword").iskeyword(name))
LITERALS = st.one_of(st.none(), st.booleans(), st.integers(-10**9, 10**9),
                     st.floats(allow_nan=False, allow_infinity=False),
                     st.text(alphabet="abc |@(),='\"", max_size=8), st.tuples(st.integers(0, 9), st.integers(0, 9)))


def _terms(values):
    return st.builds(
        Term, NAMES, st.lists(values, max_size=2).map(tuple),
        st.dictionaries(NAMES, values, max_size=2).map(lambda each: tuple(each.items())),
        st.sampled_from([1.0, 0.5, 0.0, 0.125]))


def _chains(values):
    return st.lists(_terms(values), min_size=1, max_size=3).map(lambda terms: Chain(tuple(terms)))


CHAINS = st.recursive(_chains(LITERALS), lambda inner: _chains(st.one_of(LITERALS, inner)), max_leaves=5)


@settings(max_examples=200, deadline=None)
@given(CHAINS)
def test_every_chain_prints_back_to_itself(chain):
    assert parse(str(chain)) == chain


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    message = ""
    try:
        parse(text)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("text", [
    "flip rotate", "1 + 1", "f(g.h)", "f[0]", "lambda: 0", "f(**x)", "f(*x)", "f(a=1, a=2)", "f@2", "f@x", "f@True",
    "f()()", "f(1e999)", "'flip'", "f(x for x in y)", "(" * 500, "f(" * 60 + ")" * 60, "a" * 20_000,
    "f\0", "f(b'x')", "f({1: 2})"])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_bar_inside_an_argument_belongs_to_the_argument():
    chain = parse("oneof(a | b, 'c | d') | e")
    assert [term.name for term in chain.terms] == ["oneof", "e"]
    inner, text = chain.terms[0].args
    assert isinstance(inner, Chain)
    assert len(inner.terms) == 2
    assert text == "c | d"


PARAMS = (Param("n", int, 2, 1, 9, unit="ops"), Param("rate", float, 0.5, 0, 1),
          Param("how", str, "a", choices=("a", "b")), Param("limit", float, None, 0, 9, optional=True))


@pytest.mark.parametrize(("text", "expected"), [
    ("f", {"n": 2, "rate": 0.5, "how": "a", "limit": None}),
    ("f(3, 1)", {"n": 3, "rate": 1.0, "how": "a", "limit": None}),
    ("f(how='b', n=4.0, limit=2)", {"n": 4, "rate": 0.5, "how": "b", "limit": 2.0})])
def test_bind_fills_defaults_and_converts_numbers(text, expected):
    bound = bind(parse(text).terms[0], PARAMS)
    assert bound == expected
    assert type(bound["rate"]) is float
    assert type(bound["n"]) is int


@pytest.mark.parametrize(("text", "says"), [
    ("f(0)", "f(n) expected 1..9 ops, received 0"), ("f(n=True)", "f(n) expected"), ("f(2.5)", "f(n) expected"),
    ("f(m=1)", "has no parameter 'm'"), ("f(1, n=2)", "received 'n' twice"), ("f(1, 2)", "f(rate) expected 0..1"),
    ("f(how='c')", "f(how) expected 'a' or 'b'"),
    ("f(how=a)", "f(how) expected 'a' or 'b', received a, try quotes: 'a'"),
    ("f(1, 1, 'a', 1, 1)", "at most 4 arguments"),
    ("f(None)", "f(n) expected"), ("f(g(1))", "f(n) expected 1..9 ops, received g(1)")])
def test_bind_says_what_it_expected(text, says):
    with pytest.raises(InputError, match=r"^spec: ") as caught:
        bind(parse(text).terms[0], PARAMS)
    assert says in str(caught.value)


def test_required_parameters_must_be_given():
    with pytest.raises(InputError, match=r"expected n=1\.\.9, received nothing"):
        bind(Term("f"), (Param("n", int, low=1, high=9),))


def test_only_term_refuses_chains_and_gates():
    assert only_term(parse("adam"), what="optimizer").name == "adam"
    for text in ("adam | adamw", "", "adam@0.5"):
        with pytest.raises(InputError, match="optimizer: expected"):
            only_term(parse(text), what="optimizer")
