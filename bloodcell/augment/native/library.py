"""The library that holds the kernel: where it lies, what it was made of, and loading it into TensorFlow.

A library fits one TensorFlow, one C++ ABI, one machine's architecture and one state of the sources; its folder's name
is a hash of all of them, so nothing stale is ever loaded. Beside it lies `selftest.json`: what the self-test found, and
on which processor.

What belongs here: places and loading. Making a library is `build`'s business.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import platform

import tensorflow as tf

SOURCE = pathlib.Path(__file__).with_name("source")
NAME = "libbloodcell_policy.so"
SELF_TEST = "selftest.json"
BUILD = "python -m bloodcell.augment.native.build"


class Missing(Exception):
    """No library can be used here; the message says why, in one line."""


def folder() -> pathlib.Path:
    """Returns where the library of these sources for this TensorFlow lies, or will."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "bloodcell" / "native" / f"{tf.__version__}-{_digest()}"


@functools.cache
def _digest() -> str:
    hashed = hashlib.sha256()
    for part in (tf.__version__, *tf.sysconfig.get_compile_flags()[1:], platform.machine(), platform.system()):
        hashed.update(f"{part}\n".encode())
    for file in sorted(SOURCE.iterdir()):
        if file.is_file():
            hashed.update(f"{file.name}\n".encode() + file.read_bytes())
    return hashed.hexdigest()[:16]


def processor() -> str:
    """Returns what the self-test's result depends on: the processor's name and instruction sets, hashed."""
    lines = [platform.machine(), platform.processor()]
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text(errors="replace").split("\n\n", maxsplit=1)[0]
        lines += [line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def find() -> pathlib.Path:
    """Returns the library that fits, built and tested on this machine.

    Raises:
      Missing: there is none.
    """
    path = folder() / NAME
    if not path.exists():
        others = list(folder().parent.glob(f"*/{NAME}"))
        why = "was built for another TensorFlow or from other sources" if others else "is not built"
        raise Missing(f"the native op {why}; {BUILD} builds it")
    try:
        found = json.loads((path.parent / SELF_TEST).read_text())
        passed, where, wrong = bool(found["passed"]), str(found["processor"]), str(found["wrong"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Missing(f"the native op was never tested here; {BUILD} does it") from None
    if where != processor():
        raise Missing(f"the native op was tested on another processor; {BUILD} tests it again")
    if not passed:
        raise Missing(f"the native op failed its self-test ({wrong})")
    return path


def nvrtc() -> pathlib.Path | None:
    """Returns the compiler of the CUDA kernel that `tensorflow[and-cuda]` brings, or None where it is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    places = (spec.submodule_search_locations or []) if spec else []
    found = (file for place in places for file in sorted(pathlib.Path(place, "lib").glob("libnvrtc.so.*")))
    return next(found, None)


@functools.cache
def load(path: pathlib.Path) -> None:
    """Loads a library, once: its handler then has a name that compiled programs can call.

    Raises:
      Missing: the file cannot be loaded into this TensorFlow.
    """
    try:
        tf.load_library(str(path))
        compiler = nvrtc()
        if compiler is not None:
            ctypes.CDLL(str(path)).bloodcell_nvrtc(os.fsencode(compiler))
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Missing(f"the native op cannot be loaded ({reason})") from None
