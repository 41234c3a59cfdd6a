"""Mixing in pairs: who meets whom, how strongly, and the exact arithmetic of pixels and labels."""

import cells
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import mixing
from bloodcell.errors import InputError

BOTH = "oneof(mixup(0.2), cutmix(1.0))"
CLASSES = 8


def _ids(count):
    return tf.range(count, dtype=tf.int64)


def _labels(count, seed=0):
    return np.eye(CLASSES, dtype=np.float32)[np.random.default_rng(seed).integers(0, CLASSES, count)]


def _draw(text, count, *, epoch=0, seed=0, size=(96, 96), weights=None):
    weights = tf.ones([count]) if weights is None else weights
    draws = augment.parse_mix(text).draw(_ids(count), weights, size, epoch=epoch, seed=seed)
    return mixing.Draws(*(field.numpy() for field in draws))


def _mixed_by_hand(images, labels, draws):
    """Blend, paste, and weigh, one image at a time."""
    height, width = images.shape[1:3]
    out, parts = images.astype(np.float64), labels.astype(np.float64)
    for row, (partner, share, (top, bottom, left, right)) in enumerate(zip(*draws, strict=True)):
        out[row] = (1 - share) * images[row] + share * images[partner].astype(np.float64)
        out[row, top:bottom, left:right] = images[partner, top:bottom, left:right]
        lam = (1 - share) * (1 - (bottom - top) * (right - left) / (height * width))
        parts[row] = lam * labels[row] + (1 - lam) * labels[partner]
    return out, parts


@pytest.fixture(scope="module")
def images():
    return cells.cells(40).astype(np.float32)


@pytest.mark.parametrize(("text", "says"), [
    ("mixp(0.2)", "mix: unknown op 'mixp'; did you mean 'mixup'?"),
    ("mixup(0)", "mixup(alpha) expected 0.01..32, received 0"),
    ("cutmix(beta=1)", "cutmix has no parameter 'beta'"),
    ("cutmix(1, 2)", "at most 1 arguments"),
    ("rotate(30)", "rotate belongs in --augment, since it works on single images"),
    ("oneof(mixup(0.2), randaugment(2, 9))", "randaugment belongs in --augment"),
    ("mixup(0.2) | cutmix(1.0)", "an image is mixed at most once, received 'mixup(0.2) | cutmix(1.0)', "
                                 "try oneof(mixup(0.2), cutmix(1.0))"),
    ("oneof()", "oneof expected ops"),
    ("oneof(0.2)", "oneof expected ops"),
    ("mixup(0.2)@2", "a probability 0..1"),
    ("identity(3)", "identity expected at most 0 arguments"),
    ("mixup(", "cannot be read"),
])
def test_a_bad_mix_gets_one_line_naming_the_fault(text, says):
    with pytest.raises(InputError) as caught:
        augment.parse_mix(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("mix: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["mixup(0.2)", "flip | oneof(cutmix, gray)", "oneof(flip | mixup(0.2)@0.5, identity)"])
def test_a_policy_of_single_images_sends_mixing_to_its_flag(text):
    with pytest.raises(InputError, match=r"augment: (mixup|cutmix) belongs in --mix"):
        augment.parse(text)


@pytest.mark.parametrize("text", ["", "identity", "mixup(0.2)@0.5", BOTH, "oneof(oneof(mixup, identity)@0.3, cutmix)"])
def test_a_mix_prints_back_to_itself(text):
    assert str(augment.parse_mix(str(augment.parse_mix(text)))) == str(augment.parse_mix(text))


def test_nothing_to_mix_changes_nothing(images):
    labels = _labels(40)
    for text in ("", "identity", "oneof(identity, identity)"):
        mixer = augment.parse_mix(text)
        assert mixer.identity
        out, parts = mixer(images, labels, _ids(40), tf.ones([40]), epoch=0, seed=0)
        assert out is images
        assert parts is labels


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0, 32.0])
def test_lambda_of_mixup_is_beta(alpha):
    draws = _draw(f"mixup({alpha})", 20_000)
    # Looked at between 0.001 and 0.999: a small alpha puts much of its mass closer to 0 and 1 than float32 can tell.
    grid = np.linspace(0.001, 0.999, 999)
    found = np.searchsorted(np.sort(1.0 - draws.share), grid, side="right") / 20_000
    distance = np.abs(found - scipy.stats.beta(alpha, alpha).cdf(grid)).max()
    assert distance < 0.0138  # the 0.1 % point of Kolmogorov's and Smirnov's statistic at 20,000 draws
    assert not draws.box.any()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_boxes_of_cutmix_are_the_papers(alpha):
    # Its rand_bbox: side ratio sqrt(1 - lambda), centre at a random pixel, half the side to either hand, then clipped.
    u = np.random.default_rng(0).random((4_000, 3), np.float32)
    height, width = 40, 64
    share, box = mixing.MIXES["cutmix"].sample(tf.constant(u), alpha, (height, width))
    assert share is None
    assert box is not None
    ratio = np.sqrt(1.0 - scipy.stats.beta.ppf(u[:, 0].astype(np.float64), alpha, alpha).astype(np.float32))
    expected = []
    for length, centre in ((height, np.floor(u[:, 1] * height)), (width, np.floor(u[:, 2] * width))):
        half = np.floor(length * ratio).astype(int) // 2
        expected += [np.clip(centre - half, 0, length), np.clip(centre + half, 0, length)]
    off = np.abs(box.numpy() - np.stack(expected, axis=1))
    assert off.max() <= 1
    assert (off > 0).any(axis=1).mean() < 0.01  # a table's quantile may cross a whole pixel


