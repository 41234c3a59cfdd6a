"""The trials as text: lines for a terminal, trials.csv, and the header of best.cfg."""

import csv
import io
from collections.abc import Sequence

from bloodcell.search.space import Space, label
from bloodcell.search.study import Row

_WIDEST = 28  # characters of a value on a terminal


class Lines:
    """Lays out trials in columns, one line each, as they come.

    Args:
      space: what is searched.
    """

    def __init__(self, space: Space):
        self._names = space.names
        self._widths = []
        for dimension in space.dimensions:
            shown = [_cut(label(value)) for value in (*dimension.ends(), dimension.at(0.3333), dimension.at(0.777))]
            self._widths.append(max(map(len, (dimension.name, *shown))))

    def header(self) -> str:
        """Returns the columns' titles."""
        return self._line("trial", "state", "balanced accuracy", "time", self._names)

    def line(self, row: Row, best: Row | None) -> str:
        """Returns a trial's line; the best one so far is marked."""
        figure = "" if row.value is None else f"{row.value:.4f}"
        if row.state == "pruned" and row.last is not None:
            figure = f"({row.last:.4f})"
        state = "complete *" if best is not None and row.number == best.number else row.state
        values = [_cut(label(row.point[name])) if name in row.point else "" for name in self._names]
        text = self._line(str(row.number), state, figure, duration(row.seconds), values)
        return f"{text}  {row.line}" if row.line else text

    def _line(self, number: str, state: str, figure: str, time: str, values: Sequence[str]) -> str:
        cells = "  ".join(value.rjust(width) for value, width in zip(values, self._widths, strict=True))
        return f"{number:>5}  {state:<10}  {figure:>17}  {time:>7}  {cells}"


def said(row: Row, names: Sequence[str]) -> str:
    """Returns a trial's values, as `name=value, ...`."""
    return ", ".join(f"{name}={row.point[name]!r}" for name in names)


def csv_text(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Returns trials.csv: a row for each trial, `trial,state,balanced_accuracy,last_val_accuracy,epochs,seconds`.

    After these a column for each name of the space, then `folds` (the objective of each) and `line` (why it failed).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "balanced_accuracy", "last_val_accuracy", "epochs", "seconds", *names, "folds",
                     "line"])
    for row in rows:
        values = [label(row.point[name]) if name in row.point else "" for name in names]
        writer.writerow([row.number, row.state, "" if row.value is None else repr(row.value),
                         "" if row.last is None else repr(row.last), row.epochs, row.seconds, *values,
                         " ".join(f"{value:.6f}" for value in row.folds), row.line])
    return text.getvalue()


def duration(seconds: float) -> str:
    """Returns `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[:_WIDEST - 1] + "…"


