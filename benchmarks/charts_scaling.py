"""The chart of the suite `scaling`: the rate that is kept against what could be, and what the exchange takes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.charts_look import INK, MUTED, axes_in, sheet

STYLE = (("#0072B2", "s"), ("#D55E00", "o"), ("#009E73", "^"), ("#CC79A7", "v"))  # of the networks, in turn
KINDS = {"weak": "Weak: the same batch for every replica", "strong": "Strong: one batch, divided"}
_ASIDE = 0.06  # from one network's points to the next one's


def kept(result: Mapping[str, Any]) -> Figure:
    """Columns, weak and strong: above the part of one replica's rate, below what the all-reduce takes of the step."""
    figure = sheet(7.2)
    networks = list(dict.fromkeys(each["case"].partition(", ")[2] for each in result["scaling"]))
    found = {tuple(each["case"].split(", ", 1)): {other["replicas"]: other for other in result["scaling"]
                                                  if other["case"] == each["case"]} for each in result["scaling"]}
    rows: list[tuple[Axes, Axes]] = []
    kinds = {kind: title for kind, title in KINDS.items() if any(kind == each for each, _ in found)}
    for column, (kind, title) in enumerate(kinds.items()):
        left = 0.08 + 0.48 * column
        above = axes_in(figure, (left, 3.31, 0.42, 2.45), "y")
        below = axes_in(figure, (left, 0.65, 0.42, 1.87), "y")
        above.set_title(title, fontsize=10, color=INK, loc="left")
        if not column:
            above.set_ylabel("of one replica's images/s", color=MUTED, fontsize=9)
            below.set_ylabel("all-reduce, of the step", color=MUTED, fontsize=9)
        counts = sorted({count for (each, _), of in found.items() if each == kind for count in of})
        places = {count: place for place, count in enumerate(counts)}
        for number, network in enumerate(networks):
            of = {places[count] + _ASIDE * number: each for count, each in found.get((kind, network), {}).items()}
            colour, marker = STYLE[number % len(STYLE)]
            if number == 0 and of:
                above.plot(list(of), [each["best"] for each in of.values()], color=MUTED, linestyle="--",
                           linewidth=1.2, label="the best there can be")
            _line(above, {place: each["kept"] for place, each in of.items()}, number, network)
            _line(below, {place: each["all_reduce"] for place, each in of.items() if "all_reduce" in each}, number,
                  network)
            alone = {place: each["alone"] for place, each in of.items() if "alone" in each}
            below.scatter(list(alone), list(alone.values()), s=44, marker=marker, facecolor="white", edgecolor=colour,
                          zorder=4, label="the exchange alone" if number == 0 and alone else None)
        above.set_ylim(bottom=0, top=max(above.get_ylim()[1], 1.1))
        below.axhline(0, color=MUTED, linewidth=0.8)
        for axes in (above, below):
            axes.set_xticks(range(len(counts)), [f"{count} replica{'s' * (count > 1)}" for count in counts])
            axes.set_xlim(-0.4, len(counts) - 0.6)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        rows.append((above, below))
        if not column:
            handles, labels = above.get_legend_handles_labels()
            hollow = [pair for pair in zip(*below.get_legend_handles_labels(), strict=True)
                      if pair[1] == "the exchange alone"]
            figure.legend(handles + [pair[0] for pair in hollow], labels + [pair[1] for pair in hollow],
                          loc="center left", ncols=6, frameon=False, fontsize=8.5,
                          bbox_to_anchor=(0.015, 1 - 0.88 / figure.get_figheight()))
    for row in zip(*rows, strict=True):  # columns are compared with each other
        limits = [axes.get_ylim() for axes in row]
        for axes in row:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _line(axes: Axes, points: Mapping[float, Mapping[str, float]], number: int, label: str) -> None:
    """Draws medians with their quartiles; the figures of every second network under its points."""
    if not points:
        return
    colour, marker = STYLE[number % len(STYLE)]
    places, medians = list(points), [each["median"] for each in points.values()]
    spread = [[max(each["median"] - each["q1"], 0.0) for each in points.values()],
              [max(each["q3"] - each["median"], 0.0) for each in points.values()]]
    axes.errorbar(places, medians, yerr=spread, color=colour, marker=marker, markersize=6, linewidth=1.4, capsize=3,
                  label=label, zorder=3)
    for place, median in zip(places, medians, strict=True):
        if median != 1:  # one replica's own rate
            axes.annotate(f"{median:.0%}" if abs(median) >= 0.1 else f"{median:.1%}", (place, median), fontsize=8.5,
                          xytext=(8, -13 if number % 2 else 5), textcoords="offset points", color=INK)