@pytest.mark.parametrize("text", ["mixup(1.0)", "cutmix(1.0)", BOTH, "oneof(mixup(4)@0.5, cutmix(0.5)@0.7, identity)"])
def test_pixels_and_labels_equal_numpy_given_the_same_draws(images, text):
    mixer, labels = augment.parse_mix(text), _labels(40)
    draws = mixer.draw(_ids(40), tf.ones([40]), (96, 96), epoch=3, seed=1)
    expected, parts = _mixed_by_hand(images, labels, [field.numpy() for field in draws])
    out, got = mixer(tf.constant(images), tf.constant(labels), _ids(40), tf.ones([40]), epoch=3, seed=1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(got, parts, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sum(got, axis=1), 1.0, atol=1e-6)
    assert (np.asarray(got) >= 0).all()


def test_a_pasted_box_has_the_partners_very_pixels_in_every_dtype(images):
    mixer = augment.parse_mix("cutmix(1.0)")
    for dtype in ("float32", "bfloat16", "float16"):
        out, _ = mixer(tf.cast(images, dtype), _labels(40), _ids(40), tf.ones([40]), epoch=0, seed=0)
        assert out.dtype == tf.as_dtype(dtype)
        draws = mixer.draw(_ids(40), tf.ones([40]), (96, 96), epoch=0, seed=0)
        expected, _ = _mixed_by_hand(images, _labels(40), [field.numpy() for field in draws])
        np.testing.assert_array_equal(tf.cast(out, tf.float32), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_partners_stand_in_a_ring(count):
    partner = _draw("mixup(1.0)", count).partner
    seen, row = [], 0
    for _ in range(count):
        row = partner[row]
        seen.append(int(row))
    assert sorted(seen) == list(range(count))
    assert seen[-1] == 0


def test_every_other_image_is_equally_likely_as_a_partner():
    mixer = augment.parse_mix("mixup(1.0)")
    draw = tf.function(lambda epoch: mixer.draw(_ids(6), tf.ones([6]), (8, 8), epoch=epoch, seed=0).partner,
                       autograph=False)
    partners = [int(draw(tf.constant(epoch, tf.int64))[2]) for epoch in range(400)]
    counts = np.bincount(partners, minlength=6)
    assert counts[2] == 0
    assert scipy.stats.chisquare(np.delete(counts, 2)).pvalue > 1e-3


def test_the_order_of_the_rows_changes_nothing(images):
    mixer, order = augment.parse_mix(BOTH), np.random.default_rng(5).permutation(40)
    labels, weights = _labels(40), np.ones(40, np.float32)
    weights[30:] = 0
    out, parts = mixer(images, labels, _ids(40), weights, epoch=1, seed=2)
    turned, turned_parts = mixer(images[order], labels[order], order.astype(np.int64), weights[order], epoch=1, seed=2)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(out)[order])
    np.testing.assert_array_equal(np.asarray(turned_parts), np.asarray(parts)[order])


def test_rows_that_fill_the_batch_meet_nobody(images):
    mixer, labels, weights = augment.parse_mix(BOTH), _labels(40), np.ones(40, np.float32)
    filling = np.array([0, 7, 38, 39])
    weights[filling] = 0
    real = weights > 0
    out, parts = (np.asarray(each) for each in mixer(images, labels, _ids(40), weights, epoch=0, seed=0))
    np.testing.assert_array_equal(out[filling], images[filling])
    np.testing.assert_array_equal(parts[filling], labels[filling])
    rows = np.flatnonzero(real)
    alone, alone_parts = mixer(images[real], labels[real], rows.astype(np.int64), weights[real], epoch=0, seed=0)
    np.testing.assert_array_equal(out[real], alone)
    np.testing.assert_array_equal(parts[real], alone_parts)
    assert (out[real] != images[real]).any(axis=(1, 2, 3)).mean() > 0.5


def test_a_batch_of_nothing_but_filling_stays(images):
    out, _ = augment.parse_mix(BOTH)(images[:4], _labels(4), _ids(4), tf.zeros([4]), epoch=0, seed=0)
    np.testing.assert_array_equal(out, images[:4])


def test_compiled_equals_eager(images):
    mixer, labels, weights = augment.parse_mix(BOTH), _labels(40), np.r_[np.ones(37), np.zeros(3)].astype(np.float32)
    dtypes = {"float32": 1e-3, "bfloat16": 1.0}  # grey levels that they may be apart

    @tf.function(jit_compile=True, autograph=False)
    def compiled(of_dtypes, epoch, seed):  # one program for both: XLA makes the draws, which are the same, once
        return [mixer(given, tf.constant(labels), _ids(40), tf.constant(weights), epoch=epoch, seed=seed)
                for given in of_dtypes]

    of_dtypes = [tf.cast(images, dtype) for dtype in dtypes]
    for epoch in (0, 1):
        results = compiled(of_dtypes, tf.constant(epoch, tf.int64), tf.constant(9, tf.int64))
        for given, ours, apart in zip(of_dtypes, results, dtypes.values(), strict=True):
            eager = mixer(given, labels, _ids(40), weights, epoch=epoch, seed=9)
            for one, plain in zip(ours, eager, strict=True):
                assert one.dtype == plain.dtype
                np.testing.assert_allclose(tf.cast(one, tf.float32), tf.cast(plain, tf.float32), atol=apart)
    assert compiled.experimental_get_tracing_count() == 1


def test_it_maps_over_batches_of_any_size(images):
    mixer = augment.parse_mix("mixup(1.0)")
    batches = tf.data.Dataset.from_tensor_slices((images[:10], _labels(10), np.arange(10))).batch(4)
    mixed = batches.map(lambda images, labels, ids: mixer(images, labels, ids, tf.ones_like(ids, tf.float32), epoch=0,
                                                          seed=0))
    assert [len(labels) for _, labels in mixed] == [4, 4, 2]


def test_oneof_chooses_equally_and_gates_hold_with_their_probability():
    draws = _draw("oneof(mixup(4.0), cutmix(1.0)@0.5, identity)@0.6", 30_000)
    blended, pasted = draws.share > 0, draws.box[:, 1] > draws.box[:, 0]
    assert not (blended & pasted).any()
    assert blended.mean() == pytest.approx(0.2, abs=0.01)
    # Of the boxes drawn, those of a side under two pixels are empty: 1 - lambda < (2 / 96)^2.
    assert pasted.mean() == pytest.approx(0.1, abs=0.01)


def test_draws_depend_on_seed_and_epoch_and_not_on_what_a_policy_draws():
    first = _draw("mixup(1.0)", 4_000)
    for other in (_draw("mixup(1.0)", 4_000, epoch=1), _draw("mixup(1.0)", 4_000, seed=1)):
        assert abs(np.corrcoef(first.share, other.share)[0, 1]) < 0.06
        assert (first.partner != other.partner).mean() > 0.99
    strength = augment.parse("rotate(180)").draw(_ids(4_000), epoch=0, seed=0)["1.rotate"]["degrees"].numpy()
    assert abs(np.corrcoef(np.abs(strength), first.share)[0, 1]) < 0.06
