"""Several processes of this machine that work on one search. What each of them does is in `commands.search`.

Nothing here imports TensorFlow before a process has said what it may see and print.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bloodcell.config import Config
from bloodcell.errors import InputError, Stopped
from bloodcell.quiet import stderr_nowhere

_DEVICES = "CUDA_VISIBLE_DEVICES"


def run(config: Config, gpus: int) -> tuple[str, list[int | None]]:
    """Runs `config.search_workers` processes until all have ended, each with a GPU of its own as far as there are any.

    Args:
      config: the flags.
      gpus: how many this process sees.

    Returns:
      What the first that failed said, "" where none said anything; and the exit codes.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    errors = context.SimpleQueue()
    named = [name for name in os.environ.get(_DEVICES, "").split(",") if name.strip()]
    names = named[:gpus] if len(named) >= gpus else [str(number) for number in range(gpus)]
    workers = []
    try:
        for index in range(config.search_workers):
            worker = context.Process(target=_work, args=(config, index, errors), name=f"search worker {index}")
            with _seeing(names[index % gpus] if gpus else None):
                worker.start()
            workers.append(worker)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()
    return "" if errors.empty() else str(errors.get()), [worker.exitcode for worker in workers]


def _work(config: Config, index: int, errors: Any) -> None:
    signal.signal(signal.SIGTERM, _stop)
    threads = max(1, (os.cpu_count() or 1) // config.search_workers)
    try:
        with _quiet():
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
            tf.config.list_physical_devices()
        from bloodcell.commands import search

        search.take_part(config, first=index == 0)
    except InputError as error:
        errors.put(" ".join(str(error).split()))
        sys.exit(1)
    except Stopped as stopped:
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number))


@contextlib.contextmanager
def _seeing(gpu: str | None) -> Iterator[None]:
    """Lets processes that are started in the block see one GPU alone; None: all that there are."""
    before = os.environ.get(_DEVICES)
    if gpu is not None:
        os.environ[_DEVICES] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            os.environ.pop(_DEVICES)
            if before is not None:
                os.environ[_DEVICES] = before


def _quiet() -> contextlib.AbstractContextManager[None]:
    """Returns what keeps TensorFlow's first words off the terminal, where it was told to keep quiet; see `main`."""
    return stderr_nowhere() if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3" else contextlib.nullcontext()
