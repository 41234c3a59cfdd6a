"""Trainings with several replicas, in a process of their own each, that take turns as contestants of one process do.

Logical devices must be made before TensorFlow starts, hence the processes. Each builds what it is asked for
(`python -m benchmarks.replicas JSON`), waits for the name of a program on its standard input, runs it, and answers; who
waits takes no time from who runs. On a machine with GPUs replicas are as many GPUs.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from benchmarks.timing import Contestant

REDUCED, UNREDUCED, REDUCTION = "reduced", "not reduced", "the reduction alone"  # what a program does


@dataclasses.dataclass(frozen=True)
class Program:
    """A network and a global batch that is trained on again and again, or whose exchange alone is run.

    Attributes:
      network: a backbone.
      policy: `--augment`.
      batch: images of all replicas together.
      steps: of a run.
      what: REDUCED, the step; UNREDUCED, the step of replicas that exchange nothing; REDUCTION, what they exchange.
    """

    network: str
    policy: str
    batch: int
    steps: int
    what: str = REDUCED


class Replicas:
    """A running process with so many replicas."""

    def __init__(self, count: int, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self.count = count
        self._process, self._errors = process, errors
        self.devices = str(self._answer()["devices"])

    def run(self, number: int) -> None:
        """Runs a program, by its number among those the process was started with, and waits for its end.

        Raises:
          RuntimeError: the process ended; its last line.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that is missing says why
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()
        self._answer()

    def contestant(self, case: str, name: str, program: Program, number: int) -> Contestant:
        """Returns a program as it takes part in a race."""
        return Contestant(case, name, program.steps * program.batch, lambda _: self.run(number))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"{self.count} replicas: the process ended: {last}")
        return dict(json.loads(line))


@contextlib.contextmanager
def start(count: int, programs: Sequence[Program]) -> Iterator[Replicas]:
    """Starts a process with `count` replicas that has built the programs; it ends with the context."""
    settings = json.dumps({"replicas": count, "programs": [dataclasses.asdict(program) for program in programs]})
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
            [sys.executable, "-m", "benchmarks.replicas", settings], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, cwd=pathlib.Path(__file__).parents[1]) as process:
        try:
            yield Replicas(count, process, errors)
        finally:
            process.kill()  # it has nothing to save


def possible(counts: Sequence[int], tell: Callable[[str], None]) -> list[int]:
    """Returns the numbers of replicas that this machine can have; says which it cannot. A CPU has any number."""
    gpus = own_devices()
    left_out = [count for count in counts if gpus and count > gpus]
    for count in left_out:
        tell(f"{named(count)}: expected as many GPUs, found {gpus}; left out")
    return [count for count in counts if count not in left_out]


def own_devices() -> int:
    """Returns how many replicas can have a device of their own: the number of GPUs."""
    import tensorflow as tf
    return len(tf.config.list_physical_devices("GPU"))


def named(count: int) -> str:
    """Returns the name of a contestant with so many replicas."""
    return "1 replica" if count == 1 else f"{count} replicas"


def _build(replicas: int, programs: Sequence[Program]) -> tuple[str, list[Callable[[], None]]]:
    from benchmarks import training
    from bloodcell.data import demo
    trained: dict[tuple[str, str, bool], training.Training] = {}
    runs: list[Callable[[], None]] = []

    def of_batches(built: training.Training, program: Program) -> Callable[[], None]:
        batch = training.divided(training.rendered(program.batch), built.runtime)
        epochs = itertools.count()
        return lambda: built.run([batch] * program.steps, next(epochs))

    def of_reduction(built: training.Training, program: Program) -> Callable[[], None]:
        exchange = training.reduction(built)
        return lambda: exchange(program.steps)

    for program in programs:
        key = program.network, program.policy, program.what != UNREDUCED
        if key not in trained:
            trained[key] = training.build(program.network, policy=program.policy, classes=len(demo.CLASS_NAMES),
                                          replicas=replicas, reduced=program.what != UNREDUCED)
        runs.append((of_reduction if program.what == REDUCTION else of_batches)(trained[key], program))
    return next(iter(trained.values())).runtime.devices, runs


def _serve(settings: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    devices, runs = _build(settings["replicas"], [Program(**each) for each in settings["programs"]])
    print(json.dumps({"devices": devices}), file=answers, flush=True)
    for line in sys.stdin:
        runs[int(line)]()
        print("{}", file=answers, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _serve(json.loads(sys.argv[1]))
