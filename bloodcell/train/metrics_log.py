"""`metrics.jsonl`: one JSON object per epoch, in order, each epoch once even after a resume.

What the numbers are is up to `loop`.
"""

import json
import pathlib
from typing import Any

from bloodcell.files import append_line, write_atomically

FILE = "metrics.jsonl"


def append(run_dir: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds a line and syncs it to disk; raises InputError where the disk refuses."""
    append_line(run_dir / FILE, json.dumps(record))


def keep_until(run_dir: pathlib.Path, epoch: int) -> None:
    """Drops what came after an epoch (0: everything), and a line that a killed process left half written."""
    path = run_dir / FILE
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["epoch"] <= epoch:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, lambda file: file.writelines(line.encode() for line in kept))
