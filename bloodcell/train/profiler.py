"""A profiler's trace of some steps on request, and its rows of our own parts of a step.

The parts are the name scopes that `step` puts around its operations, and the host's fetching of the batch. What else a
run writes for TensorBoard belongs to `tensorboard`.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from bloodcell.errors import InputError
from bloodcell.files import write_atomically
from bloodcell.train.tensorboard import FOLDER

PARTS = ("input", "augment", "forward", "backward", "apply")
STEP = "train"

_PLANE = "/device:CUSTOM:parts of a step"  # a prefix that the trace viewer shows as a group of rows of its own
_GRADIENTS = "gradient_tape"  # TensorFlow's own scope, which it gives to gradients whatever scope they are taken in
_GAP = 100_000_000  # ps; two pieces of a part that lie closer are shown as one

Batch = TypeVar("Batch")
Span = tuple[int, int]  # first and last moment, in picoseconds


class Profiler:
    """Traces the steps `first` to `last` of this process for TensorBoard's profile tab.

    Args:
      steps: the first and the last step, counted from 1, or None for no trace.
      run_dir: the run's folder.
    """

    def __init__(self, steps: tuple[int, int] | None, run_dir: pathlib.Path):
        self._folder = run_dir / FOLDER
        self._first, self._last = steps or (0, 0)
        self._step = 0
        self._running = False

    def steps(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches, each of them a step; traces the fetching, and all until the next one is asked for.

        To be called once for each epoch: the count of steps goes on.
        """
        iterator = iter(batches)
        while True:
            if self._step + 1 == self._first and not self._running:
                tf.profiler.experimental.start(str(self._folder))
                self._running = True
            with tf.profiler.experimental.Trace(STEP) as trace:  # nearly nothing where no trace is running
                with tf.profiler.experimental.Trace("input"):
                    try:
                        batch = next(iterator)
                    except StopIteration:  # no step: this piece of the trace gets no number
                        return
                self._step += 1
                trace.set_metadata(step_num=self._step, _r=1)
                yield batch
            if self._step == self._last:
                self.stop()

    def after_step(self, result: tf.Tensor) -> None:
        """Waits for `result` after the last step of the range: what the device still does belongs to the trace."""
        if self._running and self._step == self._last:
            result.numpy()

    def stop(self) -> None:
        """Ends a trace that is still running, because the training was shorter than its range, and writes it.

        Raises:
          InputError: it cannot be written.
        """
        if self._running:
            self._running = False
            try:
                tf.profiler.experimental.stop()
            except tf.errors.OpError as error:
                reason = " ".join(str(error.message).split())
                raise InputError(f"profile_steps: expected a folder that a trace can be written to, received "
                                 f"{self._folder} ({reason}), try making room or another --workdir") from None
            for path in self._folder.glob("plugins/profile/*/*.xplane.pb"):
                add_rows(path)


