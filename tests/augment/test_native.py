"""The native op as a policy's user meets it: the same images, and one line where it cannot be had.

That every single op is within a grey level of XLA is in `test_laws`, a recipe's policy in `test_policy`; memory and
threads are in `test_native_robust`.
"""

import configparser
import json
import pathlib
import shutil
import subprocess
import sys

import cells
import native_library
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import pixels
from bloodcell.augment.native import backend, build, library, program, selftest
from bloodcell.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("xla_program")
COUNT, SIDE = 48, 64
# What the recipe in `test_policy` does not say: every primitive after every other, and what nests inside alternatives.
POLICIES = {
    "all primitives": "rotate(90) | contrast(0.5) | hue(0.2) | sharpness(0.9) | gridmask@0.5 | pixelate(0.5)@0.3 | "
                      "noise(9)@0.5 | jpeg(40)@0.5 | equalize@0.3 | autocontrast@0.5",
    "nested": "someof(2, oneof(hue(0.3), augmix(severity=5, width=2, depth=2)), posterize(3), "
              "oneof(flip, gray)@0.5) | perspective(0.3, fill='edge')@0.5",
}


@pytest.fixture(scope="module")
def images():
    return np.concatenate([cells.cells(COUNT // 2), cells.hard(COUNT // 2)])[:, 8:8 + SIDE, 8:8 + SIDE - 5]


def both(text, images):
    """The same draws through XLA and through the native op, compiled."""
    held, ids = tf.constant(images), tf.range(len(images), dtype=tf.int64)
    by_xla, native = (augment.parse(text, backend=name) for name in ("xla", "native"))

    @tf.function(jit_compile=True, autograph=False)
    def program():
        draws = by_xla.draw(ids, epoch=0, seed=3)
        return by_xla.apply(held, draws), native.apply(held, draws)

    return [shown.numpy() for shown in program()]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_gives_the_same_images_to_the_last_bit(name, images, native_op):
    """Where a single op may be off by one, a later one may make more of it; none of these ops is ever off."""
    by_xla, native = both(POLICIES[name], images)
    assert (by_xla != images).any()
    np.testing.assert_array_equal(native, by_xla)


def test_two_mixtures_in_a_program_are_what_each_is_alone(images, native_op):
    texts = ("augmix(severity=5, width=2, depth=2)", "augmix(severity=9, width=1)")
    policy = augment.parse(" | ".join(texts), backend="native")
    draws = policy.draw(tf.range(COUNT, dtype=tf.int64), epoch=0, seed=3)
    shown = tf.constant(images)
    for number, text in enumerate(texts, start=1):
        own = {path.replace(f"{number}.", "1.", 1): each for path, each in draws.items()
               if path.startswith(f"{number}.")}
        before, shown = shown, augment.parse(text, backend="native").apply(shown, own, dtype="uint8")
        assert (shown.numpy() != before.numpy()).any()
    np.testing.assert_array_equal(policy.apply(tf.constant(images), draws, dtype="uint8"), shown)


def test_the_last_row_is_rounded_like_any_other(native_op):
    """As the row above plus the whole difference it is half a level off in one value of a million; here is that one."""
    random = np.random.default_rng(0)
    above, last = random.integers(200, 256, (2, 5_000_000)), random.integers(0, 40, (2, 5_000_000))
    shift = random.random(5_000_000, np.float32) / 2
    top, low = (row[0].astype(np.float32) + (row[1] - row[0]).astype(np.float32) * shift for row in (above, last))
    exact = np.floor(last[0] + (last[1] - last[0]) * shift.astype(np.float64) + 0.5)
    rare = (np.floor(low - top + top + np.float32(0.5)) != exact) & (np.floor(low + np.float32(0.5)) == exact)
    images = np.stack([above, last], axis=1)[..., rare].T[..., np.newaxis].repeat(3, axis=-1)
    draws = {"x": tf.constant(shift[rare] / 2), "y": tf.zeros([rare.sum()])}  # of the width, which is two pixels
    op = augment.REGISTRY["translate_x"]
    active = tf.fill([len(images)], True)
    shown = native_library.apply_op(op, pixels.pack(tf.constant(images)), active, draws, op.defaults())
    assert len(images) > 5
    np.testing.assert_array_equal(pixels.unpack(shown, tf.float32)[:, 1, 0, 0], exact[rare])


@pytest.mark.parametrize("side", [96, 95])  # images that begin where registers may be stored past the caches, and not
def test_a_result_larger_than_any_cache_is_that_of_its_parts(side, native_op):
    images = np.resize(cells.hard(7)[:, :side, :side], (720, side, side, 3))  # 74 MiB of float32 and more
    policy = augment.parse("rotate(90) | autocontrast@0.5 | gridmask@0.5", backend="native")

    @tf.function(jit_compile=True, autograph=False)
    def transform(batch, ids):
        return policy(batch, ids, epoch=0, seed=3)

    ids = np.arange(len(images))
    whole = transform(images, ids).numpy()
    for first in range(0, len(images), 90):
        part = slice(first, first + 90)
        np.testing.assert_array_equal(whole[part], transform(images[part], ids[part]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "uint8"])
def test_every_result_type_holds_the_same_whole_levels(dtype, images, native_op):
    policy = augment.parse("rotate(30) | gamma(0.5)", backend="native")
    held, ids = tf.constant(images), tf.range(len(images), dtype=tf.int64)
    result = policy(held, ids, epoch=0, seed=0, dtype=dtype)
    assert result.dtype == tf.as_dtype(dtype)
    np.testing.assert_array_equal(tf.cast(result, tf.float32), policy(held, ids, epoch=0, seed=0))


def test_images_that_are_not_active_come_out_as_they_are(images, native_op):
    active = np.arange(COUNT) % 3 == 0
    shown = augment.parse("invert | augmix", backend="native")(
        tf.constant(images), tf.range(COUNT, dtype=tf.int64), epoch=0, seed=0, active=tf.constant(active)).numpy()
    np.testing.assert_array_equal(shown[~active], images[~active])
    assert (shown[active] != images[active]).any(axis=(1, 2, 3)).all()


def test_the_self_test_fails_where_the_kernel_computes_something_else(native_op, monkeypatch):
    both_right = selftest.differences(["hue(0.5)", "contrast(0.9)"], compiled=False)
    assert max(both_right) <= 1
    monkeypatch.setattr(program, "CODES", (*program.CODES[:2], "filter", "mix", *program.CODES[4:]))  # codes swapped
    with pytest.raises(tf.errors.InvalidArgumentError, match="an operand is of another type or shape"):
        selftest.differences(["hue(0.5)"], compiled=False)
    monkeypatch.setattr(program, "CURVES", {"contrast": 3, "autocontrast": 2, "equalize": 1})
    right, wrong = selftest.differences(["blur(3)", "contrast(0.9)"], compiled=False)
    assert right <= 1 < wrong


def test_asking_for_a_gradient_is_an_error(images, native_op):
    policy = augment.parse("noise(20)", backend="native")
    draws = policy.draw(tf.range(COUNT, dtype=tf.int64), epoch=0, seed=0)
    with tf.GradientTape() as tape:
        tape.watch(draws["1.noise"]["std"])
        shown = policy.apply(tf.constant(images), draws)
    with pytest.raises(LookupError, match="has no gradient"):
        tape.gradient(shown, draws["1.noise"]["std"])


def test_where_the_batch_is_not_known_beforehand_xla_takes_over_and_it_is_said(images, native_op):
    policy = augment.parse("hue(0.3)", backend="native")
    ids = np.arange(COUNT)
    batches = tf.data.Dataset.from_tensor_slices((images, ids)).batch(20)
    with pytest.warns(UserWarning, match="batches of one size, known beforehand; XLA augments"):
        batches = batches.map(lambda image, number: policy(image, number, epoch=0, seed=0))
    shown = np.concatenate([batch.numpy() for batch in batches])
    natively = policy(tf.constant(images), tf.constant(ids), epoch=0, seed=0)
    assert np.abs(shown - natively).max() <= 1  # not compiled in the map


def test_a_policy_of_too_many_steps_is_xlas_and_it_is_said(native_op):
    long = augment.parse(" | ".join(["hue(0.1)", "invert"] * 33), backend="native")
    held, ids = tf.zeros([2, 8, 8, 3], tf.uint8), tf.range(2, dtype=tf.int64)
    with pytest.warns(UserWarning, match="at most 64 steps"):
        assert long(held, ids, epoch=0, seed=0).shape == [2, 8, 8, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Which backend
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return library.folder()


def _keep(folder, **report):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / library.NAME).write_bytes(b"")
    if report:
        (folder / library.SELF_TEST).write_text(json.dumps(report))


def test_auto_says_in_a_line_why_it_does_not_take_the_native_op(empty_cache):
    def why():
        chosen = backend.choose("auto")
        assert chosen.name == "xla"
        assert "\n" not in chosen.why
        return chosen.why

    assert why() == "the native op is not built; python -m bloodcell.augment.native.build builds it"
    _keep(empty_cache.with_name("2.0.0-0123456789abcdef"))
    assert "was built for another TensorFlow or from other sources" in why()
    _keep(empty_cache)
    assert "was never tested here" in why()
    _keep(empty_cache, passed=True, wrong="", processor="another")
    assert "was tested on another processor" in why()
    _keep(empty_cache, passed=False, wrong="hue(0.5): 9 grey levels from XLA", processor=library.processor())
    assert why() == "the native op failed its self-test (hue(0.5): 9 grey levels from XLA)"
    _keep(empty_cache, passed=True, wrong="", processor=library.processor())
    assert "cannot be loaded" in why()  # an empty file is no library
    (empty_cache / library.SELF_TEST).write_text("[not JSON")
    assert "was never tested here" in why()


def test_asking_for_what_is_not_there_is_an_error_of_one_line(empty_cache):
    with pytest.raises(InputError) as refused:
        backend.choose("native")
    assert str(refused.value) == ("--backend=native: the native op is not built; python -m "
                                  "bloodcell.augment.native.build builds it")
    assert backend.choose("xla") == backend.Backend("xla")


def test_what_is_built_and_tested_is_taken(tmp_path, monkeypatch, native_op):
    made = library.folder() / library.NAME
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _keep(library.folder(), passed=True, wrong="", processor=library.processor())
    shutil.copy(made, library.folder() / library.NAME)
    monkeypatch.setattr(library, "load", lambda path: None)  # this process has one already
    assert backend.choose("auto") == backend.choose("native") == backend.Backend("native")


@pytest.mark.parametrize(("compiler", "reason"), [
    ("no-such-compiler", "no compiler: no-such-compiler is not installed"), ("false", "false failed: no word")])
def test_a_build_that_fails_says_why_in_a_line_and_leaves_nothing(compiler, reason, empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(SystemExit) as ended:
        build.main([])
    assert ended.value.code == f"error: the native op was not built: {reason}"
    assert not list(empty_cache.glob("**/*.so"))
    assert backend.choose("auto").name == "xla"


def test_the_sources_travel_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["bloodcell.augment.native"].split(", ")
    listed = {path for pattern in patterns for path in (ROOT / "bloodcell/augment/native").glob(pattern)}
    assert listed == set(library.SOURCE.iterdir())


def test_a_training_by_the_native_op_says_so_in_its_first_line(tmp_path, monkeypatch, native_op):
    """Through the program, in a process of its own."""
    made = library.folder() / library.NAME
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _keep(library.folder(), passed=True, wrong="", processor=library.processor())
    shutil.copy(made, library.folder() / library.NAME)
    data = tmp_path / "cells.npz"
    np.savez(data, images=cells.cells(40)[:, :32, :32], labels=np.arange(40) % 2)
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--model=cnn", "--weights=none", "--image_size=32", "--batch_size=8",
         f"--data={data}", "--clean=none", "--split=fractions(0.6, 0.2, 0.2)", "--stages=all(epochs=1, lr=1e-3)",
         "--dry_run", "--augment=flip", f"--workdir={tmp_path / 'run'}"],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| augmentation: native |" in done.stdout.splitlines()[0]
