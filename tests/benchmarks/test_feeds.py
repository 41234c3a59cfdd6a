"""Peers that feed a training deliver every image that they are counted for, with its own label, and augment each."""

import collections
import io
import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import SIDE, streaming
from benchmarks import input as feeding
from benchmarks.peers import feeds
from benchmarks.peers.feeds import sources, tfdata

IMAGES, BATCH = 24, 8
DECODED = 2.0  # grey levels, mean of an image: libraries decode JPEG with different inverse transforms


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same images as shards and files, and in memory."""
    folder = tmp_path_factory.mktemp("sets")
    written = sorted(map(str, pathlib.Path(streaming.write(folder / "records", IMAGES, "jpeg", cells=12)).parent.glob(
        "*.tfrecord")))
    encoded = sources.encoded(written, folder / "files")
    images = np.stack([np.asarray(Image.open(file)) for file in encoded.files])
    return {"shards": encoded, "arrays": feeds.Source(encoded.labels, images=images)}


def _started(feeder, source, *, augment):
    try:
        implementation = feeder.feed()
    except (ImportError, OSError) as error:
        pytest.skip(f"{feeder.title}: {error}")
    return implementation.start(source, batch=BATCH, augment=augment)


def _taken(feed, batches):
    """Copies: a batch holds until the next one is asked for."""
    return [(images.copy(), labels.copy()) for images, labels in feed(batches)]


def test_a_source_has_a_file_for_each_record_byte_by_byte(shards):
    encoded = shards["shards"]
    assert len(encoded.files) == len(encoded.labels) == IMAGES
    first = Image.open(io.BytesIO(pathlib.Path(encoded.files[0]).read_bytes()))
    assert (first.format, first.size) == ("JPEG", (SIDE, SIDE))


@pytest.mark.parametrize("kind", ["shards", "arrays"])
@pytest.mark.parametrize("feeder", feeds.FEEDERS, ids=lambda feeder: feeder.name)
def test_a_feed_delivers_what_is_counted_and_every_image_with_its_label(feeder, kind, shards):
    plain = _started(feeder, shards[kind], augment=False)
    known, labels = shards["arrays"].images.astype(np.float32), shards["arrays"].labels
    found: collections.Counter[int] = collections.Counter()
    for batches in (1, 2, 3):  # from a call to the next, and over the set's end
        taken = _taken(plain, batches)
        assert [(images.shape, images.dtype, own.shape) for images, own in taken] == [
            ((BATCH, SIDE, SIDE, 3), np.uint8, (BATCH,))] * batches
        for image, label in itertools.chain(*(zip(*batch, strict=True) for batch in taken)):
            off = np.abs(known - image).mean((1, 2, 3))
            assert off.min() <= DECODED
            assert label in labels[off == off.min()]
            found[int(off.argmin())] += 1
    assert sum(found.values()) == 6 * BATCH
    assert len(found) > IMAGES / 2  # DALI draws from a buffer that it refills past the set's end: not each every time


@pytest.mark.parametrize("feeder", [each for each in feeds.FEEDERS if each.augments], ids=lambda each: each.name)
def test_a_feed_augments_every_image_by_itself(feeder, shards, monkeypatch):
    # One call at a time: Keras's generators read and write their state in two ops, so calls at once may draw alike.
    monkeypatch.setattr(tfdata, "CORES", 1)
    one = np.repeat(shards["arrays"].images[:1], IMAGES, axis=0)
    taken = _taken(_started(feeder, feeds.Source(np.arange(IMAGES), images=one), augment=True), IMAGES // BATCH)
    images, labels = (np.concatenate(each) for each in zip(*taken, strict=True))
    assert sorted(labels) == list(range(IMAGES))
    assert images.dtype in (np.uint8, np.float32)
    assert images.min() >= 0
    assert 1 < images.max() <= 255
    assert len({image.tobytes() for image in images}) == IMAGES
    assert len({image[SIDE // 2].tobytes() for image in images}) > 0.9 * IMAGES


def test_tf_data_alone_does_not_pretend_to_augment(shards):
    with pytest.raises(ValueError, match="expected False"):
        feeds.FEEDERS[0].feed().start(shards["shards"], batch=BATCH, augment=True)


def test_a_feed_that_delivers_less_than_it_is_counted_for_is_no_contestant():
    def feed(batches):
        return iter([(np.zeros([2, 1, 1, 3], np.uint8), np.zeros(2, np.int64))] * (batches - 1))

    contestant = feeds.contestant("case", feeds.FEEDERS[0], feed, batch=2, steps=3)
    assert contestant.images == 6
    with pytest.raises(RuntimeError, match="expected 6 images, received 4"):
        contestant.run(0)


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch):
    absent = feeds.Feeder("absent", "Absent", "no_such_file", "no-such-distribution", "not at all")
    monkeypatch.setattr(feeds, "FEEDERS", (absent, feeds.FEEDERS[0]))
    present, missing = feeds.available()
    assert list(present) == ["plain"]
    assert missing["absent"].startswith("not installed")
    assert [bool(each["version"]) for each in feeds.about(present).values()] == [False, True]


def test_demand_is_the_rate_of_the_batches_that_are_tensors():
    def row(case, name, median, q1, q3):
        return {"case": case, "implementation": name, "images_per_second": {"median": median, "q1": q1, "q3": q3}}

    rows = [row("pipeline, jpeg", "memory", 500.0, 450.0, 600.0), row("training a", "memory", 99.0, 98.0, 100.0),
            row("training a", "tensors", 100.0, 90.0, 125.0)]
    assert feeding.demand(rows) == [{"case": "pipeline, jpeg", "implementation": "memory", "training": "a",
                                     "part": {"median": 5.0, "q1": 3.6, "q3": 6.667}}]
    assert feeding.demand(rows[:1]) == []
