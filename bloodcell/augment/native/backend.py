"""Who augments, from `--backend`.

What belongs here: the choice, and one line that says it.
"""

import dataclasses

import tensorflow as tf

from bloodcell.augment.native import library
from bloodcell.errors import InputError


@dataclasses.dataclass(frozen=True)
class Backend:
    """The choice.

    name: `xla` or `native`. why: where `auto` could not take the native op, the reason in one line; else empty.
    """

    name: str
    why: str = ""


def choose(wanted: str) -> Backend:
    """Returns the backend for a value of `--backend`; loads the native op where it is chosen.

    `auto` takes the native op where it is built and passed its self-test on this machine, on CPUs only: nobody has
    timed it on a GPU yet.

    Raises:
      InputError: `native` is asked for and cannot be used.
    """
    if wanted == "xla":
        return Backend("xla")
    if wanted == "auto" and any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
        return Backend("xla", "the native op was not timed on accelerators yet; --backend=native takes it")
    try:
        library.load(library.find())
    except library.Missing as missing:
        if wanted == "auto":
            return Backend("xla", str(missing))
        raise InputError(f"--backend=native: {missing}") from None
    return Backend("native")
