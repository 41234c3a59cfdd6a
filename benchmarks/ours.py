"""Our side of the races: ops at a fixed level and whole policies, by XLA, by the native op, and eager."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from benchmarks import BATCH, SIDE
from benchmarks.timing import Contestant
from bloodcell import augment
from bloodcell.augment import rng
from bloodcell.augment.native import backend
from bloodcell.data import demo

LEVEL = 0.4  # of every op; at 0.5 `rotate` would be a quarter turn, for which Pillow has a short cut

Function = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def cells(count: int = BATCH) -> np.ndarray:
    """Returns the batch that everybody gets: rendered cells, uint8 [count, SIDE, SIDE, 3]."""
    return demo.render(count, seed=0, size=SIDE)[0]


def backends(tell: Callable[[str], None]) -> list[str]:
    """Returns what of ours can augment here, `xla` and where it is built `native`; says why that is left out."""
    found = backend.choose("auto")
    if found.name != "native":
        tell(f"the native op is left out: {found.why}")
    return list(dict.fromkeys(("xla", found.name)))


def op_function(name: str, by: str = "xla") -> Function:
    """Returns an op at LEVEL for all samples: (uint8 [B, H, W, 3], ids int64 [B], step) -> float32 [B, H, W, 3]."""
    op, policy = augment.REGISTRY[name], augment.parse(name, backend=by)

    def apply(images: tf.Tensor, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        level = tf.fill([images.shape[0]], LEVEL)
        drawn = op.sample(op.strength(level), rng.uniform(ids + step * images.shape[0], max(op.uniforms, 1)),
                          op.defaults())
        return policy.apply(images, {f"1.{name}": {"on": level > 0, **drawn}})
    return apply


def policy_function(text: str, by: str = "xla") -> Function:
    """Returns a policy: (uint8 [B, H, W, 3], ids int64 [B], epoch) -> float32 [B, H, W, 3]."""
    policy = augment.parse(text, backend=by)

    def apply(images: tf.Tensor, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return policy(images, ids, epoch=step, seed=0)
    return apply


def contestants(case: str, functions: Mapping[str, Function], images: np.ndarray) -> list[Contestant]:
    """Returns functions by the name of their backend, compiled, and the first one eager.

    Each runs from images in memory to a NumPy array. The array is the tensor's own memory where that is the host's, as
    tf.data gives it to the peers: `.numpy()` copies, and the copy of 28 MB would take longer than many an op.
    """
    held, ids = tf.constant(images), tf.range(len(images), dtype=tf.int64)

    def contestant(name: str, function: Function) -> Contestant:
        return Contestant(case, name, len(images),
                          lambda step: np.asarray(function(held, ids, tf.constant(step, tf.int64))))

    compiled = [contestant(name, tf.function(function, jit_compile=True, autograph=False))
                for name, function in functions.items()]
    return [*compiled, contestant("eager", next(iter(functions.values())))]
