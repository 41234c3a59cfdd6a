"""`python -m benchmarks COMMAND`: how fast this is, beside the libraries people use. benchmarks/README.md says how.

  ops, policies   every op and the policies against the peers
  input           feeding a training: where the images lie, and other people's pipelines
  step            what augmentation, precision and compilation take of a training step
  scaling         several replicas
  roofline        how far from what the memory allows, and how cost grows
  trace           whether TensorBoard's profiler and the clock agree; `trace FOLDER` reads a run's trace
  all             all of these; `all --quick` in minutes
  report          draws the page and the charts again, from the JSON in the folder
  compare         two results: are we slower against anybody?
  export          the compiled programs, for machines without TensorFlow

A suite prints a table and the verdicts on the goals; it writes strict JSON (--json) and a page with charts (--results).
Peers that are not installed (`pip install -e '.[benchmarks,addons]'`) are named and left out.
"""

import argparse
import contextlib
import importlib
import logging
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks import BATCH, SIDE, SUITES, run_stablehlo

_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Number = TypeVar("Number", int, float)
RESULTS = pathlib.Path("benchmarks/results")
SAMPLES, QUICK_SAMPLES, QUICK_SECONDS = 15, 3, 0.3


def _hardware() -> dict[str, object]:
    import tensorflow as tf
    info = pathlib.Path("/proc/cpuinfo")
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    return {"cpu": _processor(info.read_text(errors="replace") if info.exists() else ""),
            "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def _processor(cpuinfo: str) -> str:
    """Returns the processor's name with its generation and widest vectors, which a name may leave open."""
    first = cpuinfo.split("\n\n", maxsplit=1)[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = said.get("flags", said.get("Features", "")).split()
    vectors = [name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sve", "SVE"), ("asimd", "NEON"))
               if flag in flags]
    more = [f"{key.removeprefix('cpu ')} {said[key]}" for key in ("cpu family", "model") if key in said] + vectors[:1]
    name = said.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(more)})" if more else name


