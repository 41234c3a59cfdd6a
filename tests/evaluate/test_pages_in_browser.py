"""The pages work in a browser: nothing fails, nothing is asked for, nothing overflows, and points show their images."""

import chromium
import made_audit
import made_report
import numpy as np
import pytest

from bloodcell.evaluate import audit_page, gallery, pages, plots, report_page

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())

WIDTHS = (1280, 400)
MARGIN = 20  # CSS pixels around the points of a map


@pytest.fixture(scope="module")
def browser():
    with chromium.launched() as launched:
        yield launched


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "audit.html"
    path.write_text(audit_page.page(made_audit.audit(), made_audit.images(), made_audit.maps(),
                                    written=("audit.json",)))
    return path


def place(page, name: str, index: int) -> tuple[float, float]:
    """Where a map's point is in the window: all points fit, in the middle, with a margin, both axes to one scale."""
    made = made_audit.maps()[name]
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    size = np.array([box["width"], box["height"]]) - 2  # the border
    points = made.xy * [1, -1]
    low, span = points.min(0), np.ptp(points, axis=0)
    scale = ((size - 2 * MARGIN) / span).min()
    middle = np.array([box["x"], box["y"]]) + 1 + size / 2
    x, y = middle + (points[made.index == index][0] - low - span / 2) * scale
    return float(x), float(y)


def shown_colour(page) -> list[int]:
    """The colour of the picture beside the map; a copy is read, or Chromium would warn of slow reading."""
    colour = """() => {
        const shot = document.getElementById('shot'), copy = document.createElement('canvas').getContext('2d');
        copy.drawImage(shot, shot.width / 2, shot.height / 2, 1, 1, 0, 0, 1, 1);
        return shot.hidden ? [0, 0, 0, 0] : [...copy.getImageData(0, 0, 1, 1).data]; }"""
    page.wait_for_function(f"({colour})()[3] === 255")  # the sheet is decoded
    return page.evaluate(colour)[:3]


def assert_shown(page, index: int) -> None:
    assert page.locator("#facts .title").inner_text() == f"#{index}"
    np.testing.assert_allclose(shown_colour(page), made_audit.images()[index, 12, 16], atol=8)
    assert made_audit.NAMES[index % 4].replace("_", " ") in page.locator("#facts").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_audit_page_opens_without_errors_requests_or_overflow(browser, file, width):
    with chromium.opened(browser, file, width=width, ratio=2) as seen:
        seen.page.locator("#map").scroll_into_view_if_needed()
        for summary in seen.page.locator("summary").all():
            summary.click()
        assert seen.problems == []
        assert seen.requests == [file.as_uri()]
        assert seen.overflow() <= 0
        assert seen.page.locator("#legend label").count() == len(made_audit.NAMES) + 3
        # The canvas has a pixel for each of the screen's, and something is drawn.
        assert seen.page.evaluate("(c => c.width / c.clientWidth)(document.getElementById('map'))") == 2
        assert seen.page.evaluate("""() => { const c = document.getElementById('map');
            return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => value > 0); }""")


def test_a_point_shows_its_image_under_the_pointer_and_keeps_it_after_a_click(browser, file):
    with chromium.opened(browser, file, width=1280) as seen:
        page = seen.page
        page.mouse.move(*place(page, "PCA", 13))
        assert_shown(page, 13)
        page.mouse.click(*place(page, "PCA", 41))
        page.mouse.move(5, 5)
        assert_shown(page, 41)
        assert "far: 4.1 standard deviations <away>" in page.locator("#facts").inner_text()
        page.mouse.move(*place(page, "PCA", 3))
        facts = page.locator("#facts").inner_text()
        assert "Suspect. blur: sharpness 0.5 & below" in facts
        assert "Suspect. grey: background of 5 levels" in facts
        page.mouse.move(*place(page, "PCA", 7))
        assert "Label conflict: similarity 0.9 with #8 basophil" in page.locator("#facts").inner_text()
        page.get_by_role("tab", name="t-SNE").click()
        page.mouse.click(*place(page, "t-SNE <i>", 28))
        assert_shown(page, 28)
        assert seen.problems == []


def test_a_tap_shows_an_image_on_a_narrow_touch_screen(browser, file):
    with chromium.opened(browser, file, width=400, touch=True) as seen:
        seen.page.touchscreen.tap(*place(seen.page, "PCA", 52))
        assert_shown(seen.page, 52)
        assert seen.problems == []


