"""What binds the native op: its instructions and cache misses for an image. `python -m benchmarks.counters`.

valgrind's callgrind counts them on a model of this processor's caches, so it needs no counters of the hardware, which
virtual machines rarely show. It runs the op's own sources, AVX2 and one thread, in a process without TensorFlow, and
counts inside the op's calls alone: starting Python takes a hundred times as many instructions, and never quite the same
number. The time beside is of the same code without valgrind. Needs valgrind and a compiler.

What belongs here: counting. How fast the op is in a program is `python -m benchmarks policies`.
"""

import argparse
import ctypes
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

INSTRUCTION_SET = b"avx2"  # the newest that valgrind knows
LINE = 64  # bytes of a cache line
POLICIES = ("rotate", "equalize", "hue", "blur", "jpeg", "randaugment", "augmix", "v2s")
_TYPES = {np.dtype(np.bool_): 0, np.dtype(np.uint8): 1, np.dtype(np.int32): 2, np.dtype(np.float32): 3}  # of plain.cc
CALLS = 3  # that are counted
_RUN = "bloodcell::run(*"  # what the library's entry calls with a program that has been read
_COUNTED = {"instructions": r"I +refs", "accesses": r"D +refs", "misses": r"D1 +misses", "mispredicted": "Mispredicts"}


class Failed(Exception):
    """valgrind or the compiler is missing, or refuses; the message says what."""


def apply(library: pathlib.Path, programs: pathlib.Path, name: str, times: int) -> list[float]:
    """Runs a program of `run_cuda_op.write`'s file; returns the seconds of each call."""
    call = ctypes.CDLL(str(library)).bloodcell_apply
    with np.load(programs) as held:
        words, images = held[f"{name}/words"], held["images"]
        operands = [held[f"{name}/operand{number}"] for number in range(int(held[f"{name}/operands"]))]
    out = np.zeros(images.shape, np.float32)
    data = np.array([each.ctypes.data for each in operands], np.uint64)
    types = np.array([_TYPES[each.dtype] for each in operands], np.int32)
    rows = np.array([len(each) for each in operands], np.int64)
    widths = np.array([int(np.prod(each.shape[1:])) for each in operands], np.int64)
    message, whole, pointer = ctypes.create_string_buffer(256), ctypes.c_longlong, ctypes.c_void_p
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        wrong = call(pointer(words.ctypes.data), whole(len(words)), pointer(data.ctypes.data),
                     pointer(types.ctypes.data), pointer(rows.ctypes.data), pointer(widths.ctypes.data),
                     whole(len(operands)), pointer(images.ctypes.data), *(whole(side) for side in images.shape[:3]),
                     pointer(out.ctypes.data), 0, 1, INSTRUCTION_SET, message, whole(len(message)))
        spent.append(time.perf_counter() - began)
        if wrong:
            raise Failed(message.value.decode())
    return spent


def count(library: pathlib.Path, programs: pathlib.Path, name: str) -> dict[str, int]:
    """Returns `_COUNTED` of `CALLS` calls of a program, in a process of their own."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--cache-sim=yes", "--branch-sim=yes", f"--toggle-collect={_RUN}",
         "--callgrind-out-file=/dev/null", sys.executable, str(pathlib.Path(__file__).resolve()), "apply", str(library),
         str(programs), name, str(CALLS)],
        capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["valgrind: no word"])[-1])
    counted = {what: int(re.findall(rf"{line}: +([\d,]+)", done.stderr)[0].replace(",", ""))
               for what, line in _COUNTED.items()}
    if not counted["instructions"]:
        raise Failed(f"valgrind: found no call of {_RUN}")
    return counted


def table(names: Sequence[str], batch: int) -> list[str]:
    """Returns the lines of a Markdown table, one for each of `run_cuda_op.POLICIES` that is named."""
    from benchmarks import SIDE, run_cuda_op
    from bloodcell.augment.native import build
    if shutil.which("valgrind") is None:
        raise Failed("valgrind is not installed")
    lines = ["| policy | us an image | instructions an image | a nanosecond | loads and stores | of them miss the "
             "first cache | lines of image and result | mispredicted branches |", "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        library, programs = pathlib.Path(folder) / "plain.so", pathlib.Path(folder) / "programs.npz"
        build.library(library, xla=False)
        run_cuda_op.write(programs, {name: run_cuda_op.POLICIES[name] for name in names}, batch, SIDE)
        for name in names:
            micros = 1e6 * min(apply(library, programs, name, 12)) / batch
            each = {what: number / (CALLS * batch) for what, number in count(library, programs, name).items()}
            pace = each["instructions"] / micros / 1000
            lines.append(
                f"| `{name}` | {micros:.1f} | {each['instructions']:,.0f} | {pace:.1f} | {each['accesses']:,.0f} | "
                f"{each['misses']:,.0f} | {SIDE * SIDE * 3 * 5 / LINE:,.0f} | {each['mispredicted']:,.0f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["apply"]:  # the process that is counted
        apply(pathlib.Path(given[1]), pathlib.Path(given[2]), given[3], int(given[4]))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", metavar="POLICY", help=f"of {', '.join(POLICIES)} (default: all)")
    parser.add_argument("--batch", type=int, default=64, help="images of a call")
    args = parser.parse_args(given)
    names = args.policies or list(POLICIES)
    if unknown := set(names) - set(POLICIES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    from bloodcell.augment.native.build import Failed as NotBuilt
    try:
        print("\n".join(table(names, args.batch)))
    except (Failed, NotBuilt) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
