"""Fuzzes the CUDA kernel as host C++: `python tests/augment/fuzz_device.py LIBRARY --cases=100`.

The library is device_as_host.cc and the host's engine, built by test_native_cuda.py, perhaps with a sanitizer. The
programs are those of `fuzz_native`, and cases in files; each runs on the host's engine and on a block's threads, with
the images in shared and in global memory, and must give the same levels to the bit.

Only NumPy and ctypes are imported, so that a process under a sanitizer stays small.
"""

import argparse
import ctypes
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import fuzz_native
from native_plain import OUTPUTS, Library

WAYS = ("shared", "global")


def differences(library: Library, case: fuzz_native.Case, threads: Sequence[int], output: str = "uint8") -> list[str]:
    """Returns the ways, as 'global memory, 3 threads', in which a program gives other levels than on the host."""
    wanted = library.apply(case.program, case.images, output=output, instruction_set="host")
    wrong = []
    for way in WAYS:
        for count in threads:
            got = library.apply(case.program, case.images, output=output, threads=count, instruction_set=way)
            if got.tobytes() != wanted.tobytes():
                wrong.append(f"{way} memory, {count} threads")
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    """Runs cases; ends with exit status 1 and the case where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=pathlib.Path)
    parser.add_argument("--cases", type=int, default=0, help="random ones to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first random case")
    parser.add_argument("--values", type=int, default=1 << 62, help="of a random case's images, at most")
    parser.add_argument("--threads", type=int, nargs="+", default=[3], help="of a block")
    parser.add_argument("--replay", type=pathlib.Path, nargs="*", default=(), help="files of cases")
    parser.add_argument("--handler", type=pathlib.Path, help="library of handler_on_host.cc to compare instead, which "
                        "finds the first one as its driver")
    parser.add_argument("--unguarded", action="store_true", help="nobody waits: a race detector must see it")
    given = parser.parse_args(argv)
    library = Library(given.library)
    handler = None
    if given.handler:
        handler = Library(given.handler)
        ctypes.CDLL(str(given.handler)).bloodcell_nvrtc(os.fsencode(given.library))
    ran = 0
    for path in given.replay:
        case = fuzz_native.restore(path)
        if handler:
            wanted = library.apply(case.program, case.images, instruction_set="host")
            if (wanted != handler.apply(case.program, case.images)).any():
                sys.exit(f"{path.stem}: another result from the handler")
        elif given.unguarded:
            library.apply(case.program, case.images, threads=given.threads[0], instruction_set="unguarded")
        elif wrong := differences(library, case, given.threads):
            sys.exit(f"{path.stem}: {'; '.join(wrong)}")
        ran += 1
    for number in range(given.first, given.first + given.cases):
        random = np.random.default_rng([given.seed, number])
        case = fuzz_native.draw(random)
        if case.images.size > given.values:
            continue
        print(number, case.images.shape, len(case.program.words), file=sys.stderr, flush=True)
        if wrong := differences(library, case, given.threads, str(random.choice(OUTPUTS))):
            sys.exit(f"--seed={given.seed} --first={number} --cases=1: {'; '.join(wrong)}")
        ran += 1
    print(f"{ran} cases")


if __name__ == "__main__":
    main()
