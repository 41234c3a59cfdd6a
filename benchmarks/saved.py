"""Reading a result back, as a suite or `--json` wrote it. What is made of it belongs to `report` and `compare`."""

import json
import pathlib
from typing import Any

from bloodcell.errors import InputError


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns a result.

    Raises:
      InputError: there is no such file, or it is none of ours.
    """
    advice = "try a file that `python -m benchmarks ... --json=FILE` has written"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"expected a benchmark's result, received {path} ({error.strerror}), {advice}") from None
    except ValueError as error:  # no UTF-8, or no JSON
        raise InputError(f"expected a benchmark's result, received {path} (no JSON: {error}), {advice}") from None
    try:
        for row in result["rows"]:
            _ = row["suite"] + row["case"] + row["implementation"], row["samples"] + 0
            _ = [row["images_per_second"][name] + 0 for name in ("median", "q1", "q3")]
        whole = isinstance(result, dict) and isinstance(result["peers"], dict)
    except (TypeError, KeyError):
        whole = False
    if not whole:
        raise InputError(f"expected a benchmark's result, received {path} (JSON of something else), {advice}")
    return dict(result)
