"""From a suite's JSON to what people read: the table on the screen, `results/README.md` and the charts beside it.

How it is all measured is written once, in `benchmarks/README.md`.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import SUITES, charts, configuration, page_roofline, page_scaling, saved, verdicts
from bloodcell.errors import InputError
from bloodcell.files import write_atomically

OURS = {"native": "ours, native op", "xla": "ours, compiled", "eager": "ours, eager"}
FEEDS = {"memory": "in memory", "device": "on the device", "tfrecord": "streamed", "tensors": "tensors, ready"}
Result = dict[str, Any]


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as plain text, one a line."""
    wide = max([31, *(len(row["case"]) for row in rows)]) + 1
    text = [f"{'case':<{wide}}{'implementation':<28}{'images/s':>10}{'q1':>10}{'q3':>10}{'compile s':>11}"
            f"{'samples':>9}"]
    for row in rows:
        rate = row["images_per_second"]
        text.append(f"{row['case']:<{wide}}{row['implementation']:<28}{rate['median']:>10,.0f}{rate['q1']:>10,.0f}"
                    f"{rate['q3']:>10,.0f}{row['compile_seconds']:>11.2f}{row['samples']:>9}")
    return "\n".join(text)


def goals(judged: Sequence[verdicts.Verdict]) -> str:
    """Returns the verdicts as plain text, one a line; of goals that are not judged, how many there are."""
    lines = [f"{each.word():<11} {each.goal}: {each.figures}" for each in judged
             if each.word() != "not judged"]
    silent = len(judged) - len(lines)
    return "\n".join([*lines, *([f"not judged  {silent} goals, for want of figures"] if silent else [])])


def merge(results: Sequence[Result]) -> Result:
    """Joins the results of several suites to one document: lists and dictionaries joined, the rest of the last."""
    merged: Result = {}
    for name, value in ((name, value) for result in results for name, value in result.items()):
        merged[name] = ([*merged.get(name, []), *value] if isinstance(value, list) else
                        {**merged.get(name, {}), **value} if isinstance(value, dict) else value)
    return merged


def judge(result: Result) -> list[verdicts.Verdict]:
    """Judges the goals of all suites by what there is of them, as `merge` joins it."""
    return [*verdicts.judge(result), *page_roofline.judge(result)]


