"""The charts: ours against the peers, in Okabe and Ito's palette, which colour-blind readers can tell apart."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import charts_roofline, charts_scaling, verdicts
from benchmarks.charts_look import INK, MUTED, axes_in, sheet

# Colour and marker: a reader who sees no colours still has the shapes.
STYLE = {
    "native": ("#000000", "*"),
    "xla": ("#D55E00", "o"), "eager": ("#E69F00", "o"), "keras": ("#0072B2", "s"), "tfa": ("#56B4E9", "D"),
    "dali": ("#009E73", "^"), "albumentations": ("#CC79A7", "v"), "albumentations_all": ("#7A4988", "v"),
    "pillow": ("#555555", "P"),
    "plain": ("#999999", "X"), "torch": ("#CC79A7", "h"),
    "memory": ("#D55E00", "s"), "device": ("#D55E00", "*"), "tfrecord": ("#D55E00", "o"), "tensors": ("#555555", "P"),
}
TITLES = {"ops": "One op at a time", "policies": "Whole policies", "input": "Feeding a training",
          "step": "Training on one batch again and again", "scaling": "Several replicas"}
OURS = {"native": "bloodcell, native op", "xla": "bloodcell, compiled", "eager": "bloodcell, eager",
        "memory": "images in memory", "device": "images on the device",
        "tfrecord": "TFRecords, streamed", "tensors": "tensors, ready"}
_CLOSE = 1.5  # times, to the next marker in a row on a logarithmic axis, from which a figure has room
Rates = Mapping[tuple[str, str], float]


def names(suite: str, result: Mapping[str, Any]) -> list[str]:
    """Returns the names of a suite's charts, without `.png`."""
    return [*([suite] if result["rows"] and suite != "trace" else []), *(["growth"] if result.get("growth") else [])]


def pngs(suite: str, result: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns a suite's charts as PNG files, by `names`."""
    return {name: _png(headed(charts_roofline.growth(result), "How cost grows: milliseconds of a batch", result,
                            sizes="256 images of 96x96, 64 where the side grows", what_of="lower quartile")
                       if name == "growth" else _main(suite, result)) for name in names(suite, result)}


def _main(suite: str, result: Mapping[str, Any]) -> Figure:
    if suite == "roofline":
        return headed(charts_roofline.limits(result), "The part of the memory's bandwidth that is reached", result)
    if suite == "scaling":
        return headed(charts_scaling.kept(result), "Several replicas", result)
    of = {(case, name): rate for (_, case, name), rate in verdicts.rates(result["rows"]).items()}
    titles = {**OURS, **{name: peer["title"] for name, peer in result["peers"].items()}}
    figure = (_ops(of, titles) if suite == "ops" else _policies(of, titles, result) if suite == "policies" else
              _input(of, titles, result) if suite == "input" else _step(of, result))
    return headed(figure, f"{TITLES[suite]}: images per second, higher is better", result)


def headed(figure: Figure, what: str, result: Mapping[str, Any], *, sizes: str = "", what_of: str = "median") -> Figure:
    """Writes over a chart what it shows, and where and when it was measured, by default at the result's sizes."""
    sizes = sizes or f"batch {result['batch']} at {result['side']}x{result['side']}"
    hardware = result["hardware"]
    where = ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *hardware["gpus"][:1]])
    figure.text(0.02, 1 - 0.30 / figure.get_figheight(), what, fontsize=14, fontweight="bold", color=INK, va="center")
    when = f"{result['date']}{', QUICK' if result.get('quick') else ''}"
    line = figure.text(0.02, 1 - 0.58 / figure.get_figheight(),
                       f"{where}; {sizes}, uint8 in; {what_of} of turns taken side by side, {when}", fontsize=9,
                       color=MUTED, va="center")
    renderer = FigureCanvasAgg(figure).get_renderer()
    while line.get_window_extent(renderer).x1 > 0.98 * figure.bbox.x1:  # some processors have long names
        line.set_fontsize(0.95 * float(line.get_fontsize()))
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def _figure(inches: float) -> tuple[Figure, Axes]:
    figure = sheet(inches)
    return figure, _axes(figure, 0.62, inches - 1.25 - 0.62)


def _axes(figure: Figure, bottom: float, inches: float) -> Axes:
    return axes_in(figure, (0.20, bottom, 0.68, inches), "x")


