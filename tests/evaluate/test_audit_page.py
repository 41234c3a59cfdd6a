"""audit.html is whole, self-contained and says everything that was found; its pictures are of the right images."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import re

import made_audit
import numpy as np
import pytest
from PIL import Image

from bloodcell.data import demo
from bloodcell.data.audit.result import Finding
from bloodcell.evaluate import audit_groups, audit_page, thumbnails


class Parsed(html.parser.HTMLParser):
    """Elements and texts of a page, by the parser of the standard library."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def between(page: str, begin: str, end: str) -> str:
    return page.split(begin, 1)[1].split(end, 1)[0]


def script_data(page: str) -> dict:
    return json.loads(between(page, 'id="page-data">', "</script>"))


def removed_section(page: str) -> str:
    return between(page, '<section id="removed">', "</section>")


def named_indices(page: str) -> list[int]:
    """The indices that the section names in words: "index 3 to 7 step 2, 20", in a paragraph or a cell."""
    found: list[int] = []
    for text in re.findall(r'<p class="dim">index (.*?)</p>|<summary>indices</summary><p>(.*?)</p>'
                           r'|<td data-column="index">(.*?)</td>', page):
        for first, last, step in re.findall(r"(\d+)(?: to (\d+))?(?: step (\d+))?", "".join(text)):
            found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return audit_page.page(made_audit.audit(), made_audit.images(), made_audit.maps(),
                           written=("audit.json", "clean & new.npz"))


def test_the_page_asks_for_nothing_outside_itself(page):
    for _, attributes in Parsed(page).elements:
        for name in ("src", "href"):
            assert name not in attributes or attributes[name].startswith(("data:image/webp;base64,", "#"))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")|@import|url\(|<link", page)


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(page):
    policy = next(attributes["content"] for _, attributes in Parsed(page).elements
                  if attributes.get("http-equiv") == "Content-Security-Policy")
    rules = {name: value for name, _, value in (part.strip().partition(" ") for part in policy.split(";"))}
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        inline = between(page, f"<{tag}>", f"</{tag}>")
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
    assert not any(name.startswith("on") or name == "style" for _, attributes in Parsed(page).elements
                   for name in attributes)  # the policy would block them


def test_names_from_the_file_stay_text(page):
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements].count("script") == 2  # data and code
    assert ("b", {}) in parsed.elements  # the page's own
    assert not any(attributes.get("src") == "x" or "onerror" in attributes for _, attributes in parsed.elements)
    for text in (made_audit.NAMES[1], made_audit.NAMES[2], "my <set>.npz", "t-SNE <i>", "clean & new.npz",
                 "sharpness 0.5 & below", "standard deviations <away>"):
        assert text in parsed.text
    assert script_data(page)["classes"][:3] == list(made_audit.NAMES[:3])


def test_figures_and_class_counts_are_those_of_the_audit(page):
    audit = made_audit.audit()
    figures = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", page)
    assert figures == [("60", "images"), ("37", "kept"), ("23", "removed"), ("2", "suspects, kept"),
                       ("1", "label conflicts"), ("1", "duplicate pairs"), ("2", "near-duplicate pairs"),
                       ("12 s", "of work")]
    cells = re.findall(r'<td data-column="(before|after|removed)">(.*?)</td>', page)
    counts = np.array([int(number) for _, number in cells]).reshape(-1, 3)
    gone = {finding.index for finding in audit.removed}
    expected = [[sum(audit.labels == c), sum(audit.labels[i] == c for i in range(60) if i not in gone),
                 sum(audit.labels[i] == c for i in gone)] for c in range(4)]
    np.testing.assert_array_equal(counts[:-1], expected)
    np.testing.assert_array_equal(counts[-1], np.sum(expected, axis=0))
    assert "Not for clinical use" in page
    assert "no --contaminants given" in page


def test_copies_are_one_entry_with_number_labels_and_indices(page):
    section = removed_section(page)
    entries = section.split("<article")[1:]
    assert len(entries) == 2
    assert "&times; 20" in entries[0]
    assert "index 20 to 39" in entries[0]
    assert "basophil &times; 5" in entries[0]
    assert entries[0].count("<img") == 1
    assert "41 to 47 step 3" in entries[1]
    assert "3 reasons" in entries[1]
    assert "score 4.1 to 4.7" in entries[1]


def test_every_removed_image_is_named_once_with_its_reason_however_many_there_are():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (audit_page.MOST + 60, 8, 8, 3), np.uint8)
    reasons = [f"reason number {i % 70}." for i in range(len(images))]
    findings = tuple(Finding(i, "far", reason, float(i)) for i, reason in enumerate(reasons) if i % 3)
    audit = dataclasses.replace(made_audit.audit(), labels=np.arange(len(images)) % 4, removed=findings,
                                pictures=np.arange(len(images)), suspects=(),
                                duplicates=(), near_duplicates=(), conflicts=(), asked_to_keep=())
    section = removed_section(audit_page.page(audit, images, {}, written=()))
    assert sorted(named_indices(section)) == [finding.index for finding in findings]
    for finding in findings:
        assert f"{finding.reason}<" in section


