"""study.html: what a search has tried, what mattered, and how to go on. One file; see `evaluate.pages`.

Pictures are drawn in `pictures`; here they are only laid out.
"""

from collections.abc import Mapping, Sequence

from bloodcell.evaluate import pages
from bloodcell.evaluate.pages import escape
from bloodcell.search import pictures
from bloodcell.search.space import Space, label
from bloodcell.search.study import Row
from bloodcell.search.table import duration

_LONGEST = 60  # characters of a value or a line in the table
_BESIDE = 4  # names at most for which the picture of all stands beside those of each
_FEW = "Too few complete trials, or all alike, to say which name mattered."


def page(rows: Sequence[Row], space: Space, importances: Mapping[str, float], *, folder: str,
         settings: Mapping[str, str]) -> str:
    """Returns the whole file.

    Args:
      rows: all trials.
      space: what was searched.
      importances: of `Study.importances`.
      folder: of the search, for the commands.
      settings: names and values of how it was searched.
    """
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    best = max(complete, key=lambda row: (row.value or 0.0, -row.number), default=None)
    counts = {state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "failed", "killed")}
    headline = pages.figures([
        ("n/a" if best is None else f"{best.value:.4f}", "best balanced accuracy on validation",
         "" if best is None else f"trial {best.number}"),
        (f"{counts['complete']}", "complete trials"), (f"{counts['pruned']}", "pruned"),
        (f"{counts['failed']}", "failed"), (duration(sum(row.seconds for row in rows)), "of training"),
        *([(f"{counts['killed']}", "killed, and tried again")] if counts["killed"] else [])])
    return pages.document(f"bloodcell search: {folder}", f"""<h1>Search in {escape(folder)}</h1>
<p class="sub">{escape(space)}</p>
<p class="note">Not for clinical use. The best of many trials is chosen on validation, so its figure there flatters it:
measure the final training on images that no trial has seen.</p>
{headline}
{_best(best, space, folder) if best else "<p>No trial has finished yet.</p>"}
{_drawn(rows, complete, space, importances)}
<h2>Trials</h2>{_table(rows, space)}
<h2>Settings</h2>{pages.settings(settings)}
""")


def _best(best: Row, space: Space, folder: str) -> str:
    values = [(dimension.name, label(best.point[dimension.name]), str(dimension).partition("=")[2])
              for dimension in space.dimensions]
    folds = (f"<p class=\"small\">Of the folds: {', '.join(f'{value:.4f}' for value in best.folds)}.</p>"
             if best.folds else "")
    return f"""<h2>The best: trial {best.number}</h2>{pages.table(("name", "value", "of"), values)}{folds}
<p>The flagfile best.cfg has these values and all other flags of the search:</p>
<pre>python main.py --flagfile={escape(folder)}/best.cfg --workdir={escape(folder)}-best</pre>"""


def _drawn(rows: Sequence[Row], complete: Sequence[Row], space: Space, importances: Mapping[str, float]) -> str:
    if not complete:
        return ""
    mattered = (_image(pictures.importances_png(importances), "share of the variance that each name explains")
                + "<p class=\"small\">By functional ANOVA (Hutter et al. 2014) of the complete trials; with few of "
                  "them it is a hint.</p>" if importances else f"<p class=\"small\">{_FEW}</p>")
    slices = "".join(f"<div>{_image(pictures.slice_png(rows, dimension), f'balanced accuracy by {dimension.name}')}"
                     "</div>" for dimension in space.dimensions)
    lines = (f"<div>{_image(pictures.parallel_png(rows, space), 'each trial as a line through its values')}</div>"
             if len(space.dimensions) > 1 else "")
    beside, below = (lines, "") if len(space.dimensions) <= _BESIDE else ("", lines)
    return f"""<div class="pair"><div><h2>Course</h2>
{_image(pictures.history_png(rows), 'balanced accuracy by trial, and the best so far')}</div>
<div><h2>What mattered</h2>{mattered}</div></div>
<h2>Values</h2><p class="small">Of complete trials: by each name, later trials darker, and as lines through all names,
better trials darker.</p><div class="pair">{slices}{beside}</div>{below}"""


def _table(rows: Sequence[Row], space: Space) -> str:
    order = sorted(rows, key=lambda row: (row.value is None, -(row.value or 0.0), row.number))
    failed = any(row.line for row in rows)
    header = ("trial", "state", "balanced accuracy", "last epoch's accuracy", "epochs", "time", *space.names,
              *(["why"] if failed else []))
    return pages.table(header, [
        (str(row.number), row.state, _figure(row.value), _figure(row.last), str(row.epochs), duration(row.seconds),
         *(_cut(label(row.point[name])) if name in row.point else "" for name in space.names),
         *([_cut(row.line)] if failed else [])) for row in order])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST - 1] + "…"


def _image(png: bytes, description: str) -> str:
    return pages.image(pages.data_uri(png, "png"), description)
