"""Sets written as shards: read back as they were, and never half there."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from bloodcell.data import tfrecord, tfrecord_writer
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError


def cells(n: int, size: int = 10, labelled: bool = True, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, size, size, 3), np.uint8),
                    rng.permutation(np.arange(n, dtype=np.int64) % 3) if labelled else None, np.arange(n),
                    ("ä", "b", "c") if labelled else (), "test", tuple(f"{i}/x y.png" for i in range(n)))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_png_shards_give_back_every_pixel_label_and_name(tmp_path, cache):
    expected = cells(600)  # more than are encoded at a time
    done: list[int] = []
    shards = tfrecord_writer.write(expected, tmp_path / "new" / "folder", name="clean", shard_bytes=100_000,
                                   on_images=done.append)
    count = len(shards)
    assert [path.name for path in shards] == [f"clean-{i:05d}-of-{count:05d}.tfrecord" for i in range(count)]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]
    assert count > 2
    assert all(50_000 < path.stat().st_size < 120_000 for path in shards[:-1])
    assert done == [256, 512, 600]
    got = tfrecord.load(f"{shards[0].parent}/clean-*.tfrecord", cache=cache)
    np.testing.assert_array_equal(got.images[:], expected.images)
    np.testing.assert_array_equal(got.labels, expected.labels)
    assert (got.class_names, got.files, got.left_out) == (expected.class_names, expected.files, ())
    assert got.fingerprint() == expected.fingerprint()


def test_a_streamed_set_can_be_written_again_and_jpeg_is_near(tmp_path):
    ramp = np.arange(32, dtype=np.uint8)[:, None, None] * np.array([7, 3, 1], np.uint8)  # smooth, as photographs are
    expected = ImageSet(np.broadcast_to(ramp, (3, 32, 32, 3)).copy(), None, np.arange(3), (), "x", ("a", "b", "c"))
    tfrecord_writer.write(expected, tmp_path / "one")
    stored = tfrecord.load(f"{tmp_path}/one/*", labelled=False, cache="none")
    tfrecord_writer.write(stored, tmp_path / "two", encoding="jpeg", quality=95)
    got = tfrecord.load(f"{tmp_path}/two/*", labelled=False)
    assert got.labels is None
    assert np.abs(got.images[:].astype(int) - expected.images[:]).mean() < 3
    assert (tmp_path / "two" / "images-00000-of-00001.tfrecord").read_bytes().count(b"\xff\xd8\xff") == 3


def test_a_set_with_a_missing_shard_is_refused_and_a_part_that_was_asked_for_is_not(tmp_path):
    shards = tfrecord_writer.write(cells(30), tmp_path, shard_bytes=2_000)
    assert len(tfrecord.load(str(shards[1]))) < 30
    shards[3].unlink()
    for pattern in (f"{tmp_path}/*.tfrecord", str(shards[1])):
        with pytest.raises(InputError, match=f"expected {len(shards)} shards, received 1 fewer, without images-00003"):
            tfrecord.load(pattern)
    (tmp_path / "images-00003-of-00004.tfrecord").touch()
    with pytest.raises(InputError, match="shards of one set"):
        tfrecord.load(f"{tmp_path}/*.tfrecord")


def test_writing_again_replaces_the_set_and_nothing_else(tmp_path):
    tfrecord_writer.write(cells(30), tmp_path, shard_bytes=2_000)
    others = [tmp_path / name for name in ("images2-00000-of-00001.tfrecord", "images.tfrecord")]
    for path in others:
        path.write_bytes(b"")
    (tmp_path / ".images-00000.1.tmp").write_bytes(b"of a run that was killed")
    new, = tfrecord_writer.write(cells(4, seed=1), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, *others])
    np.testing.assert_array_equal(tfrecord.load(str(new)).images, cells(4, seed=1).images)


def outcome(call: Callable[[], str]) -> str:
    """What a call returns, or the line of its error."""
    try:
        return call()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("stage", range(12))
def test_wherever_writing_fails_there_is_the_old_set_the_new_one_or_none_that_looks_whole(tmp_path, monkeypatch, stage):
    """The disk fails at the n-th sync, unlink or rename; the old and the new set have three shards each."""
    old, new = (cells(30, seed=seed) for seed in (1, 2))
    assert len(tfrecord_writer.write(old, tmp_path, shard_bytes=5_000)) == 3
    calls = 0

    def failing(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > stage:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)
        return call

    with monkeypatch.context() as patch:
        for where, name in ((os, "fsync"), (os, "rename"), (pathlib.Path, "unlink")):
            patch.setattr(where, name, failing(getattr(where, name)))
        said = outcome(lambda: str(tfrecord_writer.write(new, tmp_path, shard_bytes=5_000)))
    got = outcome(lambda: tfrecord.load(f"{tmp_path}/*.tfrecord").fingerprint())
    assert ("No space left on device" in said) == (stage < 11)
    if stage < 4:  # three syncs; then the first old shard goes
        assert got == old.fingerprint()
    elif stage < 10:  # the other two, a sync, three names
        assert ("expected 3 shards" in got) or ("no match" in got)
    else:
        assert got == new.fingerprint()


KILLED = """
import pathlib, sys
import numpy as np
from bloodcell.data import tfrecord_writer
from bloodcell.data.dataset import ImageSet
n = 200_000
images = ImageSet(np.broadcast_to(np.zeros((1, 32, 32, 3), np.uint8), (n, 32, 32, 3)), None, np.arange(n), (), "x",
                  ("",) * n)
tfrecord_writer.write(images, pathlib.Path(sys.argv[1]), shard_bytes=50_000)
"""


def test_a_killed_write_leaves_no_set(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.iterdir())) >= 4
    with pytest.raises(InputError, match="no match"):
        tfrecord.load(f"{tmp_path}/*.tfrecord")


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        tfrecord_writer.write(cells(1), tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="plain name"):
        tfrecord_writer.write(cells(1), tmp_path, name="../x")
