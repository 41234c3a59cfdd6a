"""The native op for tests: built once of the sources as they are, into the place where `--backend` looks for it."""

import fcntl

import pytest
import tensorflow as tf

from bloodcell.augment import pixels, plan
from bloodcell.augment.native import build, call, library


def load() -> None:
    """Builds, where needed, and loads the library; skips the test where it cannot be built."""
    path = library.folder() / library.NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / "tests.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other test processes want it too
        if not path.exists():
            try:
                build.library(path)
            except build.Failed as error:
                if "no compiler" in str(error):
                    pytest.skip(str(error))
                raise
    library.load(path)


def apply_op(op, packed, active, draws, options):
    """`entry.Op.apply` by the native op: a policy of this one op, whose draws are given."""
    op.check_size((packed.shape[1], packed.shape[2]))
    member = plan.Member("op", op, options, (), 0, lambda u: u[:, 0])
    slot = plan.Slot(op.primitive, ((member,),), op.style(options))
    images = pixels.unpack(packed, tf.uint8)
    return pixels.pack(call.apply([slot], images, {"op": {**draws, "on": active}}, tf.uint8))


def native_policy(made):
    """Returns a policy's `__init__` that takes the native op, whatever it is told."""
    def init(self, chain, *, what="augment", backend="native"):
        made(self, chain, what=what, backend="native")
    return init
