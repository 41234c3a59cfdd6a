"""Keeps what native code writes straight to the file descriptor of stderr off the terminal; exceptions pass as ever."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stderr_nowhere() -> Iterator[None]:
    """Sends this process's stderr, and that of the processes that it starts, nowhere."""
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
