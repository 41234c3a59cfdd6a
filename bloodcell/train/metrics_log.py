"""`metrics.jsonl`: one JSON object per epoch, in order, each epoch once even after a resume.

What the numbers are is up to `loop`.
"""

import json
import pathlib
from typing import Any

from bloodcell.errors import InputError
from bloodcell.files import write_atomically

FILE = "metrics.jsonl"


def append(run_dir: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds a line and flushes it; raises InputError where the disk refuses."""
    try:
        with open(run_dir / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {run_dir / FILE}: {error.strerror}; expected a writable folder with free "
                         "space, try another --workdir") from None


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