def _ops(of: Rates, titles: Mapping[str, str]) -> Figure:
    """A row for each op, a marker for each implementation, on a logarithmic axis; beside, ours to the fastest peer."""
    cases = sorted({case for case, _ in of}, key=lambda case: of.get((case, "xla"), 0.0))
    figure, axes = _figure(2.3 + 0.27 * len(cases))
    for place, case in enumerate(cases):
        rates = {name: of[case, name] for name in STYLE if (case, name) in of}
        axes.plot([min(rates.values()), max(rates.values())], [place, place], color="#d0d0d0", linewidth=1.2, zorder=1)
        for name, rate in rates.items():
            colour, marker = STYLE[name]
            hollow, large = name == "eager", name in ("native", "xla")
            axes.scatter(rate, place, s=95 if large else 38, marker=marker, zorder=4 if large else 3,
                         facecolor="white" if hollow else colour, edgecolor=colour if hollow else "white",
                         linewidth=1.4 if hollow else 0.7, label=titles[name] if name not in _labelled(axes, titles)
                         else None)
        peers = [rate for name, rate in rates.items() if name not in OURS]
        ours = [rate for name, rate in rates.items() if name in verdicts.COMPILED]
        if peers and ours:
            ratio = max(ours) / max(peers)
            axes.annotate(f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x", (1.05, place),
                          xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8.5,
                          color=INK if ratio >= 1 else STYLE["xla"][0], fontweight="normal" if ratio >= 1 else "bold")
    axes.annotate("ours to the\nfastest peer", (1.05, len(cases) - 0.2), xycoords=("axes fraction", "data"),
                  ha="center", va="bottom", fontsize=8, color=MUTED)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(-0.7, len(cases) - 0.3)
    axes.set_xlabel("images per second, logarithmic", color=MUTED, fontsize=9)
    _legend(figure, axes, titles)
    return figure


def _labelled(axes: Axes, titles: Mapping[str, str]) -> set[str]:
    labels = set(axes.get_legend_handles_labels()[1])
    return {name for name, title in titles.items() if title in labels}


def _policies(of: Rates, titles: Mapping[str, str], result: Mapping[str, Any]) -> Figure:
    """A bar for each row, in groups of those that do the same, on a linear axis, the figure at its end."""
    cases = list(dict.fromkeys(case for case, _ in of))
    bars = len(of)
    figure, axes = _figure(2.1 + 0.27 * bars + 0.3 * len(cases))
    longest = max(of.values(), default=1.0)
    place, ticks, labels = 0.0, [], []
    for case in reversed(cases):
        rates = sorted(((rate, name) for (each, name), rate in of.items() if each == case))
        start = place
        for rate, name in rates:
            axes.barh(place, rate, height=0.8, color=STYLE[name][0],
                      label=titles[name] if name not in _labelled(axes, titles) else None)
            theirs = result["peers"].get(name, {}).get("policies", {}).get(case)
            axes.annotate(f"{rate:,.0f}", (rate, place), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=9, color=INK, fontweight="bold" if name == "xla" else "normal")
            axes.annotate(theirs or titles[name].removeprefix("bloodcell, "), (rate, place), va="center", fontsize=8,
                          xytext=(12 + 6 * len(f"{rate:,.0f}"), 0), textcoords="offset points", color=MUTED)
            place += 1
        ticks.append((start + place - 1) / 2)
        labels.append(case)
        place += 1.1
    axes.set_yticks(ticks, labels)
    axes.set_ylim(-0.9, place - 1.2)
    axes.set_xlim(0, longest * 1.3)  # room for the longest bar's words
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("images per second", color=MUTED, fontsize=9)
    _legend(figure, axes, titles)
    return figure


