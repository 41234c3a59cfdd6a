"""What `main.py` turns into one line and an exit status: a user's mistake, and a signal; and words for such lines.

Nothing else belongs here. A bug must keep its own exception type and its stack trace.
"""

import difflib
import signal
import unicodedata
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used: one line of what was expected, what was received, and the fix."""


class Stopped(BaseException):
    """A signal ended the work. No `Exception`, so that nothing on its way takes it for a failure.

    Args:
      number: the signal.
      line: how to go on; empty where there is nothing to say.
    """

    def __init__(self, number: signal.Signals, line: str = ""):
        super().__init__(f"stopped by {number.name}" + (f": {line}" if line else ""))
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells know for it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `"did you mean 'x'?"` for the nearest of `names`, or a list of them all where none is near."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


def shown(name: str) -> str:
    r"""Returns a file's name, or a class's, as lines and reports can carry it.

    A control character (a line break, a terminal's escape) and a byte that is no UTF-8 become their escapes (`\n`,
    `\xff`); any other name stays as it is.
    """
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
