"""What the suite `roofline` says in words: its verdicts and its tables. The charts are `charts_roofline`'s."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.growth import CLIFF
from benchmarks.verdicts import Verdict

NATIVE_PART, GPU_PART = 0.30, 0.50  # of the limit: a policy by the native op on a CPU; a single primitive on a GPU
OURS = {"native": "by the native op", "xla": "by XLA"}
ALONG = {"batch": "batch", "side": "side", "ops": "number of ops"}
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def judge(result: Mapping[str, Any]) -> list[Verdict]:
    """Judges the goals of this suite; those whose figures are missing are not judged."""
    rows = [row for row in result.get("rows", ()) if row["suite"] == "roofline" and row["case"] != "identity"]
    on_gpu = result.get("bandwidth", {}).get("device") == "GPU"
    primitives = [row for row in rows if ": " in row["case"] and on_gpu]
    policies = [row for row in rows if row["case"].startswith("randaugment") and row["implementation"] == "native"
                and not on_gpu]
    return [*(_straight(result.get("growth", ()), along, name) for name in OURS for along in ALONG),
            _reach(f"a native policy at {NATIVE_PART:.0%} of the memory bandwidth's limit on a CPU, or more", policies,
                   NATIVE_PART, "no row of the native op on a CPU"),
            _reach(f"every primitive at {GPU_PART:.0%} of the memory bandwidth's limit on a GPU, or more", primitives,
                   GPU_PART, "no row of a GPU")]


def _straight(lines: Sequence[Mapping[str, Any]], along: str, implementation: str) -> Verdict:
    goal = (f"cost {OURS[implementation]} grows with the {ALONG[along]} along a straight line, nowhere more than "
            f"{CLIFF:g}x above it")
    mine = [line for line in lines if (line["along"], line["implementation"]) == (along, implementation)]
    if not mine:
        return Verdict(goal, None, "not measured")
    steep = sorted((line for line in mine if line["cliff"]), key=lambda line: -line["deviation"])
    worst = ", ".join(f"{line['case']} ({line['deviation']:.2f}x at {line['worst']:,})" for line in steep or
                      [max(mine, key=lambda line: line["deviation"])])
    return Verdict(goal, not steep, f"{len(mine) - len(steep)} of {len(mine)} lines straight; "
                                    f"{'not' if steep else 'the furthest'}: {worst}")


def _reach(goal: str, rows: Sequence[Mapping[str, Any]], least: float, missing: str) -> Verdict:
    if not rows:
        return Verdict(goal, None, missing)
    parts = sorted((row["part_of_limit"]["median"], row["case"]) for row in rows)
    low = [(part, case) for part, case in parts if part < least] or parts[:1]
    return Verdict(goal, parts[0][0] >= least, ", ".join(f"{case}: {part:.1%}" for part, case in low))


def section(result: Mapping[str, Any], table: Table) -> list[str]:
    """Returns the suite's part of the page.

    Args:
      result: the suite's JSON.
      table: from a head and rows to a table.
    """
    measured = result["bandwidth"]
    cache = f"{measured['cache_bytes'] / 2**20:,.0f} MiB" if measured["cache_bytes"] else "unknown"
    where = "compiled, on the GPU" if measured["device"] == "GPU" else (
        f"in {measured['threads']} threads; last-level cache {cache}")
    parts = [f"Memory bandwidth {measured['bytes_per_second'] / 1e9:.1f} GB/s, bytes read and bytes written (the best "
             f"of {measured['copies']} copies of {measured['buffer_bytes'] / 2**20:,.0f} MiB, {where}). Results stay "
             "on the device. What must move is each uint8 image in and each float32 result out, once; `identity` is a "
             "program that does only that.",
             table(("case", "implementation", "images/s", "bytes an image", "of the limit", "quartiles"), [
                 (f"`{row['case']}`", row["implementation"], f"{row['images_per_second']['median']:,.0f}",
                  f"{row['bytes_per_image']:,}", f"{row['part_of_limit']['median']:.1%}",
                  f"{row['part_of_limit']['q1']:.1%} to {row['part_of_limit']['q3']:.1%}") for row in result["rows"]])]
    if result["growth"]:
        parts += [f"How cost grows: a straight line lies under the costs of a batch (a fixed part, and one in "
                  f"proportion to images, pixels or ops); a cost more than {CLIFF:g}x above it is marked.",
                  table(("case", "implementation", "with", "fixed, ms", "each", "most above the line"), [
                      (f"`{line['case']}`", line["implementation"],
                       f"{ALONG[line['along']]} {line['sizes'][0]:,} to {line['sizes'][-1]:,}",
                       f"{1e3 * line['fixed_seconds']:.2f}", _each(line), _above(line)) for line in result["growth"]])]
    return parts


def _each(line: Mapping[str, Any]) -> str:
    each = line["seconds_per_unit"]
    return {"batch": f"{1e6 * each:,.1f} us an image", "side": f"{1e9 * each:,.2f} ns a pixel",
            "ops": f"{1e3 * each:,.2f} ms an op"}[str(line["along"])]


def _above(line: Mapping[str, Any]) -> str:
    text = f"{line['deviation']:.2f}x at {line['worst']:,}"
    return f"**{text}**" if line["cliff"] else text
