"""Compiled, batched, per-sample image augmentation for TensorFlow.

    from bloodcell import augment
    policy = augment.parse("flip | rotate(180) | oneof(gridmask, cutout(0.5))")
    images = policy(images_u8, sample_ids, epoch=0, seed=0)

Nothing here knows about data sets, models or training.
"""

from bloodcell import spec
from bloodcell.augment import ops as _ops  # noqa: F401 (fills the registry)
from bloodcell.augment.entry import REGISTRY, Op
from bloodcell.augment.policy import Policy, names

__all__ = ["REGISTRY", "Op", "Policy", "names", "parse"]


def parse(text: str, *, what: str = "augment") -> Policy:
    """Reads a policy: `op(arg, key=value)@p | op`, with `oneof(...)`, `randaugment(n, m)` and `identity`.

    Args:
      text: the policy; empty text changes nothing.
      what: the flag's name, for the error's line.

    Raises:
      InputError: an unknown op, a value out of range or text that is no spec, in one line.
    """
    return Policy(spec.parse(text, what=what), what=what)
