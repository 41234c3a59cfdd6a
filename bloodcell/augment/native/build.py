"""`python -m bloodcell.augment.native.build`: compiles the kernel with g++, tests it here, and keeps it.

The library goes into the user's cache (`XDG_CACHE_HOME`, or `~/.cache`), under a name that says which TensorFlow,
which ABI and which sources it is of; what is there already is only tested again, with --force built again. Wheels of
the project hold the sources and need no compiler.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# Floating point as it is written: a product and a sum are fused only where the source says so.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
         "-fvisibility=hidden", "-Wall", "-Wextra")
_AVX2 = ("-mavx2", "-mfma", "-mbmi2")
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"generic": ()}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {"avx2": _AVX2, "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq",
                                                   "-mavx512vbmi", "-mprefer-vector-width=256")}


class Failed(Exception):
    """The library could not be made; the message says why, in one line."""


def library(target: pathlib.Path, *, xla: bool = True, flags: Sequence[str] = ()) -> None:
    """Compiles the kernel with `CXX`, or g++.

    Args:
      target: the file to write; nothing is there unless everything went well.
      xla: with the handlers that XLA calls, linked to TensorFlow; without, a library with one C function, for tests.
      flags: for compiler and linker, added last (sanitizers).

    Raises:
      Failed: no compiler, or it refuses.
    """
    from bloodcell.augment.native.library import SOURCE
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(command[0]) is None:
        raise Failed(f"no compiler: {command[0]} is not installed")
    units: dict[str, tuple[str, ...]] = {"policy.cc": (), "workers.cc": ()}
    link: list[str] = ["-shared", "-pthread"]
    if xla:
        import tensorflow as tf
        include, *abi = tf.sysconfig.get_compile_flags()
        units["host.cc"] = (f"-isystem{include[2:]}", *(flag for flag in abi if flag.startswith("-D")))
        units["cuda.cc"] = (*units["host.cc"], f"-I{SOURCE}")  # where the sources are that it holds for NVRTC
        where = tf.sysconfig.get_lib()
        link += ["-ldl", f"-L{where}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    else:
        units["plain.cc"] = ()
    jobs = [(SOURCE / unit, unit, extra) for unit, extra in units.items()]
    jobs += [(SOURCE / "isa.cc", name, (f"-DISA=bloodcell_run_{name}", *extra))
             for name, extra in INSTRUCTION_SETS.items()]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        objects = [pathlib.Path(scratch) / f"{name}.o" for _, name, _ in jobs]
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda job: _run([*command, *FLAGS, *job[0][2], *flags, "-c", str(job[0][0]),
                                            "-o", str(job[1])]), zip(jobs, objects, strict=True)))
        made = pathlib.Path(scratch) / target.name
        _run([*command, *(str(each) for each in objects), *link, *flags, "-o", str(made)])
        made.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.splitlines() or ["no word"]
        raise Failed(f"{command[0]} failed: {next((line for line in said if 'error' in line), said[0]).strip()}")


def build(*, force: bool = False) -> pathlib.Path:
    """Makes the library that fits this TensorFlow, where it is not there yet, and tests it in a process of its own.

    Returns:
      Its path.

    Raises:
      Failed: it could not be made, or it computes something else than XLA does.
    """
    from bloodcell.augment.native import library as kept
    from bloodcell.files import write_atomically
    path = kept.folder() / kept.NAME
    report = path.parent / kept.SELF_TEST
    if force or not path.exists():
        report.unlink(missing_ok=True)  # a result is of the library beside it
        library(path)
    done = subprocess.run([sys.executable, "-m", "bloodcell.augment.native.selftest", str(path)], capture_output=True,
                          text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0:
        wrong = f"ended by signal {-done.returncode}"
    elif done.returncode:
        wrong = (lines or done.stderr.strip().splitlines() or ["no word"])[-1]
    else:
        wrong = ""
    write_atomically(report, json.dumps({"passed": not wrong, "wrong": wrong, "processor": kept.processor()}).encode())
    if wrong:
        raise Failed(f"self-test: {wrong}")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Builds and tests; one line on success, one line and exit status 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bloodcell.augment.native.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="build again what is there already")
    force = parser.parse_args(argv).force
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    began = time.monotonic()
    try:
        path = build(force=force)
    except (Failed, OSError) as error:
        sys.exit(f"error: the native op was not built: {error}")
    print(f"the native op is built and tested ({time.monotonic() - began:.0f} s): {path}")


if __name__ == "__main__":
    main()
