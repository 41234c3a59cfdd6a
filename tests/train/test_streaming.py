"""A training learns the same from streamed shards, from memory and from the device, and may change between them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from bloodcell.commands import common, parts
from bloodcell.data import tfrecord_writer
from bloodcell.data.pipeline import Pipeline
from bloodcell.data.records import RecordImages
from bloodcell.train import checkpoints, loop
from bloodcell.train import strategy as strategies


@pytest.fixture
def config(tmp_path, make_images, make_config):
    tfrecord_writer.write(make_images(60), tmp_path / "data", shard_bytes=4_000)
    return make_config(data=f"{tmp_path}/data/*.tfrecord", split="fractions(0.7, 0.3)", augment="invert@0.5",
                       model="plain", clean="none", jit="off")


def _fit(config, run_dir, **more):
    runtime = strategies.resolve(strategy="none", replicas=0, precision="float32", jit=config.jit, seed=config.seed)
    loaded = parts.load(config)
    common.print_header(runtime, config.data, loaded, cache=config.cache, learned=("train", "val"))
    assert isinstance(loaded["train"].images, RecordImages) == (config.cache == "none")
    return checkpoints.weights_sha256(loop.fit(config, runtime, loaded["train"], loaded["val"], run_dir, **more))


@pytest.mark.usefixtures("tiny")
def test_weights_are_the_same_streamed_and_in_memory_and_half_and_half(tmp_path, config, capsys):
    digests = []
    for cache, said in (("none", "3 classes, streamed"), ("device", "3 classes, on each device")):
        digests.append(_fit(dataclasses.replace(config, cache=cache), tmp_path / cache))
        assert capsys.readouterr().out.splitlines()[0].endswith(said)

    def stop(record):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        _fit(dataclasses.replace(config, cache="memory"), tmp_path / "half", on_epoch=stop)
    assert capsys.readouterr().out.splitlines()[0].endswith("3 classes, in memory")
    digests.append(_fit(dataclasses.replace(config, cache="none"), tmp_path / "half"))
    assert len(set(digests)) == 1


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("flags", [
    {"jit": "step"}, {"jit": "augment", "balance": "replicate(30)", "loss": "jsd(weight=12)"}])
def test_weights_are_the_same_from_the_device_compiled_balanced_and_in_views(tmp_path, config, flags):
    memory, device = (_fit(dataclasses.replace(config, cache=cache, **flags), tmp_path / cache)
                      for cache in ("memory", "device"))
    assert memory == device


def test_a_pipeline_on_the_device_sends_positions_and_gives_a_batch_with_its_images(make_images):
    images = make_images(20)
    plain = Pipeline(images, batch_size=8)
    there = plain.on_devices(tf.distribute.get_strategy())
    np.testing.assert_array_equal(there.resident.numpy(), images.images)
    first, same = next(iter(there.epoch(1, 2, skip_steps=1))), plain.batch(1, 2, 1)
    assert set(first) == {"index", "label", "id", "weight"}
    np.testing.assert_array_equal(images.images[first["index"].numpy()], same["image"].numpy())
    batch = there.batch(1, 2, 1)
    assert set(batch) == set(same)
    assert all(np.array_equal(batch[name], same[name]) for name in same)


def test_auto_keeps_a_set_on_gpus_where_it_takes_less_than_a_fourth_of_their_memory(make_images, config):
    images = make_images(100)  # 19,200 bytes
    for memory, kept in ((None, False), (76_000, False), (77_000, True)):
        runtime = strategies.Runtime(tf.distribute.get_strategy(), 1, "float32", "step", "GPU", device_memory=memory)
        assert runtime.keeps(images, "auto") == kept
        assert runtime.keeps(images, "device")
        assert not runtime.keeps(images, "memory")
    streamed = parts.load(dataclasses.replace(config, cache="none"))["train"]
    assert not runtime.keeps(streamed, "auto")
