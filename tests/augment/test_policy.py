"""Policies: parsing, choice, layers against Pillow, replay, and samples that do not know each other."""

import pathlib
import re
import tempfile

import cells
import numpy as np
import oracles
import pytest
import scipy.stats
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import pixels
from bloodcell.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
V2S = ("flip | rotate(180) | zoom(0.2) | oneof(augmix(severity=3), randaugment(n=3, m=4)) | "
       "oneof(gridmask, cutout(0.5)) | oneof(channel_shuffle, channel_shift(0.3), hue(0.3))")
EPOCH, SEED = 2, 9


def _ids(count):
    return tf.range(count, dtype=tf.int64)


def _of_sample(draws, index):
    return {key: value.numpy()[index] for key, value in draws.items()}


@pytest.fixture(scope="module")
def images():
    return np.concatenate([cells.cells(30), cells.hard(10)])


def _compiled(text):
    """Returns a policy as a compiled program, which gives the images and the draws that it made."""
    policy = augment.parse(text)

    def program(images, ids, epoch, seed):
        draws = policy.draw(ids, epoch=epoch, seed=seed)
        return policy.apply(images, draws), draws

    program = tf.function(program, jit_compile=True, autograph=False)

    def run(images, ids, epoch=EPOCH, seed=SEED):
        shown, draws = program(tf.constant(images), *(tf.constant(each, tf.int64) for each in (ids, epoch, seed)))
        return shown.numpy(), draws

    return run


@pytest.fixture(scope="module")
def compiled_v2s():
    return _compiled(V2S)


@pytest.fixture(scope="module")
def eager_v2s(images):
    return augment.parse(V2S)(images, _ids(40), epoch=EPOCH, seed=SEED).numpy()


@pytest.mark.parametrize(("text", "says"), [
    ("rotat(30)", "unknown op 'rotat'; did you mean 'rotate'?"),
    ("rotate(181)", "rotate(degrees) expected 0..180 degrees, received 181"),
    ("rotate(degree=10)", "rotate has no parameter 'degree'; did you mean 'degrees'?"),
    ("rotate('fast')", "rotate(degrees) expected 0..180 degrees, received 'fast'"),
    ("rotate(10, 20)", "rotate(fill) expected 'constant' or 'edge' or 'reflect', received 20"),
    ("flip(1, 2)", "flip expected at most 1 arguments"),
    ("flip@1.5", "expected a probability 0..1 after '@', received '1.5'"),
    ("oneof()", "oneof expected policies"),
    ("oneof(0.5)", "oneof expected policies"),
    ("randaugment(n=0)", "randaugment(n) expected 1..16 ops, received 0"),
    ("someof(3, flip, gray)", "someof(k) expected at most the 2 policies that follow, received 3"),
    ("someof(flip, gray)", "someof(k) expected 1..64 policies, received flip"),
    ("someof(2)", "someof expected policies, as in someof(2, hue(0.1), blur(1.0), noise(8)), received 'someof(2)'"),
    ("augmix(severity=11)", "augmix(severity) expected 0.1..10 of 10, received 11"),
    ("augmix(depth=0)", "augmix(depth) expected -1 (drawn from 1..3) or 1..8, received 0"),
    ("trivialaugment(3)", "trivialaugment expected at most 0 arguments"),
    ("randaugment(m=11)", "randaugment(m) expected 0..10 of 10, received 11"),
    ("gridmask(d_min=0.9, d_max=0.2)", "gridmask expected d_min <= d_max"),
    ("resized_crop(0.9, 0.5)", "resized_crop expected min <= max, received 0.9 and 0.5"),
    ("flip | | rotate", "cannot be read"),
    ("__import__('os').system('id')", "received \"__import__('os').system('id')\""),
])
def test_a_bad_policy_gets_one_line_naming_the_fault(text, says):
    with pytest.raises(InputError) as caught:
        augment.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("augment: ")


@pytest.mark.parametrize("text", ["", "flip", V2S, "oneof(flip | rotate(30, fill='edge'), identity)@0.3 | gray@0.1"])
def test_a_policy_prints_back_to_itself(text):
    policy = augment.parse(text)
    assert str(augment.parse(str(policy))) == str(policy)


