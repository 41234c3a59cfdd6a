"""docs/ops.md and its pictures are what the registry and the code give today."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import describe
from docs import strips

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/ops.md").read_text(encoding="utf-8")
STALE = "run: python -m docs"


def test_the_page_is_what_the_entries_say():
    assert describe.page() == PAGE, STALE


def test_every_name_a_spec_may_hold_has_its_section_and_every_link_its_target():
    sections = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted({*augment.names(), *augment.MIXES})
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in (*re.findall(r"\(#(\w+)\)", PAGE), *re.findall(r"\(docs/ops\.md#(\w+)\)", readme)):
        assert target in sections
    for picture in re.findall(r"!\[[^]]+\]\((.+?)\)", PAGE):
        assert (ROOT / "docs" / picture).exists(), STALE


@pytest.mark.parametrize("example", re.findall(r"Example: `([^`]+)`", PAGE))
def test_every_example_is_a_spec(example):
    read = augment.parse_mix if example.partition("(")[0] in augment.MIXES else augment.parse
    assert str(read(example))


def test_every_op_has_its_parameters_unit_and_picture():
    for name, op in augment.REGISTRY.items():
        section = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        assert f"(ops/{name}.png)" in section
        assert op.summary in section
        assert op.reference in section
        for param in op.params:
            assert re.search(rf"^\| `{param.name}` \| .*{re.escape(param.unit)} \|", section, re.MULTILINE), param.name


def test_the_pictures_are_those_that_the_code_draws():
    fresh = strips.render()
    stored = {path.stem: tf.io.decode_png(path.read_bytes()).numpy() for path in (ROOT / "docs/ops").glob("*.png")}
    assert sorted(stored) == sorted(fresh), STALE
    assert [name for name in fresh if strips.differ(stored[name], fresh[name])] == [], STALE
    assert sum(path.stat().st_size for path in (ROOT / "docs/ops").glob("*.png")) < 2e6


def test_a_picture_may_be_off_by_a_hair_and_no_more():
    one = np.full((72, 452, 3), 100, np.uint8)
    hair = one.copy()
    hair[:, :, 1] += 2
    hair[:2, :100] = 0  # 0.6% of the pixels
    assert not strips.differ(one, hair)
    other = one.copy()
    other[:2, :200, 0] += 3
    assert strips.differ(one, other)
    assert strips.differ(one, one[:, 1:])
