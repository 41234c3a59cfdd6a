"""The memory bandwidth of the device that the programs run on: a copy of buffers that no cache holds, the best of many.

Bytes count twice, once read and once written. That is all a copy has to move: the C library writes large buffers past
the caches, while a program's ordinary stores first fetch the lines that they will overwrite, which nobody counts here.
What belongs here: the copy, and the size of the caches. What a program should move is the suite's business.
"""

import itertools
import os
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

CACHES = 8  # times the last-level cache that a buffer takes
SMALLEST, LARGEST = 64 * 2**20, 2**30  # bytes of a buffer
UNKNOWN_CACHE = 32 * 2**20  # bytes, where the system does not tell
ON_A_GPU = 512 * 2**20  # bytes of a buffer: ten times the second-level cache of the largest
FEWEST = 5  # copies
_CPUS = pathlib.Path("/sys/devices/system/cpu")


def measure(*, seconds: float = 1.0) -> dict[str, Any]:
    """Measures the device that TensorFlow computes on.

    Args:
      seconds: to spend on copies, at least five of which are made.

    Returns:
      `device` (`CPU` or `GPU`), `bytes_per_second` (read and written), `buffer_bytes`, `cache_bytes` (last level, of
      all cores in use; None where unknown or on a GPU), `threads` (None on a GPU), `copies`.

    Raises:
      RuntimeError: the copy differs from the original.
    """
    import tensorflow as tf
    if tf.config.list_logical_devices("GPU"):
        rate, copies = on_gpu(ON_A_GPU, seconds=seconds)
        return {"device": "GPU", "bytes_per_second": rate, "buffer_bytes": ON_A_GPU, "cache_bytes": None,
                "threads": None, "copies": copies}
    threads, cache = len(os.sched_getaffinity(0)), cache_bytes()
    size = buffer_bytes(cache)
    rate, copies = on_cpu(size, threads=threads, seconds=seconds)
    return {"device": "CPU", "bytes_per_second": rate, "buffer_bytes": size, "cache_bytes": cache, "threads": threads,
            "copies": copies}


def cache_bytes(cpus: pathlib.Path = _CPUS) -> int | None:
    """Returns the size of the last-level caches of all cores that we may use, or None where the system does not tell.

    Args:
      cpus: where Linux describes its cores.
    """
    found: dict[tuple[int, str], int] = {}  # by level and the cores that share it
    for core in os.sched_getaffinity(0):
        for index in (cpus / f"cpu{core}" / "cache").glob("index*"):
            try:
                level, size, shared = ((index / name).read_text().strip() for name in ("level", "size",
                                                                                       "shared_cpu_list"))
                found[int(level), shared] = int(size.rstrip("KMG")) * 1024 ** " KMG".index(size[-1])
            except (OSError, ValueError):
                continue
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or None


def buffer_bytes(cache: int | None) -> int:
    """Returns the size of each of the two buffers: beyond the caches, and within an eighth of the free memory."""
    wanted = min(max(CACHES * (cache or UNKNOWN_CACHE), SMALLEST), LARGEST)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(wanted, free // 8), SMALLEST) // 8 * 8


def on_cpu(size: int, *, threads: int, seconds: float) -> tuple[float, int]:
    """Copies `size` bytes again and again, a part in each thread.

    Returns:
      Bytes read and written in a second by the fastest copy, and how many were made.

    Raises:
      RuntimeError: the copy differs from the original.
    """
    source, target = np.empty(size // 8, np.int64), np.empty(size // 8, np.int64)
    bounds = np.linspace(0, len(source), threads + 1).astype(int)
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def fill(part: slice) -> None:  # where memory belongs to a socket, to that of the thread that touches it first
        source[part] = np.arange(part.start, part.stop)
        target[part] = -1

    def copy(part: slice) -> None:  # NumPy lets go of the interpreter's lock
        np.copyto(target[part], source[part])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, parts))
        best, copies = _best(lambda: list(pool.map(copy, parts)), seconds)
    if not np.array_equal(source, target):
        raise RuntimeError("expected a copy equal to its original")
    return 2 * source.nbytes / best, copies


def on_gpu(size: int, *, seconds: float) -> tuple[float, int]:
    """Copies `size` bytes on the first GPU by a compiled `x + 1`; returns and raises as `on_cpu` does."""
    import tensorflow as tf
    with tf.device("GPU:0"):
        source = tf.zeros([size // 4], tf.float32)
        copy = tf.function(lambda x: x + 1.0, jit_compile=True, autograph=False)

        def once() -> None:
            copy(source)
            tf.test.experimental.sync_devices()

        best, copies = _best(once, seconds)
        if not tf.reduce_all(copy(source) == 1.0):
            raise RuntimeError("expected a copy equal to its original")
    return 2 * (size // 4 * 4) / best, copies


def _best(run: Callable[[], Any], seconds: float) -> tuple[float, int]:
    run()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < seconds:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times), len(times)