@pytest.mark.parametrize("k", [1, 2])
def test_someof_applies_k_of_the_policies_all_choices_equally_likely(k):
    policy = augment.parse(f"someof({k}, flip, gray, invert)")
    draws = policy.draw(_ids(20_000), epoch=0, seed=0)
    on = np.stack([each["on"].numpy() for each in draws.values()])
    assert (on.sum(axis=0) == k).all()
    which, counts = np.unique(on, axis=1, return_counts=True)
    assert which.shape[1] == 3
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_someof_keeps_the_given_order(images):
    policy = augment.parse("someof(2, gray, channel_shift(0.5))")
    draws = policy.draw(_ids(40), epoch=0, seed=0)
    ours = policy.apply(tf.constant(images), draws).numpy()
    shift = draws["1.someof/2/1.channel_shift"]["shift"].numpy()
    for index, image in enumerate(images):
        gray = oracles.gray(image, {}, {})
        np.testing.assert_array_equal(ours[index], oracles.channel_shift(gray, {"shift": shift[index]}, {}))


def test_empty_policy_only_casts(images):
    np.testing.assert_array_equal(augment.parse("")(images, _ids(40), epoch=0, seed=0).numpy(), images)


def test_result_has_the_asked_dtype_and_exact_levels(images):
    policy = augment.parse("flip | brightness(0.4)")
    usual = policy(images, _ids(40), epoch=0, seed=0)
    assert usual.dtype == tf.float32
    for dtype in ("float32", "bfloat16", "float16", "uint8"):
        result = policy(images, _ids(40), epoch=0, seed=0, dtype=dtype)
        assert result.dtype == tf.as_dtype(dtype)
        np.testing.assert_array_equal(tf.cast(result, tf.float32), usual)


def test_oneof_chooses_equally_and_gates_hold_with_their_probability():
    policy = augment.parse("oneof(flip, gray, invert)@0.6 | rot90@0.25")
    draws = policy.draw(_ids(20_000), epoch=0, seed=0)
    on = {path.split(".")[-1]: each["on"].numpy() for path, each in draws.items()}
    counts = [on[name].sum() for name in ("flip", "gray", "invert")]
    counts.append(20_000 - sum(counts))
    assert scipy.stats.chisquare(counts, [4000, 4000, 4000, 8000]).pvalue > 1e-4
    assert scipy.stats.binomtest(int(on["rot90"].sum()), 20_000, 0.25).pvalue > 1e-4
    assert not (on["flip"] & on["gray"]).any()


def test_neighbouring_warps_are_sampled_once_through_the_product_of_their_maps(images):
    policy = augment.parse("rotate(40) | flip | zoom(0.3)")
    assert policy.primitives() == ("warp",)
    draws = policy.draw(_ids(40), epoch=0, seed=3)
    ours = policy.apply(tf.constant(images), draws).numpy()
    centre = np.array([[1, 0, 47.5], [0, 1, 47.5], [0, 0, 1]])
    for index in range(40):
        degrees = np.radians(draws["1.rotate"]["degrees"].numpy()[index])
        turn = np.array([[np.cos(degrees), -np.sin(degrees), 0], [np.sin(degrees), np.cos(degrees), 0], [0, 0, 1]])
        flips = _of_sample(draws["2.flip"], index)
        mirror = np.diag([-1.0 if flips["horizontal"] else 1, -1.0 if flips["vertical"] else 1, 1])
        scale = draws["3.zoom"]["scale"].numpy()[index]
        matrix = centre @ turn @ mirror @ np.diag([1 / scale, 1 / scale, 1]) @ np.linalg.inv(centre)
        expected = oracles.opencv_warp(images[index], matrix)
        y, x = np.mgrid[:96, :96]
        source = matrix[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(96 * 96)])
        # OpenCV blends the fill into the outermost pixel, and weighs neighbours in steps of 1/32 of a pixel.
        inner = ((source > 1) & (source < 94)).all(axis=0).reshape(96, 96)
        outer = ((source < -1) | (source > 96)).any(axis=0).reshape(96, 96)
        assert (ours[index][outer] == 128).all()
        np.testing.assert_allclose(ours[index][inner], expected[inner], atol=9)
        assert np.abs(ours[index][inner] - expected[inner]).mean() < 1.5


