"""The language of --search_space: what it reads, what it refuses, and the points of a space."""

import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.errors import InputError
from bloodcell.search import space
from bloodcell.search.space import Choice, Range, Whole

names = st.builds(".".join, st.lists(st.text(string.ascii_lowercase + "_", min_size=1, max_size=8), min_size=1,
                                     max_size=3))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-10**6, 10**6), st.floats(-1e6, 1e6), st.text(max_size=12))
values = st.one_of(scalars, st.lists(scalars, max_size=3).map(tuple))
finite = st.floats(-1e6, 1e6)


@st.composite
def dimensions(draw, name):
    kind = draw(st.sampled_from(["log", "uniform", "int", "choice"]))
    if kind == "choice":
        options = draw(st.lists(values, min_size=1, max_size=5, unique_by=space.label))
        return Choice(name, tuple(options))
    if kind == "int":
        low, step, count = draw(st.integers(-100, 100)), draw(st.integers(1, 9)), draw(st.integers(2, 30))
        return Whole(name, low, low + step * (count - 1), step)
    low = draw(st.floats(1e-9, 1e3)) if kind == "log" else draw(finite)
    high = low * draw(st.floats(1.01, 1e6)) if kind == "log" else low + draw(st.floats(0.01, 1e6))
    return Range(name, low, high, log=kind == "log")


@st.composite
def spaces(draw):
    found = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    return space.Space(tuple(draw(dimensions(name)) for name in found))


def test_the_issues_own_example_is_read_as_written():
    found = space.parse("lr=log(1e-5, 1e-2), augment.m=int(2, 9),\n batch_size=choice(32, 64)")
    assert found.dimensions == (Range("lr", 1e-5, 1e-2, True), Whole("augment.m", 2, 9, 1),
                                Choice("batch_size", (32, 64)))
    assert found.size == math.inf


def test_commas_and_equal_signs_inside_of_brackets_and_quotes_divide_nothing():
    found = space.parse("augment=choice('flip | zoom(0.2), x', \"a=b\"), stages.all.2.lr=uniform(low=0.1, high=1.0), "
                        "optimizer=choice(adamw(weight_decay=1e-3), lion), head=choice('')")
    assert found.dimensions == (
        Choice("augment", ("flip | zoom(0.2), x", "a=b")), Range("stages.all.2.lr", 0.1, 1.0, False),
        Choice("optimizer", ("adamw(weight_decay=0.001)", "lion")), Choice("head", ("",)))


@settings(max_examples=60, deadline=None)
@given(spaces())
def test_what_is_printed_is_read_again_as_the_same(made):
    assert space.parse(str(made)) == made


@settings(max_examples=60, deadline=None)
@given(spaces(), st.floats(0, 1, exclude_max=True))
def test_points_lie_in_their_ranges_and_places_are_their_inverse(made, u):
    for dimension in made.dimensions:
        value = dimension.at(u)
        if isinstance(dimension, Choice):
            assert value in dimension.options
            assert dimension.at(dimension.unit(value)) == value
        else:
            assert dimension.low <= value <= dimension.high
            assert dimension.at(dimension.unit(value)) == pytest.approx(value, rel=1e-3, abs=1e-3 * (
                dimension.high - dimension.low))
        if isinstance(dimension, Whole):
            assert (value - dimension.low) % dimension.step == 0
        if isinstance(dimension, Range):
            assert dimension.unit(value) == pytest.approx(u, abs=2e-3)


def test_log_is_even_in_the_logarithm_and_values_are_short():
    rate = Range("lr", 1e-5, 1e-1, True)
    assert [rate.at(u) for u in (0, 0.25, 0.5, 0.75)] == [1e-5, 1e-4, 1e-3, 1e-2]
    assert len(repr(rate.at(0.3))) <= len("6.310e-05")
    assert Range("x", 0.99990, 0.99999, False).at(0.5) == pytest.approx(0.999945, abs=1e-8)


def test_a_grid_is_the_product_of_choices_whole_numbers_and_points_of_ranges():
    made = space.parse("lr=log(1e-4, 1e-2), n=int(1, 5, 2), size=choice('a', 'b')")
    expected = [{"lr": lr, "n": n, "size": size} for lr in (1e-4, 1e-3, 1e-2) for n in (1, 3, 5) for size in "ab"]
    assert list(made.grid(3)) == expected
    assert made.grid_size(3) == len(expected)
    assert [point["n"] for point in space.parse("n=int(0, 100)").grid(5)] == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(("text", "said"), [
    ("", "received nothing"),
    ("lr", "expected NAME=kind(...), received 'lr'"),
    ("lr=log(1e-5, 1e-2),, x=int(1, 2)", "expected NAME=kind(...), received ''"),
    ("lr=log(1e-2, 1e-5)", "expected low < high, received 0.01, 1e-05"),
    ("lr=log(0, 1)", "log(low) expected"),
    ("lr=lgo(1, 2)", "did you mean 'log'?"),
    ("lr=uniform(1)", "expected high="),
    ("n=int(1.5, 3)", "int(low) expected"),
    ("n=int(1, 1)", "expected low < high"),
    ("n=choice()", "expected choice(value, value, ...)"),
    ("n=choice(1, 2, 1)", "expected different values, received '1' twice"),
    ("n=choice(1, '1')", "expected different values, received '1' twice"),
    ("n=choice(a=1)", "expected choice(value, value, ...)"),
    ("n=int(1, 3), n=int(1, 4)", "expected each name once, received 'n' twice"),
    ("n=int(1, 3", "expected closed brackets"),
    ("n=choice('a)", "n"),
    ("1n=int(1, 3)", "expected NAME=kind(...)"),
    ("n=int(1, 3)@0.5", "expected no '@p' here"),
    ("n=int(1, 3) | int(1, 2)", "expected one term"),
    ("a..b=int(1, 3)", "expected NAME=kind(...)"),
    ("n=" + "(" * 5000, "--search_space"),
])
def test_a_mistake_is_one_line_that_says_what_was_expected(text, said):
    with pytest.raises(InputError) as caught:
        space.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--search_space")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abclogint.,=()'\"[] 129-e_|@#\n\\é", max_size=40))
def test_any_text_is_a_space_or_an_input_error(text):
    try:
        found = space.parse(text)
    except InputError:
        return
    assert space.parse(str(found)) == found
