"""The pictures of `docs/ops.md`: for each op a strip of six rendered cells, before and after.

Equal code gives equal pictures, but for a level here and there where processors round differently.
"""

import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.augment import describe
from bloodcell.data import demo

SIDE, GAP = 72, 4  # pixels of a cell, and of white between two
_SEED = 4
_CELLS = (10, 17, 14)  # of the demo set: lopsided ones, so that a turn shows, in three colours


def render() -> dict[str, np.ndarray]:
    """Returns the strip of each of `describe.pictured()`: uint8 [72, 452, 3]."""
    cells = demo.render(max(_CELLS) + 1, seed=0, size=SIDE)[0][list(_CELLS)]
    strips = {}
    for name in describe.pictured():
        if name in augment.REGISTRY:
            images = _op(augment.REGISTRY[name], cells)
        elif name in augment.MIXES:
            images = _mix(name, cells)
        else:
            images = _policy(name, cells[0])
        strips[name] = _joined(images)
    return strips


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two strips differ by more than rounding: in shape, or by more than 2 levels in more than 1% of pixels."""
    if one.shape != other.shape:
        return True
    apart = np.abs(one.astype(int) - other.astype(int)).max(axis=-1) > 2
    return bool(apart.mean() > 0.01)


def _op(op: augment.Op, cells: np.ndarray) -> list[np.ndarray]:
    if op.identity is None and not op.uniforms:
        after = _applied(op, cells, np.ones(len(cells)), np.full(len(cells), _SEED))
        return [image for pair in zip(cells, after, strict=True) for image in pair]
    count = len(describe.LEVELS)
    if op.identity is None:
        levels, seeds = np.ones(count), _SEED + np.arange(count)
    else:
        levels, seeds = np.asarray(describe.LEVELS), np.full(count, _SEED)
    return [cells[0], *_applied(op, np.stack([cells[0]] * count), levels, seeds)]


def _applied(op: augment.Op, images: np.ndarray, levels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    seed = tf.constant(seeds, tf.int64)
    return op(tf.constant(images, tf.float32), tf.constant(levels, tf.float32), seed=seed).numpy()


def _policy(name: str, cell: np.ndarray) -> list[np.ndarray]:
    copies = tf.constant(np.stack([cell] * 5))
    return [cell, *augment.parse(name)(copies, tf.range(5, dtype=tf.int64), epoch=1, seed=_SEED).numpy()]


def _mix(name: str, cells: np.ndarray) -> list[np.ndarray]:
    pair = tf.constant(cells[:2], tf.float32)
    mixer = augment.parse_mix(f"{name}(1.0)")
    mixed = [mixer(pair, tf.eye(2), tf.constant([0, 1], tf.int64), tf.ones(2), epoch=epoch, seed=_SEED)[0][0].numpy()
             for epoch in range(4)]
    return [*cells[:2], *mixed]


def _joined(images: list[np.ndarray]) -> np.ndarray:
    """Puts images side by side, in 64 levels a channel: a file of half the size, and nobody sees it."""
    strip = np.full((SIDE, len(images) * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    for position, image in enumerate(images):
        strip[:, position * (SIDE + GAP):][:, :SIDE] = np.rint(image)
    return (strip >> 2 << 2) | (strip >> 6)
