"""Compiled, batched, per-sample image augmentation for TensorFlow.

    from bloodcell import augment
    policy = augment.parse("flip | rotate(180) | oneof(gridmask, cutout(0.5))")
    images = policy(images_u8, sample_ids, epoch=0, seed=0)

Nothing here knows about data sets, models or training.
"""

from bloodcell import spec
from bloodcell.augment import ops as _ops  # noqa: F401 (fills the registry)
from bloodcell.augment.build import COMBINATORS, names
from bloodcell.augment.entry import REGISTRY, Op
from bloodcell.augment.layer import Layer
from bloodcell.augment.mixing import MIXES, Mixer, refuse_in_policy
from bloodcell.augment.policy import Policy

__all__ = ["COMBINATORS", "MIXES", "REGISTRY", "Layer", "Mixer", "Op", "Policy", "names", "parse", "parse_mix"]


def parse(text: str, *, what: str = "augment", backend: str = "xla") -> Policy:
    """Reads a policy: `op(arg, key=value)@p | op`, and combinators (`COMBINATORS`) in the same form.

    Args:
      text: the policy; empty text changes nothing.
      what: the flag's name, for the error's line.
      backend: who applies it, `xla` or `native`; the latter only after `native.backend.choose` took it.

    Raises:
      InputError: an unknown op, a value out of range or text that is no spec, in one line.
    """
    chain = spec.parse(text, what=what)
    refuse_in_policy(chain, what=what)
    return Policy(chain, what=what, backend=backend)


def parse_mix(text: str, *, what: str = "mix") -> Mixer:
    """Reads what mixes the images of a batch: `mixup(alpha)`, `cutmix(alpha)`, `oneof(...)`, `op@p`, `identity`.

    Args:
      text: the spec; empty text mixes nothing.
      what: the flag's name, for the error's line.

    Raises:
      InputError: an unknown op, a value out of range or text that is no spec, in one line.
    """
    return Mixer(spec.parse(text, what=what), what=what)
