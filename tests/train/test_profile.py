"""A profiler's trace holds the steps asked for, and the parts of a step by their names; read from the file alone."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from bloodcell import augment
from bloodcell.errors import InputError
from bloodcell.train import losses, optimizers, step
from bloodcell.train.profiler import Profiler, add_rows
from bloodcell.train.strategy import Runtime

PARTS = ["input", "augment", "forward", "backward", "apply"]
PREFIXES = {"augment": "augment/", "forward": "forward/", "backward": ("backward/", "gradient_tape/"),
            "apply": "apply/"}


@tf.function(autograph=False)
def counted(batch, epoch):
    """Stands for a step where only the count matters."""
    with tf.name_scope("forward"):
        return tf.cast(tf.reduce_sum(batch["image"]), tf.float32) + tf.cast(epoch, tf.float32)


def trace(folder, steps, take, images, *, epochs=1):
    """Takes steps of 8 images under a profiler; returns how many."""
    profiler, taken = Profiler(steps, folder), 0
    batches = tf.data.Dataset.from_tensor_slices({
        "image": images.images, "id": images.ids, "label": images.labels,
        "weight": np.ones(len(images.labels), np.float32)}).batch(8)
    for epoch in range(epochs):
        for batch in profiler.steps(batches):
            profiler.after_step(take(batch, tf.constant(epoch, tf.int64)))
            taken += 1
    profiler.stop()
    return taken


def read(folder):
    """Returns the planes of the only trace below a folder, by name."""
    path, = folder.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    return {plane.name: plane for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes}


def events(plane):
    """Yields (row, name, begin, end, stats) with times in picoseconds."""
    names = {key: stat.name for key, stat in plane.stat_metadata.items()}
    for line in plane.lines:
        for event in line.events:
            begin = line.timestamp_ns * 1000 + event.offset_ps
            stats = {names[stat.metadata_id]: getattr(stat, stat.WhichOneof("value")) for stat in event.stats}
            yield line.name, plane.event_metadata[event.metadata_id].name, begin, begin + event.duration_ps, stats


def rows(planes):
    plane, = (plane for name, plane in planes.items() if name.startswith("/device:CUSTOM:"))
    assert [line.name for line in plane.lines] == ["step", *PARTS]
    return {line.name: [event for event in events(plane) if event[0] == line.name] for line in plane.lines}


def numbers(planes):
    """Returns the steps that the host numbered, and those that our row shows."""
    host = [stats["step_num"] for _, name, _, _, stats in events(planes["/host:CPU"])
            if name == "train" and "step_num" in stats]
    return host, [int(name.removeprefix("step ")) for _, name, *_ in rows(planes)["step"]]


@pytest.mark.parametrize("jit", ["off", "augment", "step"])
def test_every_part_of_every_step_is_visible_by_its_name(tmp_path, tiny, make_images, jit):
    runtime = Runtime(tf.distribute.get_strategy(), 1, "float32", jit, "CPU")
    model = tiny("plain")
    optimizer = optimizers.build(optimizers.parse("sgd(momentum=0.9)"), learning_rate=1e-2,
                                 variables=model.trainable_variables, precision="float32")
    inputs = step.inputs(augment.parse("flip"), runtime, 0, num_classes=3)
    take = step.train_step(model, optimizer, inputs=inputs, loss=losses.parse("cross_entropy"),
                           class_weights=np.ones(3, np.float32), runtime=runtime)
    trace(tmp_path, (2, 4), take, make_images(40))
    planes = read(tmp_path)
    assert numbers(planes) == ([2, 3, 4], [2, 3, 4])
    shown = rows(planes)
    for part in PARTS:
        assert {name for _, name, *_ in shown[part]} == {part}
        for _, _, begin, end, stats in shown["step"]:
            inside = [last - first for _, _, first, last, _ in shown[part] if begin <= first and last <= end]
            assert inside
            assert stats[f"{part} %"] == pytest.approx(100 * sum(inside) / (end - begin), abs=0.06)
    assert min(PARTS, key=lambda part: shown[part][0][2]) == "input"

    # The rows against the operations that the profiler itself has seen.
    host = list(events(planes["/host:CPU"]))
    ends = {end for _, _, _, end, _ in shown["step"]}  # an operation may end a moment after the step
    for part in {"off": PREFIXES, "augment": ["forward", "backward", "apply"], "step": []}[jit]:
        operations = [event for event in host if event[1].startswith(PREFIXES[part])]
        assert len(operations) > 5
        for _, name, begin, end, _ in operations:
            assert any(first <= begin and (end <= last or last in ends) for _, _, first, last, _ in shown[part]), name
        assert {first for _, _, first, _, _ in shown[part]} <= {begin for _, _, begin, _, _ in operations}
    if jit != "step":
        assert any("Conv2DBackpropFilter" in name for _, name, *_ in host if name.startswith(PREFIXES["backward"]))


def test_the_profiler_traces_exactly_the_steps_asked_for_over_epochs(tmp_path, make_images):
    assert trace(tmp_path, (2, 5), counted, make_images(24), epochs=3) == 9
    planes = read(tmp_path)
    assert numbers(planes) == ([2, 3, 4, 5], [2, 3, 4, 5])  # three steps an epoch
    assert sum("__inference_counted" in name for _, name, *_ in events(planes["/host:CPU"])) == 4


def test_a_range_that_begins_an_epoch_holds_the_fetching_of_its_first_batch(tmp_path, make_images):
    trace(tmp_path, (4, 5), counted, make_images(24), epochs=2)
    planes = read(tmp_path)
    assert numbers(planes) == ([4, 5], [4, 5])
    assert len(rows(planes)["input"]) == 2


def test_a_range_longer_than_the_training_is_written_with_its_rows(tmp_path, make_images):
    assert trace(tmp_path, (2, 900), counted, make_images(24)) == 3
    assert numbers(read(tmp_path)) == ([2, 3], [2, 3])


def test_no_range_yields_the_same_batches_and_writes_nothing(tmp_path):
    profiler = Profiler(None, tmp_path)
    assert list(profiler.steps(range(5))) == list(range(5))
    assert list(profiler.steps([])) == []
    profiler.stop()
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path, make_images):
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(InputError, match=r"profile_steps: .*tensorboard \(.*not a directory\), try") as error:
        trace(tmp_path, (1, 2), counted, make_images(24))
    assert "\n" not in str(error.value)


def test_rows_are_added_once_and_never_to_a_trace_of_a_gpu(tmp_path):
    path = tmp_path / "vm.xplane.pb"
    space = xplane_pb2.XSpace()
    host = space.planes.add(id=1, name="/host:CPU")
    for key, name in {1: "train", 2: "forward/Conv2D:Conv2D"}.items():
        host.event_metadata[key].id, host.event_metadata[key].name = key, name
    host.stat_metadata[7].id, host.stat_metadata[7].name = 7, "step_num"
    line = host.lines.add(timestamp_ns=1000)
    line.events.add(metadata_id=1, offset_ps=0, duration_ps=10**9).stats.add(metadata_id=7, int64_value=12)
    line.events.add(metadata_id=2, offset_ps=10**8, duration_ps=25 * 10**7)
    path.write_bytes(space.SerializeToString())
    add_rows(path)
    once = path.read_bytes()
    plane = xplane_pb2.XSpace.FromString(once).planes[-1]
    forward, = (event for event in events(plane) if event[0] == "forward")
    assert forward[2:4] == (10**6 + 10**8, 10**6 + 35 * 10**7)
    assert next(events(plane))[4] == dict.fromkeys((f"{part} %" for part in PARTS), 0.0) | {"forward %": 25.0}
    add_rows(path)
    assert path.read_bytes() == once

    space.planes.add(id=2, name="/device:GPU:0")
    path.write_bytes(space.SerializeToString())
    add_rows(path)
    assert path.read_bytes() == space.SerializeToString()