def test_warps_that_sample_differently_are_kept_apart():
    assert augment.parse("rotate(10, fill='edge') | zoom(0.1)").primitives() == ("warp", "warp")
    assert augment.parse("oneof(rotate(10, fill='edge'), zoom(0.1))").primitives() == ("warp", "warp")


def test_alternatives_share_primitives_and_keep_their_own_order():
    assert sorted(augment.parse("oneof(flip, rotate(9), gray, hue)").primitives()) == ["mix", "warp"]
    assert augment.parse("oneof(gray | invert, invert | gray)").primitives().count("tone") <= 2
    policy = augment.parse("oneof(gray | invert, invert | rotate(9) | gray)")
    order = policy.primitives()
    assert "warp" in order
    assert order.index("tone") < order.index("warp") < len(order) - 1


def test_autograph_finds_nothing_to_convert_in_what_a_user_calls(images, tmp_path, monkeypatch):
    policy, mixer, op = augment.parse("rotate(9)"), augment.parse_mix("mixup(0.2)"), augment.REGISTRY["shear_x"]
    batch, ids, labels, ones = tf.constant(images[:4], tf.uint8), _ids(4), tf.one_hot([0, 1, 2, 3], 4), tf.ones([4])
    for used in (lambda: policy(batch, ids, epoch=0, seed=0),
                 lambda: op(tf.cast(batch, tf.float32), ones, seed=ids),
                 lambda: mixer(tf.cast(batch, tf.float32), labels, ids, ones, epoch=0, seed=0)):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # there it writes a file for every function it converts
        tf.function(used)()
    converted = {name for path in tmp_path.iterdir() for name in re.findall(r"tf__(\w+)", path.read_text())}
    # The test's own function; and the word that tells autograph to leave the rest, if no test before had it converted.
    assert {"lam"} <= converted <= {"lam", "wrapper"}


def _scopes(text, images, *, draws=None):
    """Returns the primitives whose name scope occurs in the program of a policy, or in that which applies draws."""
    policy = augment.parse(text)
    compiled = tf.function(lambda x, ids: policy.apply(x, draws) if draws else policy(x, ids, epoch=0, seed=0),
                           jit_compile=True, autograph=False)
    hlo = compiled.experimental_get_compiler_ir(tf.constant(images), _ids(len(images)))(stage="hlo")
    return {scope for name in re.findall(r'op_name="([^"]*)"', hlo) for scope in name.split("/")[:-1]}


PRIMITIVES = {op.primitive: name for name, op in augment.REGISTRY.items()}


@pytest.mark.parametrize("primitive", sorted(PRIMITIVES))
def test_a_program_holds_the_primitive_it_draws_and_no_other(primitive, images, xla_program):
    name = PRIMITIVES[primitive]
    draws = augment.parse(name).draw(_ids(4), epoch=0, seed=0)
    assert _scopes(name, images[:4], draws=draws) & set(PRIMITIVES) == {primitive}


@pytest.mark.parametrize(("text", "present"), [
    ("gray | cutout", {"mix", "mask"}),
    ("randaugment", {"warp", "tone", "mix", "filter", "mean", "extremes", "cumulative"}),
    ("augmix", {"warp", "tone", "blend", "extremes", "cumulative"}),
    ("contrast", {"tone", "mean"}),
])
def test_what_a_policy_cannot_draw_is_absent_from_its_program(text, present, images, xla_program):
    assert _scopes(text, images[:4]) & {*PRIMITIVES, "mean", "extremes", "cumulative", "blend"} == present


def test_replayed_draws_give_the_same_images(images, eager_v2s):
    policy = augment.parse(V2S)
    draws = policy.draw(_ids(40), epoch=EPOCH, seed=SEED)
    np.testing.assert_array_equal(policy.apply(tf.constant(images), draws), eager_v2s)


