"""`python -m benchmarks {ops,policies,input,step,all,report}`: ours against the libraries people use, side by side.

`input` and `step` are ours alone: images in memory, on the device, and in TFRecords that are streamed, against a
training that reads nothing; and what augmentation, precision and compilation cost such a training.

Prints a table and the verdicts on the goals; writes strict JSON (--json), and a page with charts (--results). Peers
that are not installed (`pip install -e '.[benchmarks,addons]'`) are named and left out. `report` only draws the page
and the charts again, from the JSON in the folder.
"""

import argparse
import importlib
import os
import pathlib
import platform
import re
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SUITES = ("ops", "policies", "input", "step")
RESULTS = pathlib.Path("benchmarks/results")


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


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, received {text!r}: {error}") from None
    return text


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=(*SUITES, "all", "report"))
    parser.add_argument("--json", type=pathlib.Path, help="also write rows, versions and hardware to this file")
    parser.add_argument("--results", type=pathlib.Path, nargs="?", const=RESULTS,
                        help=f"also write each suite's JSON and chart and a page to this folder (default {RESULTS})")
    parser.add_argument("--samples", type=int, default=15, help="timed runs of each contestant, at most (default 15)")
    parser.add_argument("--seconds", type=float,
                        help="seconds of a contestant's timed runs (default 1 in ops, 5 in policies, 60 in the others)")
    parser.add_argument("--only", type=_pattern, default="", help="only cases in whose names this expression occurs")
    args = parser.parse_args(argv)
    if args.samples < 1:
        parser.error(f"--samples: expected 1 or more, received {args.samples}")
    if args.seconds is not None and not 0 < args.seconds < float("inf"):
        parser.error(f"--seconds: expected more than 0, received {args.seconds}")
    return args


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Runs what the command line asks for."""
    args = _arguments(argv)
    from benchmarks import report
    from bloodcell.errors import InputError
    try:
        if args.suite == "report":
            for path in report.write(args.results or RESULTS):
                print(path)
        else:
            _run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def _run(args: argparse.Namespace) -> None:
    import numpy as np
    import tensorflow as tf

    from benchmarks import BATCH, SIDE, peers, report, verdicts
    present, missing = peers.available()
    for peer in peers.PEERS:
        if peer.name in missing:
            _tell(f"{peer.title}: {missing[peer.name]}; the benchmark goes on without it")
    about = {
        "date": time.strftime("%Y-%m-%d"), "hardware": _hardware(), "batch": BATCH, "side": SIDE,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__,
                     **{peer.name: peer.version() for peer in peers.PEERS if peer.name in present}},
        "peers": {peer.name: {"title": peer.title, "how": peer.how, "policies": {
            case: title for case, (title, _) in present[peer.name].POLICIES.items()} if peer.name in present else {}}
            for peer in peers.PEERS},
        "missing": missing,
    }
    results = []
    for suite in SUITES if args.suite == "all" else (args.suite,):
        module = importlib.import_module(f"benchmarks.{suite}")
        found = module.run(present, samples=args.samples, seconds=args.seconds or module.SECONDS, only=args.only,
                           tell=_tell)
        results.append({"command": _command(args, suite), **about, **found})
        print(report.lines(found["rows"]), flush=True)
        if args.results:
            report.write_json(args.results / f"{suite}.json", results[-1])
    merged = report.merge(results)
    print(report.goals(verdicts.judge(merged["rows"], merged["memory"], merged["streams"])))
    if args.json:
        report.write_json(args.json, {**merged, "command": _command(args, args.suite)})
    if args.results:
        for path in report.write(args.results):
            _tell(f"wrote {path}")


def _command(args: argparse.Namespace, suite: str) -> str:
    parts = [f"python -m benchmarks {suite} --samples={args.samples}"]
    if args.seconds is not None:
        parts.append(f"--seconds={args.seconds:g}")
    if args.only:
        parts.append(f"--only='{args.only}'")
    return " ".join(parts)


if __name__ == "__main__":
    main()