def test_copies_that_differ_in_pixels_are_one_group_with_an_example_of_each():
    images = np.arange(6, dtype=np.uint8)[[0, 1, 0, 2, 3, 3], None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    found = audit_groups.groups([Finding(i, "far" if i == 5 else "repeats", "", 4.0) for i in range(6)], images,
                                np.array([7, 7, 7, 7, 9, 9]))
    assert [(group.rule, group.indices, group.pictures) for group in found] == [
        ("repeats", (0, 1, 2, 3), (0, 1, 3)), ("repeats", (4,), (4,)), ("far", (5,), (4,))]


def test_ranges_name_the_same_indices_as_the_list():
    rng = np.random.default_rng(2)
    for _ in range(200):
        indices = np.flatnonzero(rng.random(60) < rng.random()).tolist()
        named = [i for first, last, step in audit_groups.runs(indices) for i in range(first, last + 1, step)]
        assert named == indices
    assert audit_groups.range_text(list(range(11959, 13558, 8))) == "11959 to 13551 step 8"
    assert audit_groups.range_text([1, 2, 10, 11, 12]) == "1, 2, 10 to 12"


def test_thumbnails_are_of_the_images_they_stand_for_and_equal_images_share_one(page):
    data, images = script_data(page), made_audit.images()
    sheets = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), np.float32)
              for uri in data["sheets"]["uris"]]
    width, height, columns = (data["sheets"][name] for name in ("width", "height", "columns"))
    assert (width, height) == (32, 24)
    for index, picture in zip(data["images"]["index"], data["images"]["picture"], strict=True):
        sheet, cell = divmod(picture, columns ** 2)
        top, left = cell // columns * height, cell % columns * width
        thumbnail = sheets[sheet][top : top + height, left : left + width]
        np.testing.assert_allclose(thumbnail.mean((0, 1)), images[index].mean((0, 1)), atol=12)  # 55 apart
    assert len(set(data["images"]["picture"])) == 60 - 19 - 2 - 1


def test_thumbnails_of_several_sheets_keep_their_order():
    images = np.broadcast_to((np.arange(500) // 2).astype(np.uint8)[:, None, None, None], (500, 16, 16, 3))
    made = thumbnails.sheets(images, np.arange(500)[::-1], thumbnails.Coding(8, 90))
    assert (made.width, made.height, len(made.uris)) == (8, 8, 2)
    levels = []
    for uri in made.uris:
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L"), np.float32)
        rows = len(sheet) // 8
        levels += sheet.reshape(rows, 8, 16, 8).mean((1, 3)).ravel().tolist()
    np.testing.assert_allclose(levels[:500], np.arange(500)[::-1] // 2, atol=4)


def test_positions_keep_the_shape_of_the_map(page):
    for drawn, made in zip(script_data(page)["maps"], made_audit.maps().values(), strict=True):
        x, y = np.array(drawn["x"]), np.array(drawn["y"])
        assert max(x.max(), y.max()) == audit_page.GRID
        scale = audit_page.GRID / np.ptp(made.xy[:, 0])  # the longer axis of both maps
        np.testing.assert_allclose(x, (made.xy[:, 0] - made.xy[:, 0].min()) * scale, atol=1)
        np.testing.assert_allclose(y, (made.xy[:, 1].max() - made.xy[:, 1]) * scale, atol=1)  # downwards


@pytest.mark.parametrize("kind", ["cells", "noise"])
def test_14000_thumbnails_stay_within_their_share_of_15_megabytes(kind):
    images = demo.render(40, seed=0, size=96)[0] if kind == "cells" else \
        np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)
    many = np.resize(np.arange(40), 14_000)
    coding = thumbnails.choose(images, many, audit_page.MAP_CODINGS, audit_page.MAP_BUDGET)
    used = sum(map(len, thumbnails.sheets(images, many[:256], coding).uris)) / 256 * 14_000
    assert used < 1.05 * audit_page.MAP_BUDGET
    assert coding.side >= (48 if kind == "cells" else 16)
    assert audit_page.MAP_BUDGET + audit_page.GALLERY_BUDGET < 0.9 * 15e6


def test_only_the_images_that_are_drawn_are_read():
    class Lazy:
        read: set[int]

        def __init__(self):
            self.read = set()

        def __getitem__(self, indices):
            self.read |= set(indices.tolist())
            return made_audit.images()[indices]

    lazy = Lazy()
    few = {"PCA": audit_page.Map(np.array([0, 30]), np.zeros((2, 2)))}
    audit_page.page(made_audit.audit(), lazy, few, written=())
    assert lazy.read == {0, 30, *made_audit.COPIES, *made_audit.SECOND, 2, 3, 5, 9, 6, 10, 7, 8, 50}


def test_an_audit_that_found_nothing_has_a_whole_page_too():
    audit = dataclasses.replace(made_audit.audit(), removed=(), suspects=(), duplicates=(), near_duplicates=(),
                                conflicts=(), rules=(), asked_to_keep=())
    page = audit_page.page(audit, made_audit.images(), {}, written=())
    for text in ("Nothing was removed.", "No other image that was kept is suspect.", "No map was drawn.",
                 "No two images are copies"):
        assert text in page
    assert page.endswith("</html>\n")


@pytest.mark.parametrize(("index", "xy"), [([1, 0], np.zeros((2, 2))), ([0, 1], np.zeros((3, 2))),
                                           ([0, 1], np.array([[0, 1], [np.nan, 0]]))])
def test_a_map_with_points_out_of_place_is_refused(index, xy):
    with pytest.raises(ValueError, match="expected"):
        audit_page.Map(np.array(index), xy)
