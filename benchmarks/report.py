"""From a suite's JSON to what people read: the table on the screen and `results/README.md`."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import charts, verdicts
from bloodcell.files import write_atomically

SUITES = ("ops", "policies", "input", "step")
OURS = {"xla": "ours, compiled", "eager": "ours, eager"}
FEEDS = {"memory": "in memory", "device": "on the device", "tfrecord": "streamed", "repeated": "one batch repeated"}
Result = dict[str, Any]


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as plain text, one a line."""
    text = [f"{'case':<32}{'implementation':<28}{'images/s':>10}{'q1':>10}{'q3':>10}{'compile s':>11}{'samples':>9}"]
    for row in rows:
        rate = row["images_per_second"]
        text.append(f"{row['case']:<32}{row['implementation']:<28}{rate['median']:>10,.0f}{rate['q1']:>10,.0f}"
                    f"{rate['q3']:>10,.0f}{row['compile_seconds']:>11.2f}{row['samples']:>9}")
    return "\n".join(text)


def goals(judged: Sequence[verdicts.Verdict]) -> str:
    """Returns the verdicts as plain text, one a line."""
    return "\n".join(f"{each.word():<11} {each.goal}: {each.figures}" for each in judged)


def merge(results: Sequence[Result]) -> Result:
    """Joins the results of several suites to one document: rows and memory in a row, the rest of the last."""
    merged = dict(results[-1])
    merged["rows"] = [row for result in results for row in result["rows"]]
    for name in ("memory", "streams"):
        merged[name] = [each for result in results for each in result.get(name, [])]
    return merged


def write_json(path: pathlib.Path, result: Result) -> None:
    """Writes strict JSON: no NaN, no infinity."""
    write_atomically(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def write(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes README.md and a chart for each suite whose JSON lies in the folder; returns the files."""
    results = {suite: json.loads((folder / f"{suite}.json").read_text())
               for suite in SUITES if (folder / f"{suite}.json").exists()}
    written = []
    for suite, result in results.items():
        written.append(folder / f"{suite}.png")
        write_atomically(written[-1], charts.png(suite, result))
    if results:
        written.append(folder / "README.md")
        write_atomically(written[-1], markdown(results).encode())
    return written


def markdown(results: Mapping[str, Result]) -> str:
    """Returns the page: verdicts, a table and a chart for each suite, and how it was measured."""
    everything = merge(list(results.values()))
    judged = verdicts.judge(everything["rows"], everything["memory"], everything["streams"])
    parts = ["# Benchmark results",
             "Written by `python -m benchmarks`; do not edit. Images per second, median of repeated runs (quartiles in "
             "the JSON beside); higher is better.",
             "## Goals", _table(("goal", "verdict", "figures"), [
                 (each.goal, f"**{each.word()}**" if each.met is False else each.word(), each.figures)
                 for each in judged])]
    for suite, result in results.items():
        parts += [f"## {suite.capitalize()}", f"![{suite}]({suite}.png)",
                  _feeds(result) if suite == "input" else _steps(result) if suite == "step" else _rates(result)]
        if suite == "ops":
            parts.append(_losses(result))
        if result.get("memory"):
            parts += ["Compiled policies: the first compile, and memory besides input and output by XLA's buffer "
                      "assignment:",
                      _table(("policy", "compile, s", "extra memory, float32 batches"), [
                          (each["case"], _compile_seconds(result, each["case"]), f"{each['float32_batches']:.2f}")
                          for each in result["memory"]])]
        if result.get("streams"):
            parts += ["One epoch at a batch of 64 in a process of its own, with all that TensorFlow takes (file caches "
                      "not counted):",
                      _table(("images", "where", "peak memory, MiB", "reading all once, s", "one epoch, s"), [
                          (f"{each['images']:,}", "in memory" if each["cache"] == "memory" else "streamed",
                           f"{each['peak_mib']:,}", f"{each['load_seconds']:.1f}", f"{each['epoch_seconds']:.1f}")
                          for each in result["streams"]])]
        parts.append(_conditions(result))
    parts += ["## Method", _METHOD]
    raced = [result for suite, result in results.items() if suite not in ("input", "step")]
    if raced:  # no peer takes part in the others: which of them were installed for these says nothing about the figures
        parts.append(_peers(merge(raced)))
    return "\n\n".join(parts) + "\n"


_METHOD = """\
Everybody starts with the same rendered cells, uint8 in memory, and ends with uint8 or float32 images in host memory. A
first call (tracing, compiling) is timed apart and a second warms up; then the contestants of a case take turns, there
and back (A B C, C B A), so that a busy machine slows them alike and nobody always follows the same one. In `ops`, a
case is an op at 0.4 of its range for all samples; in `policies`, all take turns in one round; in `input`, the same
images come in the same order from memory, from the device, where the set lies and to which only positions travel, and
from TFRecords (512 rendered cells, turned, rolled, lighter or darker each time), alone or into the augmented step of a
network, and the first read, which checks the files, is not timed. `one batch repeated` is the same step without any
input, as in `step`, where contestants differ in what the step does and the first of a case does the least; the others'
parts of its rate are medians over the turns, each of the runs of that turn. Slow contestants have fewer runs
(`samples` in the JSON), never fewer than three. A run lasts a fifth of a second at least, over as many batches as that
takes: what follows a pause or somebody else's work is slow at first. Pipelines, which work ahead, begin and end within
the run."""


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
        mine = of.get((case, "xla"))
        ratio = f"{mine / max(peers):.2f}x" if peers and mine else ""
        table.append((f"`{case}`", *cells, f"**{ratio}**" if ratio and mine and mine < max(peers) else ratio))
    return _table(("case", *(_titles(result)[name] for name in names), "ours to the fastest peer"), table)


def _feeds(result: Result) -> str:
    """A row for each case, a column for each side; in a training, with its part of the rate of one batch repeated."""
    found = {(row["case"], row["implementation"]): row for row in result["rows"]}
    sides = [name for name in FEEDS if any(name == each for _, each in found)]

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        part = f" ({row['part_of_baseline']['median']:.1%})" if "part_of_baseline" in row else ""
        return f"{row['images_per_second']['median']:,.0f}{part}"

    return _table(("case", *(FEEDS[name] for name in sides)), [
        (f"`{case}`", *(cell(found.get((case, name))) for name in sides))
        for case in dict.fromkeys(case for case, _ in found)])


def _steps(result: Result) -> str:
    """A row for each contestant, with its part of the rate of the first of its case."""
    return _table(("case", "what the step does", "images/s", "of the first"), [
        (f"`{row['case']}`", row["implementation"], f"{row['images_per_second']['median']:,.0f}",
         f"{row['part_of_baseline']['median']:.1%}" if "part_of_baseline" in row else "")
        for row in result["rows"]])


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
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (f"{hardware['cpu']}, {hardware['cores']} cores{gpus}; batch {result['batch']} at "
            f"{result['side']}x{result['side']}; {result['date']}; `{result['command']}`; {versions}.")


def _peers(result: Result) -> str:
    table = []
    for name, peer in result["peers"].items():
        policies = "; ".join(f"{theirs} for `{case}`" for case, theirs in peer["policies"].items())
        table.append((peer["title"], result["missing"].get(name, peer["how"]), policies))
    return _table(("peer", "how it runs", "policies"), table)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
                     for cells in (head, ["---"] * len(head), *rows))
