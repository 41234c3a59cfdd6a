"""What a compiled policy needs besides its input and output, from XLA's own buffer assignment.

XLA writes it where `XLA_FLAGS` says when the process starts, so the policies are compiled once more in a process of
their own: `python -m benchmarks.memory '{"name": "policy"}' FOLDER` prints JSON.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks import BATCH, SIDE

FLOAT32_BATCH = BATCH * SIDE * SIDE * 3 * 4  # bytes
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)


def measure(policies: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns, for each policy by name, `case`, `bytes` and `float32_batches` (of BATCH images) that it needs beside.

    Raises:
      RuntimeError: the other process failed; its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(policies), folder], check=False, text=True,
            capture_output=True, cwd=pathlib.Path(__file__).parents[1], env={**os.environ, "XLA_FLAGS": flags.strip()})
    if done.returncode:
        raise RuntimeError(f"no memory figures: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def extra_bytes(assignment: str) -> int:
    """Sums the allocations of a buffer assignment's text that are neither a parameter nor part of the output."""
    return sum(int(size) for size, what in _ALLOCATION.findall(assignment)
               if not what.startswith("parameter") and "live-out" not in what)


def _compile_all(policies: Mapping[str, str], folder: pathlib.Path) -> list[dict[str, Any]]:
    import tensorflow as tf

    from benchmarks import ours
    images, ids = tf.zeros([BATCH, SIDE, SIDE, 3], tf.uint8), tf.range(BATCH, dtype=tf.int64)
    found, seen = [], set[pathlib.Path]()
    for case, text in policies.items():
        program = tf.function(ours.policy_function(text), jit_compile=True, autograph=False)
        program(images, ids, tf.constant(0, tf.int64))
        written = set(folder.glob("*buffer-assignment.txt")) - seen
        seen |= written
        most = max(extra_bytes(file.read_text()) for file in written)
        found.append({"case": case, "bytes": most, "float32_batches": round(most / FLOAT32_BATCH, 2)})
    return found


if __name__ == "__main__":
    print(json.dumps(_compile_all(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))))