def write_json(path: pathlib.Path, result: Result) -> None:
    """Writes strict JSON: no NaN, no infinity."""
    write_atomically(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def write(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pages, and the charts of each suite whose JSON lies in the folder; returns the files.

    Raises:
      InputError: there is no result, or one that is none of ours.
    """
    results = {suite: saved.read(folder / f"{suite}.json") for suite in SUITES if (folder / f"{suite}.json").exists()}
    if not results:
        raise InputError(f"expected a folder with a suite's results, received {folder} without, "
                         f"try `python -m benchmarks ops --results={folder}` first")
    drawn = {f"{name}.png": picture for suite, result in results.items()
             for name, picture in charts.pngs(suite, result).items()}
    files = {**drawn, "peers.md": configuration.markdown(results).encode(), "README.md": markdown(results).encode()}
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def markdown(results: Mapping[str, Result]) -> str:
    """Returns the page: verdicts, and a table and charts for each suite."""
    parts = ["# Benchmark results",
             "Written by `python -m benchmarks report`; do not edit. Images per second, median of repeated runs "
             "(quartiles in the JSON beside); higher is better. [How it is measured](../README.md), and [every peer's "
             "configuration](peers.md).",
             "## Goals", _table(("goal", "verdict", "figures"), [
                 (each.goal, f"**{each.word()}**" if each.met is False else each.word(), each.figures)
                 for each in judge(merge(list(results.values())))])]
    for suite, result in results.items():
        parts += [f"## {suite.capitalize()}", *(f"![{name}]({name}.png)" for name in charts.names(suite, result)),
                  *SECTIONS[suite](result), _conditions(result)]
    return "\n\n".join(parts) + "\n"


def _ops(result: Result) -> list[str]:
    return [_rates(result), _losses(result), *_left_out(result)]


def _policies(result: Result) -> list[str]:
    memory = result.get("memory")
    return [_rates(result), _faster(result, lambda _: verdicts.COMPILED), *([
        "Compiled policies: the first compile, and memory besides input and output by XLA's buffer assignment:",
        _table(("policy", "compile, s", "extra memory, float32 batches"), [
            (each["case"], _compile_seconds(result, each["case"]), f"{each['float32_batches']:.2f}")
            for each in memory])] if memory else []), *_threads(result), *_left_out(result)]


def _threads(result: Result) -> list[str]:
    """Returns the rates by number of threads, each number in a process of its own."""
    rows = result.get("threads", [])
    numbers = sorted({row["threads"] for row in rows})
    of = {(row["case"], row["implementation"], row["threads"]): row["images_per_second"]["median"] for row in rows}
    return [
        f"Images per second by number of threads ({result['hardware']['cores']} cores), each in a process of its own:",
        _table(("policy", "implementation", *(str(number) for number in numbers)), [
            (case, OURS[name], *(f"{of[case, name, number]:,.0f}" for number in numbers))
            for case, name in dict.fromkeys((case, name) for case, name, _ in of)])] if rows else []


def _faster(result: Result, ours: Callable[[str], Sequence[str]]) -> str:
    """Names the peers that are faster than the fastest of ours that begin where they do, in a case."""
    of = {(case, name): rate for (_, case, name), rate in verdicts.rates(result["rows"]).items()}
    best = {case: max(of[case, each] for each in ours(case) if (case, each) in of)
            for case, name in of if name in ours(case)}
    lost = [f"{peer['title']} in `{case}` ({best[case] / rate:.2f}x)" for (case, name), rate in of.items()
            for peer in [result["peers"].get(name)] if peer and best.get(case, rate) < rate
            and (name != "plain" or case.startswith("pipeline"))]  # which augments nothing
    return f"Faster than ours, with our part of their speed: {', '.join(lost) or 'nobody'}."


def _left_out(result: Result) -> list[str]:
    missing = [f"{result['peers'][name]['title']} ({why})" for name, why in result["missing"].items()]
    return [f"Left out: {'; '.join(missing)}."] if missing else []


def _input(result: Result) -> list[str]:
    demand, streams = result.get("demand"), result.get("streams")
    return [_feeds(result), _faster(
        result, lambda case: ("memory", "device") if case.endswith("arrays") else ("tfrecord",)), *([
        "What part of a training's demand, the rate on tensors, each source feeds when nothing trains "
        "beside it:", _demand(result)] if demand else []), *_left_out(result), *([
        "One epoch at a batch of 64 in a process of its own, with all that TensorFlow takes (file caches not counted):",
        _table(("images", "where", "peak memory, MiB", "reading all once, s", "one epoch, s"), [
            (f"{each['images']:,}", "in memory" if each["cache"] == "memory" else "streamed",
             f"{each['peak_mib']:,}", f"{each['load_seconds']:.1f}", f"{each['epoch_seconds']:.1f}")
            for each in streams])] if streams else [])]


def _step(result: Result) -> list[str]:
    return [_steps(result)]


def _trace(result: Result) -> list[str]:
    return ["Milliseconds that augmentation takes of a step, by three clocks (quartiles in parentheses):",
            _table(("network", "`augment` in TensorBoard's trace", "the compiled policy alone",
                    "step with less step without", "of the traced step"), [
                (f"`{each['case']}`",
                 *(_quartiles(each[name], "{:.1f}") for name in ("trace_ms", "alone_ms", "difference_ms")),
                 _quartiles(each["part_of_step"], "{:.1%}")) for each in result["trace"]])]


def _titles(result: Result) -> dict[str, str]:
    return {**OURS, **{name: peer["title"] for name, peer in result["peers"].items()}}


def _rates(result: Result) -> str:
    """A row for each case, a column for each implementation, and how often the fastest peer goes into ours."""
    of = {(case, name): rate for (_, case, name), rate in verdicts.rates(result["rows"]).items()}
    names = [name for name in _titles(result) if any(name == each for _, each in of)]
    table = []
    for case in dict.fromkeys(case for case, _ in of):
        cells = [f"{of[case, name]:,.0f}" if (case, name) in of else "" for name in names]
        peers = [of[case, name] for name in names if name not in OURS and (case, name) in of]
        mine = max((of[case, name] for name in verdicts.COMPILED if (case, name) in of), default=None)
        ratio = f"{mine / max(peers):.2f}x" if peers and mine else ""
        table.append((f"`{case}`", *cells, f"**{ratio}**" if ratio and mine and mine < max(peers) else ratio))
    return _table(("case", *(_titles(result)[name] for name in names), "ours to the fastest peer"), table)


def _feeds(result: Result) -> str:
    """A row for each case, a column for each side; in a training, with its part of the rate on tensors."""
    found = {(row["case"], row["implementation"]): row for row in result["rows"]}
    titles = {**FEEDS, **{name: peer["title"] for name, peer in result["peers"].items()}}
    sides = [name for name in titles if any(name == each for _, each in found)]

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        part = f" ({row['part_of_baseline']['median']:.1%})" if "part_of_baseline" in row else ""
        return f"{row['images_per_second']['median']:,.0f}{part}"

    return _table(("case", *(titles[name] for name in sides)), [
        (f"`{case}`", *(cell(found.get((case, name))) for name in sides))
        for case in dict.fromkeys(case for case, _ in found)])


def _demand(result: Result) -> str:
    """A row for each source, a column for each training."""
    titles = {**FEEDS, **{name: peer["title"] for name, peer in result["peers"].items()}}
    of = {(each["case"], each["implementation"], each["training"]): each["part"] for each in result["demand"]}
    trainings = list(dict.fromkeys(training for *_, training in of))
    return _table(("case", "from", *(f"`{training}`" for training in trainings)), [
        (f"`{case}`", titles.get(name, name), *(
            f"{of[case, name, training]['median']:,.0%}" if (case, name, training) in of else ""
            for training in trainings))
        for case, name in dict.fromkeys((case, name) for case, name, _ in of)])


def _steps(result: Result) -> str:
    """A row for each contestant, with its part of the rate of the first of its case."""
    return _table(("case", "what the step does", "images/s", "of the first"), [
        (f"`{row['case']}`", row["implementation"], f"{row['images_per_second']['median']:,.0f}",
         f"{row['part_of_baseline']['median']:.1%}" if "part_of_baseline" in row else "")
        for row in result["rows"]])


def _quartiles(figures: Mapping[str, float], form: str) -> str:
    return "{} ({} to {})".format(*(form.format(figures[name]) for name in ("median", "q1", "q3")))


def _losses(result: Result) -> str:
    """A line for each peer: in which ops it is faster."""
    of = verdicts.rates(result["rows"])
    said = []
    for name, peer in result["peers"].items():
        slower, shared = verdicts.losses(of, name)
        if shared:
            listed = ", ".join(f"`{case}` ({ratio:.2f}x)" for case, ratio in slower) or "none"
            said.append(f"- {peer['title']}, {shared} ops in common, faster than ours in: {listed}")
    return "Losses, with our part of the other's speed:\n\n" + "\n".join(said) if said else ""


def _compile_seconds(result: Result, case: str) -> str:
    return next((f"{row['compile_seconds']:.1f}" for row in result["rows"]
                 if (row["case"], row["implementation"]) == (case, "xla")), "")


def _conditions(result: Result) -> str:
    hardware = result["hardware"]
    gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ", no GPU"
    own = {name: peer["version"] for name, peer in result["peers"].items() if peer.get("version")}
    versions = ", ".join(f"{name} {version}" for name, version in {**result["versions"], **own}.items())
    quick = "**With `--quick`: it runs, and no figure means much.** " if result.get("quick") else ""
    return (f"{quick}{hardware['cpu']}, {hardware['cores']} cores{gpus}; batch {result['batch']} at "
            f"{result['side']}x{result['side']}; {result['date']}; `{result['command']}`; {versions}.")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
                     for cells in (head, ["---"] * len(head), *rows))


SECTIONS: dict[str, Callable[[Result], list[str]]] = {
    "ops": _ops, "policies": _policies, "input": _input, "step": _step,
    "scaling": lambda result: page_scaling.section(result, _table),
    "roofline": lambda result: page_roofline.section(result, _table), "trace": _trace}