def _input(of: Rates, titles: Mapping[str, str], result: Mapping[str, Any]) -> Figure:
    """Pipelines alone, a marker for each side on a logarithmic axis; under them the trainings, in bars from zero."""
    cases = list(dict.fromkeys(case for case, _ in of))
    trainings = [case for case in cases if case.startswith("training")]
    alone = [case for case in cases if case not in trainings]
    parts = {(row["case"], row["implementation"]): row["part_of_baseline"]["median"] for row in result["rows"]
             if "part_of_baseline" in row}
    bars = [(case, name, rate) for case in trainings
            for rate, name in sorted(((rate, name) for (each, name), rate in of.items() if each == case), reverse=True)]
    above, below = 0.5 * len(alone), 0.32 * len(bars)
    figure = Figure(figsize=(10.5, 1.87 + above + below + (0.75 if alone and bars else 0.0)), dpi=130,
                    facecolor="white")
    if alone:
        axes = _axes(figure, figure.get_figheight() - 1.25 - above, above)
        for place, case in enumerate(reversed(alone)):
            rates = {name: of[case, name] for name in STYLE if (case, name) in of}
            axes.plot([min(rates.values()), max(rates.values())], [place, place], color="#d0d0d0", linewidth=1.2,
                      zorder=1)
            above, last = True, 0.0
            for name, rate in sorted(rates.items(), key=lambda each: each[1]):
                colour, marker = STYLE[name]
                axes.scatter(rate, place, s=60, marker=marker, color=colour, zorder=3,
                             label=titles[name] if name not in _labelled(axes, titles) else None)
                above, last = not above or rate > _CLOSE * last, rate  # figures that would lie on one another do not
                axes.annotate(_short(rate), (rate, place), xytext=(0, 8 if above else -16),
                              textcoords="offset points", ha="center", fontsize=8.5, color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_yticks(range(len(alone)), list(reversed(alone)))
        axes.set_ylim(-0.5, len(alone) - 0.3)
        axes.margins(x=0.08)
        axes.set_xlabel("images per second of the pipeline alone, logarithmic", color=MUTED, fontsize=9)
        _legend(figure, axes, titles)
    if bars:
        _bars(_axes(figure, 0.62, below), [
            (case, rate, STYLE[name][0], f"{titles[name]}: {rate:,.0f}"
             + (f" = {parts[case, name]:.1%} of tensors, ready" if (case, name) in parts else ""))
            for case, name, rate in bars])
    return figure


def _step(of: Rates, result: Mapping[str, Any]) -> Figure:
    """Bars from zero, case by case, in the order in which the contestants were made."""
    parts = {(row["case"], row["implementation"]): row["part_of_baseline"]["median"] for row in result["rows"]
             if "part_of_baseline" in row}
    colours = [colour for colour, _ in list(STYLE.values())[1:6]]
    seen = list(dict.fromkeys(name for _, name in of))
    bars = [(case, rate, colours[seen.index(name) % len(colours)], f"{name}: {rate:,.0f}"
             + (f" = {parts[case, name]:.1%} of the first" if (case, name) in parts else ""))
            for (case, name), rate in of.items()]
    figure, axes = _figure(1.87 + 0.32 * len(bars))
    _bars(axes, bars)
    return figure


def _bars(axes: Axes, bars: Sequence[tuple[str, float, str, str]]) -> None:
    """Draws (case, rate, colour, text), downwards; the bars of a case follow one another."""
    for place, (_, rate, colour, text) in enumerate(reversed(bars)):
        axes.barh(place, rate, height=0.8, color=colour)
        inside = rate > 0.6 * max(rate for _, rate, _, _ in bars)  # there is room in the bar
        axes.annotate(text, (0 if inside else rate, place), xytext=(8, 0), textcoords="offset points", va="center",
                      fontsize=9, color="white" if inside else INK, fontweight="bold" if inside else "normal")
    cases = list(dict.fromkeys(case for case, *_ in bars))
    axes.set_yticks([(len(bars) - 1) - sum(place for place, bar in enumerate(bars) if bar[0] == case)
                     / sum(bar[0] == case for bar in bars) for case in cases], cases)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("images per second under a training step", color=MUTED, fontsize=9)


def _legend(figure: Figure, axes: Axes, titles: Mapping[str, str]) -> None:
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [title for title in titles.values() if title in found]
    columns = len(order) if len(order) < 7 else -(-len(order) // 2)  # what fits beside one another
    figure.legend([found[title] for title in order], order, loc="center left", ncols=columns, frameon=False,
                  fontsize=8.5, handletextpad=0.4, columnspacing=1.4, borderpad=0,
                  bbox_to_anchor=(0.015, 1 - 0.88 / figure.get_figheight()))


def _short(rate: float) -> str:
    """Returns a rate in three figures or so: `7,769` or `331k`; longer ones would lie on one another."""
    return f"{rate / 1000:,.0f}k" if rate >= 100_000 else f"{rate:,.0f}"
