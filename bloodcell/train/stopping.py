"""SIGTERM and Ctrl-C while training: the first asks for a stop at the next step, the second stops at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bloodcell.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Catches the signals while it is entered; outside of Python's main thread, which gets none, it does nothing.

    Args:
      follows: this worker leaves a first signal to the chief, who saves and goes; then this one has to go as well.

    Attributes:
      asked: the signal that asked for a stop, or None.
    """

    def __init__(self, *, follows: bool = False) -> None:
        self.asked: signal.Signals | None = None
        self._follows = follows
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Stopped where a stop has been asked for; call it where the state can be saved."""
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises Stopped wherever it comes: for long work that changes nothing."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._follows:
            self._follows = False
            name = signal.Signals(number).name
            os.write(2, f"{name}: ends when the first worker does, once more stops at once\n".encode())
            return
        again, self.asked = self.asked is not None, signal.Signals(number)
        if again or self._at_once:
            raise Stopped(self.asked)
        # no print: the signal may have come in the middle of one
        os.write(2, f"{self.asked.name}: stopping after this step, once more stops at once\n".encode())