def test_keys_and_the_index_field_reach_every_image(browser, file):
    with chromium.opened(browser, file, width=1280) as seen:
        page = seen.page
        page.locator("#find-index").fill("15")
        page.keyboard.press("Enter")
        assert_shown(page, 15)
        page.locator("#map").focus()
        for key, index in (("ArrowRight", 16), ("ArrowUp", 26), ("ArrowLeft", 25), ("ArrowDown", 15)):
            page.keyboard.press(key)
            assert_shown(page, index)
        page.keyboard.press("+")
        page.keyboard.press("ArrowLeft")
        assert_shown(page, 14)
        page.locator("#find-index").fill("60")
        assert "Expected an index from 0 to 59" in page.locator("#facts").inner_text()
        page.get_by_role("tab", name="PCA").press("ArrowRight")
        assert page.get_by_role("tab", name="t-SNE").get_attribute("aria-selected") == "true"
        assert seen.problems == []


def test_the_wheel_zooms_about_the_pointer_once_the_map_is_chosen_and_drags_move_it(browser, file):
    with chromium.opened(browser, file, width=1280) as seen:
        page = seen.page
        x, y = place(page, "PCA", 22)
        page.mouse.move(x, y)
        page.mouse.click(x, y)
        page.mouse.wheel(0, -600)
        page.mouse.move(x + 1, y)
        assert_shown(page, 22)  # what was under the pointer still is
        page.mouse.down()
        page.mouse.move(x + 60, y + 30, steps=3)
        page.mouse.up()
        page.mouse.move(x + 60, y + 30)
        assert_shown(page, 22)
        page.mouse.move(x + 1, y)
        assert seen.page.evaluate("scrollY") > 0  # the page itself stayed where it was scrolled to
        page.locator(".zoom [data-zoom='0']").click()
        page.mouse.move(*place(page, "PCA", 13))
        assert_shown(page, 13)


def test_keep_builds_the_flag_that_overrules(browser, file):
    with chromium.opened(browser, file, width=400) as seen:
        page = seen.page
        assert not page.locator("#overrule").is_visible()
        page.locator(".group .keep").nth(1).click()
        flag = page.locator("#keep-flag")
        assert flag.input_value() == "--audit_keep=41,44,47,50"  # and what was asked for before
        page.locator("#find-index").fill("25")
        page.locator("#facts .keep").click()
        assert flag.input_value() == "--audit_keep=25,41,44,47,50"
        page.locator(".group .keep").nth(0).click()
        assert flag.input_value() == "--audit_keep=20-39,41,44,47,50"
        page.locator(".group .keep").nth(0).click()
        assert flag.input_value() == "--audit_keep=41,44,47,50"
        assert seen.overflow() <= 0
        page.locator("#keep-clear").click()
        assert not page.locator("#overrule").is_visible()
        assert seen.problems == []


def test_the_legend_takes_classes_off_the_map(browser, file):
    with chromium.opened(browser, file, width=1280) as seen:
        page = seen.page
        page.locator("#legend input").nth(1).uncheck()
        page.mouse.move(*place(page, "PCA", 13))
        assert page.locator("#facts .title").count() == 0
        page.mouse.move(*place(page, "PCA", 14))
        assert_shown(page, 14)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_opens_without_errors_requests_or_overflow(browser, tmp_path, width):
    path = tmp_path / "report.html"
    row = ("immature granulocyte", "0.1", "0.2", "0.3", "9")
    path.write_text(pages.document("report", f"""<h1>report</h1>{pages.figures([("0.9", "accuracy")] * 5)}
        <pre>python main.py --flagfile={'a/long/folder/' * 20}</pre>
        {pages.table(("class", "precision", "recall", "F1", "images"), [row])}
        {pages.settings({"weights SHA-256": "0" * 64, "--augment": "flip | " * 30})}"""))
    with chromium.opened(browser, path, width=width) as seen:
        assert seen.overflow() <= 0
        assert seen.problems == []
        assert seen.requests == [path.as_uri()]
        # The style was let in by the policy.
        assert seen.page.evaluate("getComputedStyle(document.querySelector('.figures')).display") == "grid"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    sheet = plots.image_grid_png(np.zeros((4, 8, 8, 3)), ["a"] * 4)
    path.write_text(report_page.page(
        made_report.content(corruptions=made_report.corruptions(), options=made_report.OPTIONS), again="again " * 50,
        classified=made_report.classified(), history=made_report.HISTORY, augmented=sheet, corrupted=sheet,
        explanations=made_report.explanations()))
    return path


def rows_of(true: int, predicted: int) -> list[int]:
    """A cell's images in the order in which they are shown: wrong ones from the surest, right ones from the least."""
    found, sure = made_report.probabilities().argmax(axis=1), made_report.probabilities().max(axis=1)
    own = np.flatnonzero((made_report.labels() == true) & (found == predicted))
    return own[np.argsort(sure[own] if true == predicted else -sure[own])].tolist()


