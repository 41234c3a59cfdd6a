"""The registry for people: the ops as a Markdown table. The README holds it; a test compares."""

from bloodcell.augment.entry import REGISTRY, Op
from bloodcell.spec import Param


def table() -> str:
    """Returns a Markdown table with one row an op, in the order of registration."""
    rows = ["| op | what it does | parameters | primitive | equals |", "|---|---|---|---|---|"]
    for op in REGISTRY.values():
        parameters = "; ".join(_parameter(op, param) for param in op.params) or "none"
        rows.append(f"| `{op.name}` | {op.summary} | {parameters} | {op.primitive} | {op.reference} |")
    return "\n".join(rows)


def _parameter(op: Op, param: Param) -> str:
    note = ""
    if op.identity is not None and param is op.params[0]:
        drawn = "drawn up to it" if op.random_strength else "taken as given"
        note = f"; {op.identity:g} changes nothing, {drawn}"
    return f"`{param.name}={param.default!r}` ({param.range_text()}{note})"
