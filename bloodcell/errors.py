"""The one exception that a user's mistake raises; `main.py` prints its line and exits with status 1.

Nothing else belongs here. A bug must keep its own exception type and its stack trace.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used: one line of what was expected, what was received, and the fix."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `"did you mean 'x'?"` for the nearest of `names`, or a list of them all where none is near."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
