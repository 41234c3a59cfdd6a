"""A training learns the same from shards that it streams as from the images in memory, and may change between them."""

import dataclasses

import pytest

from bloodcell.commands import common, parts
from bloodcell.data import tfrecord_writer
from bloodcell.data.records import RecordImages
from bloodcell.train import checkpoints, loop
from bloodcell.train import strategy as strategies


@pytest.fixture
def config(tmp_path, make_images, make_config):
    tfrecord_writer.write(make_images(60), tmp_path / "data", shard_bytes=4_000)
    return make_config(data=f"{tmp_path}/data/*.tfrecord", split="fractions(0.7, 0.3)", augment="flip | rotate(90)",
                       clean="none", jit="off")


def _fit(config, run_dir, **more):
    runtime = strategies.resolve(strategy="none", replicas=0, precision="float32", jit="off", seed=config.seed)
    loaded = parts.load(config)
    common.print_header(runtime, config.data, loaded)
    assert isinstance(loaded["train"].images, RecordImages) == (config.cache == "none")
    return checkpoints.weights_sha256(loop.fit(config, runtime, loaded["train"], loaded["val"], run_dir, **more))


@pytest.mark.usefixtures("tiny")
def test_weights_are_the_same_streamed_and_in_memory_and_half_and_half(tmp_path, config, capsys):
    digests = []
    for cache in ("memory", "none"):
        digests.append(_fit(dataclasses.replace(config, cache=cache), tmp_path / cache))
        first = capsys.readouterr().out.splitlines()[0]
        assert first.endswith({"memory": "3 classes, in memory", "none": "3 classes, streamed"}[cache])

    def stop(record):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        _fit(dataclasses.replace(config, cache="memory"), tmp_path / "half", on_epoch=stop)
    digests.append(_fit(dataclasses.replace(config, cache="none"), tmp_path / "half"))
    assert len(set(digests)) == 1
