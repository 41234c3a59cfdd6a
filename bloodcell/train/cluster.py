"""Several worker processes of one run: who they are by `TF_CONFIG`, whether they agree, what the loss of one means.

Each process runs the same program and steps in time with the others; the chief, the first of them, alone writes and
speaks. Devices and strategies are `strategy`'s business.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.errors import InputError

VARIABLE = "TF_CONFIG"
EXAMPLE = '\'{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, "task": {"type": "worker", "index": 0}}\''

# How TensorFlow reports a peer that has gone: its connection is reset, its heartbeats stay away (10 s), or collectives
# were aborted because another one noticed first.
_LOST = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.CancelledError,
         tf.errors.FailedPreconditionError, tf.errors.InternalError)
_OF_WORKERS = ("ollective", "/job:", "heartbeat", "oordination", "onnection reset", "ocket closed", "connect to all")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
      workers: `host:port` of each, in order, a chief first.
      index: of this process; 0 is the chief.
    """

    workers: tuple[str, ...]
    index: int


def from_environment() -> Cluster | None:
    """Returns the cluster that `TF_CONFIG` names, or None where it is not set or names one process.

    Raises:
      InputError: it is no JSON, or has no list of workers, or its task is none of them.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None

    def refuse(expected: str, received: Any) -> InputError:
        return InputError(f"{VARIABLE}: expected {expected}, received {received!r}, try {EXAMPLE} "
                          "and index 1, 2, ... on the others")

    try:
        given = json.loads(text)
    except ValueError:
        raise refuse("JSON", text) from None
    jobs = given.get("cluster") if isinstance(given, dict) else None
    if not jobs:  # what a platform sets for a single process
        if isinstance(given, dict) and jobs in (None, {}):
            return None
        raise refuse("an object with 'cluster' and 'task'", text)
    if not isinstance(jobs, dict) or not jobs.keys() <= {"chief", "worker"}:
        raise refuse("a cluster of 'worker' (and one 'chief')", jobs)
    for addresses in jobs.values():
        if not isinstance(addresses, list) or not all(_is_address(address) for address in addresses):
            raise refuse("a list of 'host:port' for each job", addresses)
    chiefs, others = jobs.get("chief", []), jobs.get("worker", [])
    workers = (*chiefs, *others)
    if len(chiefs) > 1:
        raise refuse("one chief at most", chiefs)
    if len(set(workers)) < len(workers):
        raise refuse("an address of its own for each worker", list(workers))
    task = given.get("task")
    if not isinstance(task, dict) or task.get("type") not in jobs:
        raise refuse(f"a task of type {' or '.join(map(repr, jobs))}", task)
    index = task.get("index")
    if type(index) is not int or not 0 <= index < len(jobs[task["type"]]):
        raise refuse(f"a task index from 0 to {len(jobs[task['type']]) - 1}", index)
    if len(workers) == 1:
        return None
    return Cluster(workers, index if task["type"] == "chief" else len(chiefs) + index)


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


@contextlib.contextmanager
def out_of_sight() -> Iterator[None]:
    """Hides `TF_CONFIG` from TensorFlow, whose strategies of one process read it too, and fail where it is empty."""
    text = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if text is not None:
            os.environ[VARIABLE] = text


@contextlib.contextmanager
def one_line_where_a_worker_is_lost(workers: int) -> Iterator[None]:
    """Turns the errors by which TensorFlow reports a lost peer into an InputError; with one worker it does nothing."""
    try:
        yield
    except _LOST as error:
        if workers == 1 or not any(word in str(error) for word in _OF_WORKERS):
            raise
        raise InputError("a worker was lost, or stopped: expected all workers to run to the end; start all of them "
                         "again by the same commands, the run goes on from its last checkpoint") from None


def check_agreement(strategy: tf.distribute.Strategy, facts: Mapping[str, Any]) -> None:
    """Waits for all workers and checks that they are about to do the same; every worker must call it.

    Args:
      strategy: of several workers.
      facts: by name for people; the names must be the same everywhere, the values are compared by `repr`.

    Raises:
      InputError: workers differ, on all of them.
    """
    mine = digests(facts)

    @tf.function(autograph=False)
    def gather() -> Any:
        def of_replica() -> tf.Tensor:
            return tf.distribute.get_replica_context().all_gather(tf.identity(mine), axis=0)
        return strategy.run(of_replica)

    everyone = strategy.experimental_local_results(gather())[0].numpy()
    same = (everyone == mine).all(axis=(0, 2))
    if not same.all():
        names = [name for name, equal in zip(facts, same, strict=True) if not equal]
        raise InputError(f"workers: expected the same on all of them, received different {', '.join(names)}; try the "
                         "same command and the same data on each, and a --workdir that all of them share")


def digests(facts: Mapping[str, Any]) -> np.ndarray:
    """Returns int32 [1, F, 2]: 64 bits of each fact's SHA-256, in a type that every collective takes."""
    found = [hashlib.sha256(repr(fact).encode()).digest()[:8] for fact in facts.values()]
    return np.frombuffer(b"".join(found), np.int32).reshape(1, len(facts), 2)