def add_rows(path: pathlib.Path) -> None:
    """Adds to a trace a row for the steps, with the share of each part, and one for each part; once, and on CPU only.

    The profiler names an operation on the CPU by its kind alone (`Conv2D`) and a piece of XLA's program by what the
    compiler made of it (`add_rsqrt_fusion`). On a GPU, TensorBoard itself shows scopes, in its row *TensorFlow Name
    Scope*; the CPU's times would be those of the launches there.

    Args:
      path: an `*.xplane.pb`, replaced.

    Raises:
      InputError: it cannot be written.
    """
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    if any(plane.name.startswith("/device:") for plane in space.planes):
        return
    host = next((plane for plane in space.planes if plane.name == "/host:CPU"), None)
    windows, busy = _measure(host, _compiled_parts(space)) if host is not None else ({}, {})
    if not windows:
        return
    plane = space.planes.add(id=1 + max(plane.id for plane in space.planes), name=_PLANE)
    names: dict[str, int] = {}
    for number, part in enumerate(PARTS, 1):
        plane.stat_metadata[number].id = number
        plane.stat_metadata[number].name = f"{part} %"
    rows = {"step": [(f"step {number}", *window) for number, window in windows.items()],
            **{part: [(part, *span) for spans in busy[part].values() for span in spans] for part in PARTS}}
    origin = min(begin for begin, _ in windows.values())
    for index, (row, events) in enumerate(rows.items()):
        line = plane.lines.add(id=index, display_id=index, name=row, display_name=row, timestamp_ns=origin // 1000)
        for name, begin, end in events:
            key = names.setdefault(name, len(names) + 1)
            plane.event_metadata[key].id, plane.event_metadata[key].name = key, name
            event = line.events.add(metadata_id=key, offset_ps=begin - origin // 1000 * 1000, duration_ps=end - begin)
            for number, part in enumerate(PARTS, 1) if row == "step" else ():
                taken = sum(last - first for first, last in busy[part].get(int(name.split()[1]), ()))
                event.stats.add(metadata_id=number, double_value=round(100 * taken / max(end - begin, 1), 1))
    write_atomically(path, space.SerializeToString())


def _measure(host: xplane_pb2.XPlane, compiled: Mapping[tuple[int, str], str]
             ) -> tuple[dict[int, Span], dict[str, dict[int, list[Span]]]]:
    """Returns when each step ran, by its number, and for each part and step the pieces in which it was at work."""
    stats = {key: stat.name for key, stat in host.stat_metadata.items()}
    names = {key: event.name for key, event in host.event_metadata.items()}
    parts = {key: "input" if name == "input" else part_of(name.rpartition(":")[0]) for key, name in names.items()}
    windows: dict[int, Span] = {}
    found: list[tuple[int, int, str]] = []
    for line in host.lines:
        for event in line.events:
            begin = line.timestamp_ns * 1000 + event.offset_ps
            span = (begin, begin + event.duration_ps)
            part = parts[event.metadata_id]
            if part is None and event.stats:
                given = {stats[stat.metadata_id]: stat for stat in event.stats}
                if names[event.metadata_id] == STEP and "step_num" in given:
                    windows[given["step_num"].int64_value] = span
                elif "hlo_op" in given:
                    program = given["program_id"]
                    key = (program.int64_value or program.uint64_value, stats[given["hlo_op"].ref_value])
                    part = compiled.get(key)
            if part is not None:
                found.append((*span, part))
    windows = dict(sorted(windows.items()))
    busy: dict[str, dict[int, list[Span]]] = {part: {} for part in PARTS}
    order = iter(windows.items())
    step, (_, until) = next(order, (0, (0, 0)))
    for begin, end, part in sorted(found):
        while begin >= until:
            step, (_, until) = next(order, (0, (0, begin + 1)))
        if step not in windows or begin < windows[step][0]:
            continue  # between two steps, as in a validation
        pieces = busy[part].setdefault(step, [])
        if pieces and begin <= pieces[-1][1] + _GAP:
            pieces[-1] = (pieces[-1][0], max(pieces[-1][1], min(end, until)))
        else:
            pieces.append((begin, min(end, until)))
    return windows, busy


def _compiled_parts(space: xplane_pb2.XSpace) -> dict[tuple[int, str], str]:
    """Returns the part of each instruction of XLA's programs, by (program, name), where their metadata tell it."""
    parts: dict[tuple[int, str], str] = {}
    for program, event in ((key, event) for plane in space.planes if plane.name == "/host:metadata"
                           for key, event in plane.event_metadata.items()):
        for stat in event.stats:
            module = hlo_pb2.HloProto.FromString(stat.bytes_value).hlo_module
            named = {whole.id: {each.name: part_of(each.metadata.op_name) for each in whole.instructions}
                     for whole in module.computations}
            known = {part for inside in named.values() for part in inside.values() if part}
            for instruction in (each for whole in module.computations for each in whole.instructions):
                found = {part_of(instruction.metadata.op_name)} - {None}
                for called in instruction.called_computation_ids if not found else ():  # a fusion may have no name
                    found |= {part for part in named[called].values() if part}
                if len(found or known) == 1:  # what moves data has none: here it has the only part that there is
                    parts[program, instruction.name] = str(next(iter(found or known)))
    return parts


def part_of(name: str) -> str | None:
    """Returns the part of a step to which an operation of this name belongs (`forward` of `forward/stem/Conv2D`)."""
    for scope in name.split("/"):
        if scope in PARTS:
            return scope
        if scope == _GRADIENTS:
            return "backward"
    return None
