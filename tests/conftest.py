"""The engine's tests over either backend: `BLOODCELL_TEST_BACKEND=native python -m pytest tests/augment`.

Ops and policies then run in the native op, which the tests themselves know nothing about. What a test says of XLA's own
program (its memory, its primitives) is not asked there.
"""

import gc
import os
import pathlib

import native_library
import pytest

from bloodcell import augment
from bloodcell.augment import entry

# The files that take longest, first, so that no worker is left with one of them when the others are done.
LONGEST = ("test_replicas_of_a_run", "test_kill", "test_multi_worker", "test_suites", "test_native",
           "test_training_loop")
NATIVE = os.environ.get("BLOODCELL_TEST_BACKEND", "xla") == "native"


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(pathlib.Path(item.path).stem, len(order)))


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_the_modules_before():
    """What earlier files have left is looked through once, not by every full collection: a tenth of the time."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def native_op():
    """The native op, built of these sources and loaded; tests skip where there is no compiler."""
    native_library.load()


@pytest.fixture
def xla_program():
    """For tests of what XLA makes of a program, or of both backends: they are not asked a second time."""
    if NATIVE:
        pytest.skip("is about XLA's own program")


@pytest.fixture(scope="session", autouse=NATIVE)
def _everything_runs_natively(native_op):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment.Policy, "__init__", native_library.native_policy(augment.Policy.__init__))
        patch.setattr(entry.Op, "apply", native_library.apply_op)
        yield
