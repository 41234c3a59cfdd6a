"""The charts of the suite `roofline`: parts of the bandwidth's limit, and how cost grows, against straight lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.charts_look import GRID, INK, LINE, MUTED, axes_in, sheet
from benchmarks.growth import CLIFF

STYLE = {"xla": ("#D55E00", "o", "compiled by XLA"), "native": ("#0072B2", "s", "native op")}  # as in `charts`
STEEP = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of the lines with a cliff, in turn
AXES = {"batch": "images in the batch", "side": "side, pixels", "ops": "ops an image, n"}
TITLES = {"batch": "Batch", "side": "Side", "ops": "Number of ops: randaugment(n, 9)"}
NAMED = 8  # lines of a panel that are all named beside it; of more, those that bend


def limits(result: Mapping[str, Any]) -> Figure:
    """A bar for each case, from zero to its part of the limit; primitives above, policies below."""
    rows = result["rows"]
    best: dict[str, float] = {}
    for row in rows:
        best[row["case"]] = max(best.get(row["case"], 0.0), row["part_of_limit"]["median"])
    names = [name for name in STYLE if any(row["implementation"] == name for row in rows)]
    of = {(row["case"], row["implementation"]): row for row in rows}
    order = sorted(best, key=lambda case: (_kind(case), -best[case]))

    above = 1.15 if len(names) > 1 else 0.85
    figure = sheet(above + 0.62 + 0.3 * len(rows) + 0.12 * len(order))
    axes = axes_in(figure, (0.20, 0.62, 0.74, figure.get_figheight() - above - 0.62), "x")
    longest, place, ticks = max(row["part_of_limit"]["q3"] for row in rows), 0.0, []
    for number, case in enumerate(order):
        if number and _kind(case) != _kind(order[number - 1]):
            place -= 0.6
        start = place
        for name in (each for each in names if (case, each) in of):
            row, part = of[case, name], of[case, name]["part_of_limit"]
            axes.barh(place, part["median"], height=0.8, color=STYLE[name][0])
            axes.plot([part["q1"], part["q3"]], [place, place], color=INK, linewidth=1.2)
            axes.annotate(f"{part['median']:.1%}", (max(part["median"], part["q3"]), place), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=9, color=INK, fontweight="bold")
            axes.annotate(f"{row['images_per_second']['median']:,.0f} images/s",
                          (max(part["median"], part["q3"]), place), xytext=(46, 0), textcoords="offset points",
                          va="center", fontsize=8, color=MUTED)
            place -= 1
        ticks.append((start + place + 1) / 2)
        place -= 0.2 if len(names) > 1 else 0.0
    axes.set_yticks(ticks, order)
    axes.set_ylim(place + 0.4, 0.7)
    axes.set_xlim(0, 1.2 * longest)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    measured = result["bandwidth"]
    axes.set_xlabel(f"of the images/s at which {rows[0]['bytes_per_image']:,} bytes an image would take all of the "
                    f"{measured['bytes_per_second'] / 1e9:.1f} GB/s that a copy reaches; lines: quartiles",
                    color=MUTED, fontsize=9)
    if len(names) > 1:
        figure.legend([Patch(color=STYLE[name][0]) for name in names], [STYLE[name][2] for name in names],
                      loc="center left", ncols=len(names), frameon=False, fontsize=8.5,
                      bbox_to_anchor=(0.015, 1 - 0.88 / figure.get_figheight()))
    return figure


def growth(result: Mapping[str, Any]) -> Figure:
    """A panel for each kind of size: what a batch costs, on logarithmic axes, over the straight line under it."""
    kinds = [along for along in AXES if any(line["along"] == along for line in result["growth"])]
    figure = sheet(1.0 + 5.4 * len(kinds))
    for number, along in enumerate(kinds):
        bottom = 0.62 + 5.4 * (len(kinds) - 1 - number)
        axes = axes_in(figure, (0.09, bottom, 0.55, 4.35), "both")
        axes.set_title(TITLES[along], loc="left", fontsize=11, fontweight="bold", color=INK)
        _panel(axes, along, [line for line in result["growth"] if line["along"] == along],
               several=len({line["implementation"] for line in result["growth"]}) > 1)
    figure.text(0.02, 1 - 0.88 / figure.get_figheight(),
                f"Dotted: the straight line under each (a fixed part and one in proportion). In colour: more than "
                f"{CLIFF:g}x above it somewhere, where the ring is. All lines are in the results' table.",
                fontsize=8.5, color=MUTED, va="center")
    return figure


def _panel(axes: Axes, along: str, lines: Sequence[Mapping[str, Any]], *, several: bool) -> None:
    ends, steep = [], 0
    for line in sorted(lines, key=lambda each: -each["deviation"]):
        places, seconds, units = (np.asarray(line[name], float) for name in ("sizes", "seconds", "units"))
        colour = STEEP[steep % len(STEEP)] if line["cliff"] else LINE
        steep += line["cliff"]
        over = 3 if line["cliff"] else 2
        dense = np.geomspace(units[0], units[-1], 60)
        shown = np.sqrt(dense / units[0]) * places[0] if along == "side" else dense
        axes.plot(shown, 1e3 * (line["fixed_seconds"] + line["seconds_per_unit"] * dense), color=colour, linewidth=1,
                  linestyle=":", zorder=over)
        axes.plot(places, 1e3 * seconds, color=colour, linewidth=1.3, zorder=over, markersize=4.5,
                  marker=STYLE[line["implementation"]][1], markeredgecolor="white", markeredgewidth=0.6)
        if line["cliff"]:
            at = line["sizes"].index(line["worst"])
            axes.plot(places[at], 1e3 * seconds[at], marker="o", markersize=11, markerfacecolor="none",
                      markeredgecolor=colour, markeredgewidth=1.3, zorder=over)
        name = f"{line['case']}, {STYLE[line['implementation']][2]}" if several else line["case"]
        if line["cliff"] or len(lines) <= NAMED:
            ends.append((1e3 * seconds[-1], f"{name}  {line['deviation']:.2f}x", colour, line["cliff"]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({size for line in lines for size in line["sizes"]})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.ptp(np.log10(axes.get_ylim())) < 2.5 else (1,)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_xlabel(AXES[along], color=MUTED, fontsize=9)
    axes.set_ylabel("milliseconds a batch", color=MUTED, fontsize=9)
    _labels(axes, ends)


def _labels(axes: Axes, ends: Sequence[tuple[float, str, str, bool]]) -> None:
    """Writes each line's name beside its end, the names no closer to one another than they are high."""
    low, high = np.log(axes.get_ylim())
    apart = 0.042 * (high - low)
    ordered = sorted(ends)
    places = [float(np.log(end)) for end, *_ in ordered]
    for _ in range(200):  # pushes neighbours apart, half each, until none lie on one another
        for at in range(len(places) - 1):
            short = apart - (places[at + 1] - places[at])
            if short > 0:
                places[at] -= short / 2
                places[at + 1] += short / 2
    for (end, text, colour, bold), place in zip(ordered, places, strict=True):
        axes.annotate(text, (1.0, end), xytext=(1.06, (place - low) / (high - low)),
                      xycoords=("axes fraction", "data"), textcoords="axes fraction", va="center", fontsize=8,
                      color=colour if bold else MUTED, fontweight="bold" if bold else "normal",
                      arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0,
                                  "relpos": (0.0, 0.5)})


def _kind(case: str) -> int:
    """Returns 0 for what only converts, 1 for a primitive, 2 for a policy."""
    return 1 if ": " in case else 0 if case == "identity" else 2
