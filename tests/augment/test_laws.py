"""The laws of augmentation, by reflection: a new op is under all of them at once, and needs an oracle."""

import functools
import inspect
import itertools
import warnings

import cells
import numpy as np
import oracles
import pytest
import tensorflow as tf

from bloodcell.augment import REGISTRY, parse, rng

OPS = sorted(REGISTRY)
WITH_STRENGTH = [name for name in OPS if REGISTRY[name].identity is not None]
COUNT = 48  # three full chunks
SEEDS = np.arange(COUNT) * 7919 + 3
LEVELS = np.resize(np.array([0.15, 0.5, 0.85], np.float32), COUNT)  # every kind of image at each
# Where rounding decides whether a source lies inside the image or a pixel inside a mask, single pixels may change.
EDGES = 2e-3


@functools.cache
def _images():
    return np.concatenate([cells.cells(COUNT // 2), cells.hard(COUNT // 2)])


@pytest.fixture(scope="module")
def images():
    yield _images()
    for kept in (_images, _eagerly, _program):
        kept.cache_clear()


def _options(op):
    return {**op.defaults(), **({"ratio": 0.5} if op.name == "gridmask" else {})}


def _apply(op, images, level, seeds=SEEDS, **options):
    level = np.broadcast_to(np.float32(level), len(images))
    return op(tf.constant(images, tf.float32), tf.constant(level), seed=tf.constant(seeds, tf.int64), **options).numpy()


@functools.cache
def _eagerly(name):
    """What the op gives for all images at all levels, eagerly."""
    return _apply(REGISTRY[name], _images(), LEVELS)


@functools.cache
def _program(backend="xla"):
    """Every op in one compiled function, which applies that of a number: each primitive compiles once, not for each op.

    The draws are those that the op itself would make.
    """
    policy = parse(f"oneof({', '.join(OPS)})", backend=backend)

    def run(images, number, on, level, seeds):
        u = rng.uniform(seeds, max(op.uniforms for op in REGISTRY.values()))
        draws = {}
        for place, name in enumerate(OPS):
            op = REGISTRY[name]
            drawn = op.sample(op.strength(level), u[:, :max(op.uniforms, 1)], op.defaults())
            draws[f"1.oneof/{place + 1}/1.{name}"] = {"on": on & (number == place), **drawn}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing steps in for the backend
            return policy.apply(images, draws)

    return tf.function(run, jit_compile=True, autograph=False)


def _run_compiled(op, images, level, seeds=SEEDS, *, on=None, backend="xla"):
    level = np.broadcast_to(np.float32(level), len(images))
    on = level > 0 if on is None else on
    return _program(backend)(tf.constant(images), tf.constant(OPS.index(op.name)), tf.constant(on), tf.constant(level),
                             tf.constant(seeds, tf.int64)).numpy()


def _draws(op, level, seeds, options):
    """The draws that `op` makes for these seeds, as NumPy."""
    strength = op.strength(tf.constant(np.broadcast_to(np.float32(level), len(seeds))))
    u = rng.uniform(tf.constant(seeds, tf.int64), max(op.uniforms, 1))
    return {name: value.numpy() for name, value in op.sample(strength, u, options).items()}


def test_every_op_has_an_oracle():
    assert set(oracles.ORACLES) == set(REGISTRY)


@pytest.mark.parametrize("name", OPS)
def test_signature_and_documentation(name):
    op = REGISTRY[name]
    assert list(inspect.signature(op).parameters) == ["images", "level", "seed", "options"]
    assert op.summary.endswith(".")
    assert op.reference
    for param in op.params:
        if param.kind in (int, float):
            assert np.isfinite([param.low, param.high]).all()
            assert param.unit
    if op.identity is not None:
        first = op.params[0]
        assert {op.identity, op.full} <= {first.low, first.high}, "level 0 and 1 are the ends of the range"


@pytest.mark.parametrize("name", OPS)
def test_level_zero_changes_nothing(name, images):
    np.testing.assert_array_equal(_apply(REGISTRY[name], images, 0.0), images)


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_level_maps_to_strength_monotonically(name):
    op = REGISTRY[name]
    strength = op.strength(tf.linspace(0.0, 1.0, 11)).numpy()
    steps = np.diff(strength)
    assert strength[0] == op.identity
    assert strength[-1] == pytest.approx(op.full, rel=1e-6)
    assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_identity_strength_lowers_to_the_identity(name, images):
    """Not only is level 0 skipped: the lowered parameters at the identity themselves change nothing."""
    np.testing.assert_array_equal(_run_compiled(REGISTRY[name], images, 0.0, on=np.ones(COUNT, bool)), images)


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_strength_grows_with_level(name, images):
    """On average over cells; the sign and place of each image stay as its seed drew them."""
    op, images = REGISTRY[name], np.repeat(images[:COUNT // 2], 2, axis=0)
    change = [np.abs(_run_compiled(op, images, level) - images).mean()
              for level in (0.0, 0.1, 0.3, 0.6, 1.0)]
    if op.primitive == "warp" or name == "hue":
        change = change[:4]  # half a turn of a round cell is no further from it than a third, nor is plain fill
    assert change[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(change)), change


@pytest.mark.parametrize("name", OPS)
def test_result_is_float32_of_whole_levels_in_range(name, images):
    for result in (_run_compiled(REGISTRY[name], images, 1.0), _eagerly(name)):
        assert result.dtype == np.float32
        assert result.shape == images.shape
        assert result.min() >= 0
        assert result.max() <= 255
        np.testing.assert_array_equal(result, np.round(result))


@pytest.mark.parametrize("name", OPS)
def test_eager_equals_compiled(name, images):
    op = REGISTRY[name]
    difference = np.abs(_eagerly(name) - _run_compiled(op, images, LEVELS))
    for level in np.unique(LEVELS):
        at_level = difference[level == LEVELS]
        assert (at_level > 1).mean() <= (EDGES if op.primitive in ("warp", "mask", "elastic") else 0)
        assert (at_level > 0).mean() <= 0.01


@pytest.mark.parametrize("name", OPS)
def test_batch_equals_one_by_one_in_any_order(name, images):
    """Batch-mates, batch size and position do not matter: not by a single bit, eagerly."""
    op = REGISTRY[name]
    whole = _eagerly(name)
    for rows in ([2], [39, 22, *range(16)][::-1]):
        np.testing.assert_array_equal(_apply(op, images[rows], LEVELS[rows], SEEDS[rows]), whole[rows])


@pytest.mark.parametrize("name", OPS)
def test_levels_of_batch_mates_do_not_matter(name, images):
    op = REGISTRY[name]
    level = np.where(np.arange(COUNT) % 3 == 0, 0.5, 0.0).astype(np.float32)
    mixed, all_on = _run_compiled(op, images, level), _run_compiled(op, images, 0.5)
    np.testing.assert_array_equal(mixed[::3], all_on[::3])
    np.testing.assert_array_equal(np.delete(mixed, slice(0, None, 3), 0), np.delete(images, slice(0, None, 3), 0))


@pytest.mark.parametrize("name", ["contrast", "zoom"])  # one that measures the image, and one with a style
def test_an_op_compiles_once_and_does_what_it_does_among_the_others(name, images):
    op = REGISTRY[name]
    compiled = tf.function(lambda images, level, seed: op(images, level, seed=seed), jit_compile=True, autograph=False)
    for level in (0.1, 0.7):
        alone = compiled(tf.constant(images, tf.float32), tf.fill([COUNT], np.float32(level)),
                         tf.constant(SEEDS, tf.int64)).numpy()
        difference = np.abs(alone - _run_compiled(op, images, level))
        assert (difference > 1).mean() <= (EDGES if op.primitive == "warp" else 0)
        assert (difference > 0).mean() <= 0.01
    assert compiled.experimental_get_tracing_count() == 1


def test_nothing_recompiles_between_steps(images):
    for name, level in itertools.product(OPS, (0.1, 0.7)):
        _run_compiled(REGISTRY[name], images, level)
    assert _program("xla").experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", OPS)
def test_op_equals_its_oracle(name, images):
    op = REGISTRY[name]
    options = _options(op)
    ours, draws = _eagerly(name), _draws(op, LEVELS, SEEDS, options)
    expected = [oracles.ORACLES[name](image, {key: value[index] for key, value in draws.items()}, options)
                for index, image in enumerate(images)]
    off = np.abs(ours - np.asarray(expected, np.float64))
    if name in oracles.EXACT:
        assert off.max() == 0, f"{off.max()} grey levels off in {np.unravel_index(off.argmax(), off.shape)}"
    elif op.primitive in ("warp", "mask", "elastic"):
        # Pixels whose source lies on the image's or the mask's edge within rounding fall on either side of it.
        for level in np.unique(LEVELS):
            assert (off[level == LEVELS] > 1).any(axis=-1).mean() <= EDGES, level
    else:
        assert off.max() <= 1, off.max()


@pytest.mark.parametrize("name", sorted(oracles.EXACT))
def test_exact_ops_are_exact_compiled(name, images):
    """A compiler that fuses a product and a sum rounds once less than Pillow does."""
    op = REGISTRY[name]
    ours, draws = _run_compiled(op, images, LEVELS), _draws(op, LEVELS, SEEDS, op.defaults())
    for index, image in enumerate(images):
        expected = oracles.ORACLES[name](image, {key: value[index] for key, value in draws.items()}, op.defaults())
        np.testing.assert_array_equal(ours[index], expected)


def test_exact_ops_are_exact_on_a_thousand_cells():
    images, seeds = cells.cells(1000), np.arange(1000)
    batches = [np.arange(start, start + COUNT) % 1000 for start in range(0, 1000, COUNT)]
    for name in sorted(oracles.EXACT):
        op = REGISTRY[name]
        ours = np.concatenate([_run_compiled(op, images[rows], 0.37, seeds[rows]) for rows in batches])[:1000]
        draws = _draws(op, 0.37, seeds, op.defaults())
        for index, image in enumerate(images):
            expected = oracles.ORACLES[name](image, {key: value[index] for key, value in draws.items()}, op.defaults())
            assert np.array_equal(ours[index], expected), (name, index)


@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("name", OPS)
def test_native_op_is_within_a_grey_level_of_xla(name, level, images, native_op, xla_program):
    op = REGISTRY[name]
    # The draws are compiled in both, so that maps are the same to the last bit: the edge of the image may hang on it.
    off = np.abs(_run_compiled(op, images, level, backend="native") - _run_compiled(op, images, level))
    assert off.max() <= (0 if name in oracles.EXACT or op.primitive == "warp" else 1)
    assert (off > 0).mean() < 1e-4


def test_signed_ops_draw_both_signs_equally():
    seeds = np.arange(4000)
    for name, key in (("rotate", "degrees"), ("shear_x", "x"), ("translate_y", "y"), ("hue", "turn")):
        drawn = _draws(REGISTRY[name], 0.5, seeds, REGISTRY[name].defaults())[key]
        assert abs((drawn > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000), name


@pytest.mark.parametrize("fill", ["edge", "reflect"])
def test_fills_equal_opencv(fill, images):
    import cv2
    border = {"edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT}[fill]
    policy = parse(f"translate(0.4, fill='{fill}', interpolation='nearest')")
    ids = tf.constant(SEEDS, tf.int64)
    draws = policy.draw(ids, epoch=0, seed=0)
    for axis in "xy":  # whole pixels, so that nothing depends on interpolation
        draws["1.translate"][axis] = tf.round(draws["1.translate"][axis] * 96) / 96
    ours = policy.apply(tf.constant(images), draws).numpy()
    for index, image in enumerate(images):
        dx, dy = (round(float(draws["1.translate"][axis][index]) * 96) for axis in "xy")
        padded = cv2.copyMakeBorder(image, 60, 60, 60, 60, border)
        np.testing.assert_array_equal(ours[index], padded[60 + dy:156 + dy, 60 + dx:156 + dx])


def test_sizes_other_than_square_work():
    images = cells.hard(2)[:, :64, :80]
    for name in OPS:
        if not REGISTRY[name].square:
            assert _apply(REGISTRY[name], images, 0.5, SEEDS[:2]).shape == images.shape
    with pytest.raises(ValueError, match="rot90 expected square images, received 64x80"):
        _apply(REGISTRY["rot90"], images, 1.0, SEEDS[:2])
