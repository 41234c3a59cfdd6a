"""The pipeline: every image once an epoch, in an order of (seed, epoch) alone, in batches of one shape."""

import gc
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline, num_batches


def make(n: int, size: int = 4, labelled: bool = True) -> Any:  # an ImageSet; Any, because its labels may be None
    rng = np.random.default_rng(n)
    return ImageSet(rng.integers(0, 256, (n, size, size, 3), np.uint8),
                    np.arange(n, dtype=np.int64) % 3 if labelled else None,
                    np.arange(n, dtype=np.int64) * 10 + 7, ("a", "b", "c"), "test", tuple(map(str, range(n))))


def read(batches) -> dict[str, np.ndarray]:
    elements = list(batches.as_numpy_iterator())
    return {key: np.stack([element[key] for element in elements]) for key in elements[0]}


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 5), (7, 1)])
def test_every_image_comes_once_and_padding_weighs_nothing(n, batch_size):
    images = make(n)
    pipeline = Pipeline(images, batch_size=batch_size)
    for batches in (pipeline.epoch(1, 0), pipeline.in_order()):
        got = read(batches)
        steps = num_batches(n, batch_size)
        assert got["image"].shape == (steps, batch_size, 4, 4, 3)
        assert int(batches.cardinality()) == steps == pipeline.num_batches
        real = got["weight"].ravel() == 1
        assert real.sum() == n
        assert got["weight"].ravel()[~real].sum() == 0
        index = (got["id"].ravel() - 7) // 10
        np.testing.assert_array_equal(np.sort(index[real]), np.arange(n))
        np.testing.assert_array_equal(got["image"].reshape(-1, 4, 4, 3), images.images[index])  # padding too is real
        np.testing.assert_array_equal(got["label"].ravel(), images.labels[index])


def test_elements_have_static_shapes_and_the_promised_types():
    spec = Pipeline(make(10), batch_size=4).epoch(0, 0).element_spec
    assert {key: (value.dtype.name, tuple(value.shape)) for key, value in spec.items()} == {
        "image": ("uint8", (4, 4, 4, 3)), "label": ("int64", (4,)), "id": ("int64", (4,)), "weight": ("float32", (4,))}


def test_order_is_a_pure_function_of_seed_and_epoch():
    ids = {(seed, epoch): read(Pipeline(make(50), batch_size=7).epoch(seed, epoch))["id"].tolist()
           for seed in (0, 1, -1) for epoch in (0, 1)}
    assert len({str(order) for order in ids.values()}) == 6
    pipeline = Pipeline(make(50), batch_size=7)
    pipeline.epoch(5, 5)
    assert read(pipeline.epoch(1, 1))["id"].tolist() == ids[1, 1]
    key = np.array([1, 1], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).permutation(50) * 10 + 7
    np.testing.assert_array_equal(np.ravel(ids[1, 1])[:50], expected)