def _number(kind: Callable[[str], Number], bound: str, allowed: Callable[[Number], bool]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            if allowed(kind(text)):
                return kind(text)
        raise argparse.ArgumentTypeError(f"expected {bound}, received {text}")
    return parse


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for suite in (*SUITES, "all"):
        own = commands.add_parser(suite)
        if suite == "trace":
            own.add_argument("folder", type=pathlib.Path, nargs="?", help="of a run with a trace: reads that instead")
        own.add_argument("--json", type=pathlib.Path, help="also write rows, versions and hardware to this file")
        own.add_argument("--results", type=pathlib.Path, nargs="?", const=RESULTS,
                         help=f"also write each suite's JSON and chart and a page to this folder (default {RESULTS})")
        own.add_argument("--samples", type=_number(int, "1 or more", lambda count: count >= 1),
                         help=f"timed runs of each contestant, at most (default {SAMPLES}, quick {QUICK_SAMPLES})")
        own.add_argument("--seconds", type=_number(float, "more than 0", lambda seconds: 0 < seconds < math.inf),
                         help="seconds of a contestant's timed runs (default: the suite's, from 1 to 60; quick "
                              f"{QUICK_SECONDS:g})")
        own.add_argument("--only", type=run_stablehlo.pattern, default="",
                         help="only cases in whose names this expression occurs")
        own.add_argument("--quick", action="store_true",
                         help="a small part of everything: does it run, and about how fast? Never part of the results")
    own = commands.add_parser("report")
    own.add_argument("--results", type=pathlib.Path, nargs="?", default=RESULTS, const=RESULTS,
                     help=f"where the JSON lies (default {RESULTS})")
    own = commands.add_parser("compare")
    own.add_argument("old", type=pathlib.Path, help="a suite's JSON, or what --json wrote")
    own.add_argument("new", type=pathlib.Path, help="another of the same suites")
    own.add_argument("--threshold", default=0.10,
                     type=_number(float, "from 0 to 1", lambda part: 0 <= part <= 1),
                     help="part of a ratio that may be lost (default 0.10)")
    commands.add_parser("export", add_help=False)
    known, others = parser.parse_known_args(argv)
    if others and known.command != "export":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    known.others = others
    return known


def main(argv: list[str] | None = None) -> None:
    """Runs what the command line asks for."""
    args = _arguments(argv)
    # Contestants are functions made in one place, which TensorFlow takes for one that is traced again and again.
    logging.getLogger("tensorflow").addFilter(_says_something)
    from bloodcell.errors import InputError
    from bloodcell.quiet import stderr_nowhere
    try:
        if args.command == "report":
            from benchmarks import report
            for path in report.write(args.results):
                print(path)
            return
        if args.command == "compare":
            _compare(args)
            return
        with stderr_nowhere() if _QUIET else contextlib.nullcontext():  # the chatter of TensorFlow's start
            importlib.import_module("tensorflow").config.list_physical_devices()
        if args.command == "export":
            from benchmarks import export
            export.main(args.others)
        elif args.command == "trace" and args.folder:
            from benchmarks import trace
            print(trace.lines(trace.read(args.folder)))
        else:
            _run(args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _says_something(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()


def _compare(args: argparse.Namespace) -> None:
    from benchmarks import compare, saved
    found = compare.changes(saved.read(args.old), saved.read(args.new), args.threshold)
    print(compare.table(found))
    lost = sum(change.word == "regression" for change in found)
    print(f"{lost} of {len(found)} ratios lost more than {args.threshold:.0%} beyond the noise of both files" if lost
          else f"no regression in {len(found)} ratios (more than {args.threshold:.0%}, beyond the noise of both files)")
    if lost:
        sys.exit(1)


def _run(args: argparse.Namespace) -> None:
    import numpy as np
    import tensorflow as tf

    from benchmarks import peers, report
    from benchmarks.progress import Progress
    suites = SUITES if args.command == "all" else (args.command,)
    if args.quick and args.results:
        _keep_full_results(args.results, suites)
    present, missing = peers.available()
    for peer in peers.PEERS:
        if peer.name in missing:
            print(f"{peer.title}: {missing[peer.name]}; the benchmark goes on without it", file=sys.stderr, flush=True)
    about = {
        "date": time.strftime("%Y-%m-%d"), "quick": args.quick, "hardware": _hardware(), "batch": BATCH, "side": SIDE,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__,
                     **{peer.name: peer.version() for peer in peers.PEERS if peer.name in present}},
        "peers": {peer.name: {"title": peer.title, "how": peer.how, "policies": {
            case: title for case, (title, _) in present[peer.name].POLICIES.items()} if peer.name in present else {}}
            for peer in peers.PEERS},
        "missing": missing,
    }
    results = []
    for number, suite in enumerate(suites, 1):
        module = importlib.import_module(f"benchmarks.{suite}")
        seconds = args.seconds or (QUICK_SECONDS if args.quick else module.SECONDS)
        samples = args.samples or (QUICK_SAMPLES if args.quick else SAMPLES)
        with Progress(suite if len(suites) == 1 else f"{suite} (suite {number} of {len(suites)})") as tell:
            found = module.run(present, samples=samples, seconds=seconds, only=args.only, tell=tell, quick=args.quick)
        results.append({"command": _command(args, suite, samples), **about, **found})
        print(report.lines(found["rows"]), flush=True)
        if args.results:
            report.write_json(args.results / f"{suite}.json", results[-1])
    merged = report.merge(results)
    print(report.goals(report.judge(merged)))
    if args.json:
        report.write_json(args.json, {**merged, "command": _command(args, args.command, samples)})
    if args.results:
        for path in report.write(args.results):
            print(f"wrote {path}", file=sys.stderr)


def _keep_full_results(folder: pathlib.Path, suites: tuple[str, ...]) -> None:
    from benchmarks import saved
    from bloodcell.errors import InputError
    for path in (folder / f"{suite}.json" for suite in suites):
        if path.exists() and not saved.read(path).get("quick"):
            raise InputError(f"--quick: expected a folder without results that took longer, received {path}, "
                             "try another --results, or --json")


def _command(args: argparse.Namespace, suite: str, samples: int) -> str:
    parts = [f"python -m benchmarks {suite}{' --quick' if args.quick else ''} --samples={samples}"]
    if args.seconds is not None:
        parts.append(f"--seconds={args.seconds:g}")
    if args.only:
        parts.append(f"--only='{args.only}'")
    return " ".join(parts)


if __name__ == "__main__":
    main()
