"""What the suite `scaling` says in words: its table. The chart is `charts_scaling`'s."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def section(result: Mapping[str, Any], table: Table) -> list[str]:
    """Returns the paragraphs of this suite.

    Args:
      result: of the suite.
      table: from a head and rows to a table in Markdown.
    """
    found = result.get("scaling", ())
    if not found:
        return []
    devices = ", ".join(dict.fromkeys(result["devices"].values()))
    shared = any(each["best"] < each["replicas"] for each in found)
    return [
        f"Replicas: {devices}. " + (
            "They share the cores, so that all together can at best keep the rate of one; what is missing is what "
            "replication itself costs. How devices of their own would scale cannot be seen here." if shared else
            "Each has a device of its own, so that the best is as many times the rate of one."),
        table(("case", "replicas", "images/s", "of one replica's rate", "of the best", "all-reduce, part of the step",
               "the exchange alone"),
              [(f"`{each['case']}`", str(each["replicas"]), f"{each['images_per_second']['median']:,.0f}",
                f"{each['kept']['median']:.1%}", _quartiles(each["efficiency"]),
                _quartiles(each["all_reduce"]) if "all_reduce" in each else "",
                f"{each['alone']:.1%}" if "alone" in each else "") for each in found]),
        "`weak`: every replica has its own batch of the same size. `strong`: one batch is divided. The share of the "
        "all-reduce is what the step takes more than the same replicas' step without any exchange, in turns; with the "
        "exchange of the same tensors alone beside it."]


def _quartiles(figures: Mapping[str, float]) -> str:
    return "{median:.1%} ({q1:.1%} to {q3:.1%})".format(**figures)
