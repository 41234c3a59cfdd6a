"""`results/peers.md`: every peer's version and exact configuration, taken from the files that run them.

The files are parsed, not imported: the page is the same where a peer is not installed. Figures belong to `report`.
"""

import ast
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import peers
from benchmarks.peers import feeds

FOLDER = pathlib.Path(peers.__file__).parent
TABLES = ("OPS", "POLICIES")  # the dictionaries whose values are configurations


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page.

    Args:
      results: by suite, for the versions and strengths that were measured.
    """
    strengths = {name: value for result in results.values() for name, value in result.get("strengths", {}).items()}
    parts = ["# The peers' configuration",
             "Written by `python -m benchmarks report` from the files in `benchmarks/peers/`; do not edit. `strength` "
             "is the argument of a peer's op: ours at 0.4 of its range, in the unit of our op's first parameter. "
             "`FILL` is grey 128, `SIDE` 96 pixels. Functions that are named and not shown are in the file."]
    for peer in peers.PEERS:
        parts += _section(peer, peer.title, results, FOLDER / f"{peer.file}.py", strengths)
    for feeder in feeds.FEEDERS:
        parts += _section(feeder, f"{feeder.title}, as an input pipeline", results,
                          FOLDER / "feeds" / f"{feeder.file}.py", strengths)
    return "\n\n".join(parts) + "\n"


def _section(peer: peers.Peer, title: str, results: Mapping[str, Mapping[str, Any]], path: pathlib.Path,
             strengths: Mapping[str, float]) -> list[str]:
    versions = {result["peers"].get(peer.name, {}).get("version") if isinstance(peer, feeds.Feeder) else
                result["versions"].get(peer.name) for result in results.values()} - {None, ""}
    place = path.relative_to(FOLDER).as_posix()
    return [f"## {title}",
            f"Measured: {', '.join(sorted(versions)) or 'not yet'} (`{peer.distribution}`). How: {peer.how}. "
            f"File: [{place}](../peers/{place}).", *_described(path, strengths)]


def _described(path: pathlib.Path, strengths: Mapping[str, float]) -> Iterator[str]:
    """Yields a file's docstring, and a table for each dictionary of configurations in it, with its constants."""
    if not path.exists():
        return
    module = ast.parse(path.read_text(encoding="utf-8"))
    yield ast.get_docstring(module) or ""
    constants = dict(_named(module))
    for name in TABLES:
        table = constants.pop(name, None)
        entries = [(str(key.value), value) for key, value in zip(table.keys, table.values, strict=True)
                   if isinstance(key, ast.Constant)] if isinstance(table, ast.Dict) else []
        if not entries:
            continue
        if name == "OPS":
            yield _table(("op", "strength", "theirs"), [
                (f"`{op}`", f"{strengths[op]:.4g}" if op in strengths else "", _code(_thing(value)))
                for op, value in entries])
        else:
            yield _table(("policy", "theirs"), [(f"`{policy}`", _code(value)) for policy, value in entries])
        used = {node.id for _, value in entries for node in ast.walk(value) if isinstance(node, ast.Name)}
        said = [f"`{constant} = {ast.unparse(value)}`" for constant, value in constants.items() if constant in used]
        if said:
            yield f"With {', '.join(said)}."


def _named(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yields the values that a module names at its top."""
    for statement in module.body:
        if isinstance(statement, ast.AnnAssign | ast.Assign) and statement.value is not None:
            for target in [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value


def _thing(value: ast.expr) -> ast.expr:
    """Returns what a configuration says: without the `lambda` around it where that ignores the strength."""
    if isinstance(value, ast.Lambda) and [argument.arg for argument in value.args.args] == ["_"]:
        return value.body
    return value


def _code(node: ast.expr) -> str:
    return f"`{ast.unparse(node)}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
                     for cells in (head, ["---"] * len(head), *rows))