def test_seed_epoch_and_id_each_change_what_happens(images, compiled_v2s):
    ids = np.arange(40)
    base, _ = compiled_v2s(images, ids)
    np.testing.assert_array_equal(base, compiled_v2s(images, ids)[0])
    for other, _ in (compiled_v2s(images, ids, epoch=EPOCH + 1), compiled_v2s(images, ids, seed=SEED + 1),
                     compiled_v2s(images, ids + 40)):
        assert (base != other).any(axis=(1, 2, 3)).mean() > 0.95


def test_the_native_op_gives_a_recipes_images_to_the_last_bit(images, xla_program, native_op, compiled_v2s):
    assert f"--augment={V2S}" in (ROOT / "flags/v2s.cfg").read_text(encoding="utf-8").splitlines()
    by_xla, draws = compiled_v2s(images, np.arange(40))
    assert (by_xla != images).any()
    natively = tf.function(augment.parse(V2S, backend="native").apply, jit_compile=True, autograph=False)
    np.testing.assert_array_equal(natively(tf.constant(images), draws), by_xla)


def test_a_sample_is_the_same_in_another_batch_of_the_compiled_program(images):
    """Rows, batch size and replica (a shard of the batch) do not matter."""
    run = _compiled("contrast(0.5)@0.8")
    whole, _ = run(images, np.arange(40))
    rows = np.random.default_rng(0).permutation(40)[:33]  # not a multiple of a chunk
    part, _ = run(images[rows], rows)
    assert (np.abs(part - whole[rows]) > 1).mean() <= 1e-4
    assert (part != whole[rows]).mean() <= 1e-3


def test_eager_and_compiled_agree_for_a_whole_policy(images, compiled_v2s, eager_v2s):
    # Seven stages deep: a level's difference may cross a threshold (solarize, posterize) of a later stage.
    compiled, _ = compiled_v2s(images, np.arange(40))
    assert (np.abs(compiled - eager_v2s) > 1).mean() < 5e-3


def test_what_is_chosen_on_a_gpu_is_what_is_chosen_here(images, xla_program, monkeypatch, eager_v2s):
    """There all samples are computed at once, and those that are not active keep what they were."""
    text = "equalize@0.5 | rotate(90)@0.5 | sharpness(0.9)@0.5"
    here, draws = _compiled(text)(images, np.arange(40))
    monkeypatch.setattr(pixels, "WIDE", True)
    np.testing.assert_array_equal(augment.parse(V2S)(images, _ids(40), epoch=EPOCH, seed=SEED).numpy(), eager_v2s)
    there, drawn = _compiled(text)(images, np.arange(40))
    tf.nest.map_structure(np.testing.assert_array_equal, drawn, draws)
    untouched = (here == images).all(axis=(1, 2, 3))
    assert 0 < untouched.sum() < 20
    np.testing.assert_array_equal(there[untouched], images[untouched])
    assert (there != here).mean() <= 1e-3
    nobody = augment.REGISTRY["rotate"](images.astype(np.float32), tf.zeros(40), seed=_ids(40))
    np.testing.assert_array_equal(nobody, images)


def test_works_in_anybodys_map_over_batches_of_unknown_size(images):
    policy = augment.parse("augmix(severity=3) | cutout(0.5)@0.5")  # of every kind of stage
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(40))).batch(16)
    mapped = dataset.map(lambda x, ids: policy(x, ids, epoch=EPOCH, seed=SEED))
    got = np.concatenate(list(mapped.as_numpy_iterator()))
    assert got.shape == images.shape
    eager = policy(images, _ids(40), epoch=EPOCH, seed=SEED).numpy()
    assert (np.abs(got - eager) > 1).mean() < 5e-3


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8),
                                 np.zeros((8, 8, 3), np.uint8)])
def test_other_than_uint8_batches_of_rgb_are_refused(bad):
    with pytest.raises(ValueError, match="expected images as uint8"):
        augment.parse("flip")(bad, _ids(2), epoch=0, seed=0)
