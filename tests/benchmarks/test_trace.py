"""The trace's parts of a step are read as the file has them, and held against the clock."""

import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks import __main__ as command
from benchmarks import trace
from bloodcell.errors import InputError

MS = 10**9  # picoseconds


def _write(path, steps, augment, plane=trace.PLANE):
    """Writes a trace as bloodcell's profiler does: rows `step` and `augment`, (begin, milliseconds) each."""
    space = xplane_pb2.XSpace()
    space.planes.add(id=1, name="/host:CPU").lines.add(name="python").events.add(duration_ps=77 * MS)
    added = space.planes.add(id=2, name=plane)
    for row, events in (("step", steps), ("augment", augment)):
        line = added.lines.add(name=row, timestamp_ns=5000)
        for begin, duration in events:
            line.events.add(offset_ps=begin * MS, duration_ps=duration * MS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(space.SerializeToString())


def test_pieces_of_a_part_are_summed_step_by_step(tmp_path):
    _write(tmp_path / "a" / "vm.xplane.pb", [(0, 100), (100, 200), (400, 50)],
           [(1, 10), (20, 5), (150, 30), (310, 999)])  # the last one lies between two steps
    found = trace.read(tmp_path)
    assert found["step"] == pytest.approx([0.1, 0.2, 0.05])
    assert found["augment"] == pytest.approx([0.015, 0.03, 0.0])
    _write(tmp_path / "b" / "vm.xplane.pb", [(0, 10)], [(0, 4)])
    assert trace.read(tmp_path)["augment"] == pytest.approx([0.015, 0.03, 0.0, 0.004])
    assert trace.read(tmp_path / "b" / "vm.xplane.pb")["step"] == pytest.approx([0.01])


def test_a_runs_folder_is_printed(tmp_path, capsys):
    _write(tmp_path / "tensorboard" / "vm.xplane.pb", [(0, 100), (100, 200)], [(0, 10), (100, 40)])
    command.main(["trace", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("(2 steps)")
    assert lines[2].split() == ["augment", "25.00", "17.50", "32.50", "15.0%"]


@pytest.mark.parametrize("content", [None, "another plane", b"no trace at all"])
def test_a_folder_without_a_trace_is_one_line(content, tmp_path):
    if content == "another plane":
        _write(tmp_path / "vm.xplane.pb", [(0, 1)], [], plane="/device:GPU:0")
    elif content:
        (tmp_path / "vm.xplane.pb").write_bytes(content)
    with pytest.raises(InputError, match=r"expected a profiler's trace.* try the folder of a training with") as error:
        trace.read(tmp_path)
    assert "\n" not in str(error.value)
