"""A rendered report passes axe-core, the accessibility checker, at both widths, with everything in it open."""

import os
import pathlib

import chromium
import made_report
import numpy as np
import pytest

from bloodcell.evaluate import plots, report_page

ROOT = pathlib.Path(__file__).parents[2]
FILE = "axe.min.js"
PLACES = [pathlib.Path(path) for path in (os.environ.get("AXE_CORE", ""), ROOT / "node_modules",
                                          "/usr/lib/node_modules", "/usr/local/lib/node_modules") if path]


def axe() -> pathlib.Path | None:
    """Returns axe-core's file: what AXE_CORE names (the file, its folder or a node_modules), or where npm puts it."""
    for place in PLACES:
        for path in (place, place / FILE, place / "axe-core" / FILE, place / "node_modules" / "axe-core" / FILE):
            if path.is_file():
                return path
    return None


pytestmark = [pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing()),
              pytest.mark.skipif(axe() is None, reason="needs axe-core: npm install --prefix FOLDER axe-core, and "
                                                       "AXE_CORE=FOLDER")]


@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_no_violation_in_a_report(tmp_path, width):
    sheet = plots.image_grid_png(np.zeros((4, 8, 8, 3)), ["a"] * 4)
    path = tmp_path / "report.html"
    path.write_text(report_page.page(
        made_report.content(corruptions=made_report.corruptions(), options=made_report.OPTIONS),
        again="python main.py", classified=made_report.classified(), history=made_report.HISTORY, augmented=sheet,
        corrupted=sheet, segmentation=sheet, explanations=made_report.explanations()))
    source = axe()
    assert source is not None
    with chromium.launched() as browser, chromium.opened(browser, path, width=width) as seen:
        for summary in seen.page.locator("summary").all():
            summary.click()
        seen.page.evaluate(source.read_text())  # by the debugger: the page's own policy lets no script in
        result = seen.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert len(result["passes"]) > 20
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in result["violations"]] == []