def assert_gallery(page, rows: list[int]) -> None:
    """The gallery has exactly these images, by their names and by their pixels."""
    assert page.locator("#gallery .file").all_inner_texts() == [made_report.files()[row] for row in rows]
    for place in {0, len(rows) // 2, len(rows) - 1}:
        canvas = page.locator("#gallery canvas").nth(place)
        colour = """canvas => [...canvas.getContext('2d').getImageData(9, 9, 1, 1).data]"""
        page.wait_for_function(f"place => ({colour})(document.querySelectorAll('#gallery canvas')[place])[3] === 255",
                               arg=place)
        np.testing.assert_allclose(canvas.evaluate(colour)[:3], made_report.colours()[rows[place]], atol=9)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_whole_report_opens_without_errors_requests_or_overflow(browser, report, width):
    with chromium.opened(browser, report, width=width) as seen:
        for summary in seen.page.locator("summary").all():
            summary.click()
        for button in seen.page.locator(".confusion button").all():
            button.click()
        assert seen.overflow() <= 0
        assert [problem for problem in seen.problems if "willReadFrequently" not in problem] == []
        assert seen.requests == [report.as_uri()]


def test_a_click_on_a_cell_shows_exactly_its_images(browser, report):
    with chromium.opened(browser, report, width=1280) as seen:
        page = seen.page
        assert_gallery(page, rows_of(0, 1))  # the commonest mistake, from the start
        for true, predicted in ((0, 3), (1, 0), (3, 1), (1, 1)):
            page.locator(f".confusion [data-true='{true}'][data-predicted='{predicted}']").click()
            count = made_report.CONFUSION[true][predicted]
            assert page.locator("#gallery h3").inner_text().startswith(f"{count} \u00d7 {NAMED[true]}")
            assert_gallery(page, rows_of(true, predicted))
            assert page.locator("[aria-pressed='true']").first.get_attribute("data-true") == str(true)
        page.locator(".confusion [data-true='0'][data-predicted='0']").click()  # more than are drawn at once
        assert page.locator("#gallery figure").count() == 60
        page.get_by_role("button", name="Show 10 more of 10").click()
        assert_gallery(page, rows_of(0, 0))
        page.get_by_role("button", name="Show all 12 mistakes").click()
        sure = made_report.probabilities().max(axis=1)
        wrong = np.flatnonzero(made_report.labels() != made_report.probabilities().argmax(axis=1))
        assert_gallery(page, wrong[np.argsort(-sure[wrong])].tolist())
        assert page.locator("figure b").first.inner_text() == f"{100 * sure[wrong].max():.0f}% sure"


NAMED = [name.replace("_", " ") for name in made_report.NAMES]


def test_the_matrix_works_by_keyboard_and_is_said_to_screen_readers(browser, report):
    with chromium.opened(browser, report, width=1280) as seen:
        page = seen.page
        first = page.locator(".confusion button").first
        first.focus()
        for key, cell in (("ArrowRight", (0, 1)), ("ArrowRight", (0, 3)), ("ArrowRight", (0, 3)), ("ArrowLeft", (0, 1)),
                          ("ArrowDown", (1, 1)), ("ArrowDown", (3, 1)), ("ArrowUp", (1, 1)), ("ArrowLeft", (1, 0))):
            page.keyboard.press(key)
            focused = page.evaluate("(({dataset}) => [dataset.true, dataset.predicted])(document.activeElement)")
            assert tuple(map(int, focused)) == cell
        page.keyboard.press("Enter")
        assert_gallery(page, rows_of(1, 0))
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert_gallery(page, rows_of(1, 1))
        # The outline of what has the focus is seen.
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.get_by_role("button", name="6 of 77: immature granulocyte taken for").count() == 1
        assert page.locator("#gallery-head").get_attribute("aria-live") == "polite"
        image = page.get_by_role("img", name=f"{made_report.files()[rows_of(1, 1)[0]]}: {NAMED[1]}, right").first
        assert image.count() == 1


def test_a_cell_whose_images_are_left_out_says_so(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery.data, "__kwdefaults__", {"most": 13, "budget": gallery.BUDGET})
    path = tmp_path / "report.html"
    path.write_text(report_page.page(made_report.content(), again="", classified=made_report.classified()))
    with chromium.opened(browser, path, width=400) as seen:
        cell = seen.page.locator(".confusion [data-true='2'][data-predicted='2']")
        cell.click()
        assert "not in this page" in seen.page.locator("#gallery").inner_text()
        assert seen.page.locator("#gallery figure").count() == 0
        seen.page.locator(".confusion [data-true='0'][data-predicted='0']").click()
        assert "1 of 70 are in this page" in seen.page.locator("#gallery").inner_text()
        assert seen.page.locator("#gallery figure").count() == 1
        assert seen.problems == []
