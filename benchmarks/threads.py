"""How a policy's rate grows with threads, each number of them in a process of its own.

XLA's pool has as many threads as TensorFlow's `intra_op_parallelism_threads`, which cannot change once it is started:
`python -m benchmarks.threads NUMBER SAMPLES SECONDS '{"case": "policy"}'` prints rows as JSON.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

NUMBERS = (1, 2, 4)


def measure(policies: Mapping[str, str], *, samples: int, seconds: float, tell: Callable[[str], None]
            ) -> list[dict[str, Any]]:
    """Returns rows as of `timing.race`, with `threads` besides, for policies by name; [] of none.

    Raises:
      RuntimeError: another process failed; its last line.
    """
    rows = []
    for number in NUMBERS if policies else ():
        tell(f"threads: {number}")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.threads", str(number), str(samples), str(seconds), json.dumps(policies)],
            check=False, text=True, capture_output=True, cwd=pathlib.Path(__file__).parents[1])
        if done.returncode:
            raise RuntimeError(f"{number} threads: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        rows += [{**row, "threads": number} for row in json.loads(done.stdout.splitlines()[-1])]
    return rows


def _race(number: int, samples: int, seconds: float, policies: Mapping[str, str]) -> list[dict[str, Any]]:
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(number)
    tf.config.threading.set_inter_op_parallelism_threads(number)

    from benchmarks import ours
    from benchmarks.timing import race
    images, backends = ours.cells(), ours.backends(lambda line: None)
    contestants = [each for case, text in policies.items() for each in ours.contestants(
        case, {by: ours.policy_function(text, by) for by in backends}, images)[:-1]]  # without the eager one
    return race("threads", contestants, samples=samples, seconds=seconds)


if __name__ == "__main__":
    print(json.dumps(_race(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4]))))
