"""Test-time augmentation (`--tta`): the views of an image whose predictions are averaged.

What belongs here: which views there are, and how each is made inside the graph. Averaging belongs to `classifier`.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from bloodcell import augment, spec
from bloodcell.errors import InputError

_WHAT = "--tta"
MOST_VIEWS = 64
WEAK = "flip | rotate(180) | zoom(0.1) | brightness(0.1) | contrast(0.1)"

# The eight ways to lay a square down, as (transposed, mirrored left to right, mirrored top to bottom).
_Pose = tuple[bool, bool, bool]
_SAME: _Pose = (False, False, False)
_FLIPS: tuple[_Pose, ...] = (_SAME, (False, True, False), (False, False, True), (False, True, True))
_ROTATIONS: tuple[_Pose, ...] = (_SAME, (True, False, True), (False, True, True), (True, True, False))
_DIHEDRAL: tuple[_Pose, ...] = (*_FLIPS, *((True, across, down) for _, across, down in _FLIPS))


@dataclasses.dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
      name: for people.
      apply: from grey levels float32 [B,S,S,3] and ids int64 [B] to such; pure, each image by itself.
      exact: whether it only moves pixels, whatever the ids.
    """

    name: str
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
    """One term of `--tta`: what it takes, and what views it brings."""

    params: tuple[spec.Param, ...]
    summary: str


VIEWS: dict[str, Entry] = {
    "flips": Entry((), "4 views: as it is, mirrored left to right, top to bottom, and both."),
    "rotations": Entry((), "4 views: turned by 0, 90, 180 and 270 degrees."),
    "dihedral": Entry((), "8 views: all that flips and quarter turns can do."),
    "weak": Entry((spec.Param("n", int, 8, low=1, high=MOST_VIEWS), spec.Param("policy", str, WEAK)),
                  f"n views by a policy ({WEAK}), drawn for each image by its id: the same every time."),
}


def parse(text: str, *, jit: bool = False) -> tuple[View, ...]:
    """Reads `--tta`.

    Args:
      text: terms of `VIEWS` with | between them: the views of all of them together, each once.
      jit: whether XLA compiles policies.

    Returns:
      At least one view, the image as it is first.

    Raises:
      InputError: an unknown term, a value out of range, a gate, or more than `MOST_VIEWS` views.
    """
    poses, weak = {_SAME: None}, []
    for term in spec.parse(text, what=_WHAT).terms:
        bound = spec.bind(spec.only_term(spec.Chain((term,)), what=_WHAT),
                          spec.lookup(term, VIEWS, what=_WHAT).params, what=_WHAT)
        if term.name == "weak":
            weak += _weak(bound["n"], augment.parse(bound["policy"], what=f"{_WHAT}: policy"), jit)
        else:
            own = {"flips": _FLIPS, "rotations": _ROTATIONS, "dihedral": _DIHEDRAL}[term.name]
            poses |= dict.fromkeys(own)
    views = (*(View(_said(pose), _posed(pose)) for pose in poses), *weak)
    if len(views) > MOST_VIEWS:
        raise InputError(f"{_WHAT}: expected at most {MOST_VIEWS} views, received {len(views)}; try weak(8)")
    return views


def _posed(pose: _Pose) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    transposed, across, down = pose
    axes = [axis for axis, mirrored in ((2, across), (1, down)) if mirrored]

    def apply(pixels: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        del ids
        turned = tf.transpose(pixels, (0, 2, 1, 3)) if transposed else pixels
        return tf.reverse(turned, axes) if axes else turned

    return apply


def _said(pose: _Pose) -> str:
    return {(False, False, False): "as it is", (False, True, False): "mirrored left to right",
            (False, False, True): "mirrored top to bottom", (False, True, True): "turned by 180 degrees",
            (True, False, False): "transposed", (True, False, True): "turned by 90 degrees",
            (True, True, False): "turned by 270 degrees", (True, True, True): "transposed across"}[pose]


def _weak(count: int, policy: augment.Policy, jit: bool) -> list[View]:
    @tf.function(jit_compile=jit, autograph=False)
    def version(pixels: tf.Tensor, ids: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        levels = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
        return policy(levels, ids, epoch=number, seed=0)

    def view(number: int) -> View:
        return View(f"weak {number}", lambda pixels, ids: version(pixels, ids, tf.constant(number, tf.int64)), False)

    return [view(number) for number in range(1, count + 1)]
