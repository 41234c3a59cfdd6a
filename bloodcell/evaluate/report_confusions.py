"""The report's section on which classes are confused: the matrix, the commonest mistakes, and room for their images.

What a click on a cell does is in `pages/report.js`; which images it can show, `gallery` decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.evaluate import report_words
from bloodcell.evaluate.pages import escape
from bloodcell.evaluate.report_words import name

MOST_CLASSES = 40  # of a matrix; of more classes the page lists what is confused
LISTED, LISTED_ALONE = 8, 100  # confusions, beside the matrix and in its place

_RIGHT = (0.5, 0.8, 0.9, 0.95)  # share of a class from which on a cell of the diagonal is darker
_WRONG = (0.01, 0.02, 0.05, 0.10, 0.20, 0.40)  # the same beside the diagonal


def section(report: Mapping[str, Any], shown: Mapping[str, Any] | None) -> str:
    """Returns the section's HTML.

    Args:
      report: JSON values as `report.write` takes them.
      shown: of `gallery.data`; None: no images are behind the cells.
    """
    matrix = np.asarray(report["confusion"])
    names = [name(each) for each in report["per_class"]]
    found, live = report_words.confusions(report), shown is not None
    wrong = int(matrix.sum() - np.trace(matrix))
    small = len(names) <= MOST_CLASSES
    how = " Choose a number to see the images behind it; arrow keys go from one to the next." if live else ""
    grid = ("<p>Rows are the true classes, columns the names that the model gave: on the diagonal it is right."
            f"{how}</p>"
            f"{_matrix(matrix, names, live=live)}{_LEGEND}") if small else ""
    most = LISTED if small else LISTED_ALONE
    rows = [_confusion(names, row, live=live) for row in found[:most]]
    rarer = len(found) - most
    more = f'<p class="small">and {rarer:,} rarer kind{"s" if rarer > 1 else ""} of mistake</p>' if rarer > 0 else ""
    every = (f'<p><button type="button" class="all" data-all="wrong" aria-pressed="false">Show all {wrong:,} mistakes, '
             "the surest first</button></p>") if live and wrong > 1 else ""
    listed = f'<h3>The commonest mistakes</h3><ol class="mistakes">{"".join(rows)}</ol>{more}{every}' if found else \
        "<h3>No mistakes</h3><p>Every image got its true class.</p>"
    panel = f"{_PANEL}{_in_page(shown, matrix)}" if shown else ""
    both = f'<div class="matrix"><div>{grid}</div><div>{listed}</div></div>' if small else f"<div>{listed}</div>"
    return both + panel


_PANEL = ('<div id="gallery" role="region" aria-label="images of the chosen cell"><div id="gallery-head" '
          'aria-live="polite"><p class="small">The images appear here; they need JavaScript.</p></div>'
          '<div id="gallery-images"></div><p id="gallery-more"></p></div>')
_LEGEND = ('<p class="small legend"><span class="key r4"></span><span class="key r1"></span> right: darker where more '
           'of the class is found. <span class="key w1"></span><span class="key w3"></span><span class="key w6"></span>'
           " mistaken: darker where a larger share of the class is.</p>")


def _matrix(matrix: np.ndarray, names: Sequence[str], *, live: bool) -> str:
    head = "".join(f'<th scope="col"><span>{escape(each)}</span></th>' for each in names)
    rows = []
    for true, (label, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        cells = "".join(_cell(names, true, predicted, count, sum(counts), live=live)
                        for predicted, count in enumerate(counts))
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return ('<div class="scroll"><table class="confusion"><thead><tr><th scope="col">true class</th>'
            f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _cell(names: Sequence[str], true: int, predicted: int, count: int, support: int, *, live: bool) -> str:
    if not count:
        return '<td class="zero">0</td>'
    kind = shade("r", count / support, _RIGHT) if true == predicted else shade("w", count / support, _WRONG)
    if not live:
        return f'<td class="{kind}">{count:,}</td>'
    said = f"{names[true]} named rightly" if true == predicted else f"{names[true]} taken for {names[predicted]}"
    return (f'<td class="{kind}"><button type="button" data-true="{true}" data-predicted="{predicted}" '
            f'aria-pressed="false" aria-label="{count:,} of {support:,}: {escape(said)}">{count:,}</button></td>')


def _confusion(names: Sequence[str], row: tuple[int, int, int, int], *, live: bool) -> str:
    true, predicted, images, support = row
    said = escape(f"{names[true]} taken for {names[predicted]}")
    count = f'<span class="count">{images:,} of {support:,} ({images / support:.1%})</span>'
    if not live:
        return f"<li>{said} {count}</li>"
    return (f'<li><button type="button" class="link" data-true="{true}" data-predicted="{predicted}" '
            f'aria-pressed="false">{said}</button> {count}</li>')


def _in_page(shown: Mapping[str, Any], matrix: np.ndarray) -> str:
    """How many of the images the page holds."""
    total, wrong = int(matrix.sum()), int(matrix.sum() - np.trace(matrix))
    here = sum(cell[3] for cell in shown["cells"])
    wrong_here = sum(cell[3] for cell in shown["cells"] if cell[0] != cell[1])
    if here == total:
        said = f"All {total:,} images are in this page."
    else:
        of_wrong = f"all {wrong:,}" if wrong == wrong_here else f"of the {wrong:,} wrong ones the surest {wrong_here:,}"
        said = (f"{here:,} of {total:,} images are in this page, so that it stays small: {of_wrong}"
                f"{' wrong ones' if wrong == wrong_here else ''}, and of the right ones of each class the least sure.")
    return f'<p class="small">{escape(said)}</p>'


def shade(prefix: str, share: float, steps: Sequence[float]) -> str:
    """Returns the class of the style for a share: `prefix` and how many of the steps, which rise, it has reached."""
    return f"{prefix}{int(np.searchsorted(steps, share, side='right'))}"
