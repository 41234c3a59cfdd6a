"""The one exception that a user's mistake raises, and words for its line; `main.py` prints it and exits with status 1.

Nothing else belongs here. A bug must keep its own exception type and its stack trace.
"""

import difflib
import unicodedata
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used: one line of what was expected, what was received, and the fix."""


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
