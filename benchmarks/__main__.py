"""`python -m benchmarks {policies} [--json=FILE] [--samples=N]`: prints one table and, if asked, writes strict JSON."""

import argparse
import importlib
import json
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SUITES = ("policies",)


def _hardware() -> dict[str, object]:
    import tensorflow as tf
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def _table(rows: list[dict]) -> str:
    lines = [f"{'case':<28}{'implementation':<16}{'images/s':>10}{'q1':>10}{'q3':>10}{'compile s':>11}"]
    for row in rows:
        rate = row["images_per_second"]
        lines.append(f"{row['case']:<28}{row['implementation']:<16}{rate['median']:>10,.0f}{rate['q1']:>10,.0f}"
                     f"{rate['q3']:>10,.0f}{row['compile_seconds']:>11.2f}")
    return "\n".join(lines)


def main() -> None:
    """Runs one suite."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows, versions and hardware here")
    parser.add_argument("--samples", type=int, default=15, help="timed runs of each contestant (default 15)")
    args = parser.parse_args()
    if args.samples < 1:
        parser.error(f"--samples: expected 1 or more, received {args.samples}")

    import keras
    import numpy as np
    import tensorflow as tf

    from benchmarks import timing
    from bloodcell.errors import InputError
    from bloodcell.files import write_atomically
    contestants = importlib.import_module(f"benchmarks.{args.suite}").contestants()
    rows = timing.race(args.suite, contestants, samples=args.samples,
                       tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(_table(rows))
    if args.json:
        result = {
            "command": f"python -m benchmarks {args.suite} --samples={args.samples}",
            "date": time.strftime("%Y-%m-%d"), "hardware": _hardware(),
            "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                         "keras": keras.__version__, "numpy": np.__version__},
            "rows": rows}
        try:
            write_atomically(args.json, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        except InputError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