def test_in_order_is_in_order():
    np.testing.assert_array_equal(read(Pipeline(make(9), batch_size=3).in_order())["id"].ravel(), np.arange(9) * 10 + 7)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_skipping_steps_gives_the_rest_of_the_same_epoch(skip):
    pipeline = Pipeline(make(10), batch_size=4)
    whole = list(pipeline.epoch(3, 2).as_numpy_iterator())
    rest = list(pipeline.epoch(3, 2, skip_steps=skip).as_numpy_iterator())
    assert len(rest) == 3 - skip
    for one, other in zip(whole[skip:], rest, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_impossible_requests_are_refused():
    pipeline = Pipeline(make(10), batch_size=4)
    with pytest.raises(ValueError, match="skip_steps"):
        pipeline.epoch(0, 0, skip_steps=4)
    with pytest.raises(ValueError, match="batch size"):
        Pipeline(make(10), batch_size=0)


def test_the_pipeline_keeps_what_it_was_given_when_the_callers_array_changes_or_goes():
    images = make(6)
    expected = images.images.copy()
    pipeline = Pipeline(images, batch_size=6)
    images.images[...] = 0
    del images
    gc.collect()
    for _ in range(2):
        np.testing.assert_array_equal(read(pipeline.in_order())["image"][0], expected)


def test_unlabelled_sets_are_fed_with_label_0():
    assert read(Pipeline(make(5, labelled=False), batch_size=5).in_order())["label"].tolist() == [[0] * 5]


def test_the_images_are_not_copied_into_the_graph():
    """4 MB of images: the graph of the epoch's map captures the one tensor and holds no copy."""
    images = make(2000, 26)
    pipeline = Pipeline(images, batch_size=500)
    batches = pipeline.epoch(0, 0)
    graphs = [wrapper.function.graph for stage in _stages(batches) for wrapper in stage._functions()]
    assert len(graphs) == 1
    assert graphs[0].as_graph_def().ByteSize() < 50_000
    assert any(tensor is pipeline._images for tensor, _ in graphs[0].captures)


def _stages(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    return [dataset, *(stage for inner in dataset._inputs() for stage in _stages(inner))]


# In a process of its own: logical devices can only be set before TensorFlow starts, and memory is that of a process.
PROCESS = """
import json, sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)
from bloodcell.data.dataset import ImageSet
from bloodcell.data.pipeline import Pipeline


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def make(n):
    images = np.full((n, 96, 96, 3), 7, np.uint8)
    return ImageSet(images, np.zeros(n, np.int64), np.arange(n), ("a",), "test", tuple(map(str, range(n))))


copies = None
if sys.platform.startswith("linux"):
    for _ in Pipeline(make(128), batch_size=64).epoch(0, 0):  # whatever TensorFlow loads at first use
        pass
    images = make(6000)
    before = resident()
    pipeline = Pipeline(images, batch_size=64)
    for _ in pipeline.epoch(0, 0):
        pass
    copies = (resident() - before) / images.images.nbytes

n = 21
images = ImageSet(np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
                  np.arange(n, dtype=np.int64) % 2, np.arange(n, dtype=np.int64), ("a", "b"), "test",
                  tuple(map(str, range(n))))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rows = []
for batch in strategy.experimental_distribute_dataset(Pipeline(images, batch_size=8).epoch(0, 0)):
    values = {key: strategy.experimental_local_results(value) for key, value in batch.items()}
    for replica in range(2):
        one = {key: value[replica].numpy() for key, value in values.items()}
        assert one["image"].shape == (4, 2, 2, 3), one["image"].shape
        assert (one["image"][:, 0, 0, 0] == one["id"]).all()
        rows.append([one["id"].tolist(), one["weight"].tolist()])
alone = [batch["id"].tolist() for batch in Pipeline(images, batch_size=8).epoch(0, 0).as_numpy_iterator()]
print("RESULT" + json.dumps([copies, rows, alone]))
"""


@pytest.fixture(scope="module")
def told() -> list:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory from /proc")
def test_a_pipeline_and_its_epochs_take_one_copy_of_the_images(told):
    assert told[0] < 1.6


def test_an_epoch_writes_no_source_of_its_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # there autograph writes, and a kill leaves it there
    assert len(list(Pipeline(make(10), batch_size=4).epoch(0, 0))) == 3
    assert not list(tmp_path.iterdir())


def test_an_epoch_ends_when_its_last_batch_has_been_read():
    """TensorFlow's automatic tuning wakes after 10, 20, 40... ms, and its iterators end no earlier than it wakes."""
    pipeline = Pipeline(make(16), batch_size=4)
    iterators = [iter(pipeline.epoch(0, epoch)) for epoch in range(8)]
    for iterator in iterators:
        assert len(list(iterator)) == 4
    time.sleep(0.7)  # it wakes at 0.63 s and next at 1.27 s
    began = time.monotonic()
    del iterator
    iterators.clear()
    assert time.monotonic() - began < 0.3


def test_two_replicas_share_each_batch_and_see_every_image_once(told):
    _, rows, alone = told
    assert [rows[i][0] + rows[i + 1][0] for i in range(0, len(rows), 2)] == alone
    real = [i for ids, weights in rows for i, weight in zip(ids, weights, strict=True) if weight]
    assert sorted(real) == list(range(21))
