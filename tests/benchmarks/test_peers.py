"""Peers do the work that ours does: where an op draws nothing but a sign, the images are alike."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import SIDE, ops, peers
from bloodcell import augment
from bloodcell.augment import pixels
from bloodcell.data import demo

IMAGES = 8
TOLERANCE = 1.3  # grey levels, mean of an image: roundings, and the blend of the fill into the border

# The draws of a peer's op at our strength s, up to the sign.
DRAWS = {
    "rotate": lambda s: {"degrees": s}, "zoom": lambda s: {"scale": 1 + s},
    "shear": lambda s: {"x": s, "y": s}, "shear_x": lambda s: {"x": s, "y": 0 * s},
    "shear_y": lambda s: {"x": 0 * s, "y": s},
    "translate": lambda s: {"x": s, "y": s}, "translate_x": lambda s: {"x": s, "y": 0 * s},
    "translate_y": lambda s: {"x": 0 * s, "y": s},
    "brightness": lambda s: {"factor": 1 + s}, "contrast": lambda s: {"factor": 1 + s},
    "color": lambda s: {"factor": 1 + s}, "sharpness": lambda s: {"factor": 1 + s},
    "gamma": lambda s: {"exponent": np.exp(s)}, "hue": lambda s: {"turn": s},
    "posterize": lambda s: {"bits": np.round(s)}, "solarize": lambda s: {"threshold": s},
    "solarize_add": lambda s: {"addition": np.round(s)},
    "equalize": lambda s: {}, "autocontrast": lambda s: {}, "invert": lambda s: {}, "gray": lambda s: {},
}
# Another definition of the same effect, as the peer's file says.
DIFFERENT = {
    ("keras", "shear"): "about a corner", ("keras", "shear_x"): "about a corner",
    ("keras", "shear_y"): "about a corner", ("keras", "brightness"): "adds", ("keras", "contrast"): "draws its factor",
    ("keras", "color"): "HSV", ("keras", "hue"): "HSV", ("keras", "equalize"): "another formula",
    ("keras", "solarize"): "draws its threshold",
    ("tfa", "contrast"): "about each channel's mean", ("tfa", "color"): "HSV",
    ("dali", "equalize"): "OpenCV's formula", ("albumentations", "equalize"): "OpenCV's formula",
    ("albumentations", "translate"): "whole pixels", ("albumentations", "translate_x"): "whole pixels",
    ("albumentations", "translate_y"): "whole pixels", ("albumentations", "shear"): "composes two shears",
    ("albumentations", "hue"): "HSV", ("albumentations", "sharpness"): "a kernel of its own",
}


@pytest.fixture(scope="module")
def cells():
    return demo.render(IMAGES, seed=0, size=SIDE)[0]


def _ours(name, images, sign):
    op = augment.REGISTRY[name]
    strength = sign * np.full(len(images), ops.strength(name), np.float32)
    draws = {key: tf.constant(value) for key, value in DRAWS[name](strength).items()}
    for whole in ("bits", "addition"):
        if whole in draws:
            draws[whole] = tf.cast(draws[whole], tf.int32)
    packed = op.apply(pixels.pack(tf.constant(images)), tf.fill([len(images)], True), draws, op.defaults())
    return pixels.unpack(packed, tf.float32).numpy()


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_peers_op_gives_what_ours_gives(peer, cells):
    implementation = peer_or_skip(peer)
    off = {}
    for name, draws in DRAWS.items():
        if name in implementation.OPS and (peer.name, name) not in DIFFERENT:
            batch, *_ = implementation.start(implementation.OPS[name](ops.strength(name)), cells).call(1)
            assert batch.shape == cells.shape
            signed = draws(1.0) and name not in ("posterize", "solarize", "solarize_add")
            difference = min(np.abs(batch.astype(np.float32) - _ours(name, cells, sign)).mean((1, 2, 3)).max()
                             for sign in ((1, -1) if signed else (1,)))
            if difference > TOLERANCE:
                off[name] = float(difference)
    assert not off


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_peers_ops_are_ops_of_ours_and_all_run(peer, cells):
    implementation = peer_or_skip(peer)
    assert set(implementation.OPS) <= set(augment.REGISTRY)
    for name, make in implementation.OPS.items():
        if name not in DRAWS:
            batches = implementation.start(make(ops.strength(name)), cells).call(2)
            assert [batch.shape for batch in batches] == [cells.shape] * 2
            assert np.isfinite(batches[0]).all()


def test_processes_share_a_batch(cells):
    peer = peer_or_skip(next(peer for peer in peers.PEERS if peer.name == "albumentations_all"))
    run = peer.start("randaugment(2, 9)", cells)
    batches = run.call(2)
    assert [batch.shape for batch in batches] == [cells.shape] * 2
    assert batches[0].dtype == np.uint8
    assert not np.array_equal(batches[0], batches[1])


def peer_or_skip(peer):
    try:
        return peer.load()
    except (ImportError, OSError) as error:
        pytest.skip(f"{peer.title}: {error}")
