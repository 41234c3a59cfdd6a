"""A drawn plan as steps and operands: what `source/program.h` runs.

Every number comes from the ops' own `lower`, in the same graph as on the XLA path. Only curves that need an image's
statistics are named instead, since the kernel alone sees the image at that point of the policy.

What belongs here: writing programs. Calling the kernel is `call`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell.augment import entry, plan
from bloodcell.augment.entry import Draws, Size
from bloodcell.augment.plan import Member, Mixture, Repeat, Slot, Stage
from bloodcell.augment.primitives import elastic, jpeg, stain, warp

STEPS = 64  # at most, as in program.h
CODES = ("warp", "tone", "mix", "filter", "mask", "blur", "streak", "mosaic", "elastic", "stain", "noise", "jpeg",
         "repeat", "mixture", "end")
# Curves that the kernel makes of an image's statistics, by the op that wants them.
CURVES = {"contrast": 1, "autocontrast": 2, "equalize": 3}
_STYLES, _FIELDS = 3, 4
_MISSING = -1


class Unsupported(Exception):
    """A policy that the kernel does not run; the message says why."""


class Program:
    """Steps and the operands that they name.

    Attributes:
      words: the steps, 9 whole numbers each.
      operands: tensors with a leading axis of rows (one for all, or one for each image and pass).
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self.operands: list[tf.Tensor] = []

    def step(self, code: str, *fields: tf.Tensor, on: tf.Tensor | None = None, style: Sequence[int] = ()) -> None:
        """Adds a step.

        Raises:
          Unsupported: there are too many.
        """
        places = [_MISSING if each is None else self._operand(each) for each in (on, *fields)]
        places += [_MISSING] * (_FIELDS + 1 - len(places))
        self.words += [CODES.index(code), *style, *[0] * (_STYLES - len(style)), *places]
        if len(self.words) > STEPS * (1 + _STYLES + 1 + _FIELDS):
            raise Unsupported(f"the native op takes policies of at most {STEPS} steps")

    def _operand(self, tensor: tf.Tensor) -> int:
        self.operands.append(tensor)
        return len(self.operands) - 1


def write(stages: Sequence[Stage], draws: plan.Draws, size: Size) -> Program:
    """Returns the program of a plan for draws of one batch.

    Args:
      stages: the plan.
      draws: what `plan.draw` returned.
      size: (height, width) of the images.

    Raises:
      Unsupported: the kernel does not run it.
    """
    program = Program()
    for stage in stages:
        if isinstance(stage, Slot):
            _slot(program, stage, draws, size)
        elif isinstance(stage, Repeat):
            program.step("repeat", style=[stage.count])
            _passes(program, stage, draws, size, axes=2)
        else:
            _mixture(program, stage, draws, size)
    return program


def _mixture(program: Program, stage: Mixture, draws: plan.Draws, size: Size) -> None:
    own = draws[stage.path]
    program.step("mixture", own["weights"], own["share"], own["depth"], on=own["on"],
                 style=[stage.width, stage.layers.count])
    _passes(program, stage.layers, draws, size, axes=3)


def _passes(program: Program, stage: Repeat, draws: plan.Draws, size: Size, axes: int) -> None:
    """Writes stages whose draws have `axes` leading axes, which become one axis of rows."""
    for slot in plan.slots(stage.stages):
        flat = {member.path: {name: tf.reshape(value, [-1, *value.shape[axes:]])
                              for name, value in draws[member.path].items()} for member in slot.members()}
        _slot(program, slot, flat, size)
    program.step("end")


def _slot(program: Program, slot: Slot, draws: Mapping[str, Draws], size: Size) -> None:
    for member in slot.members():
        member.op.check_size(size)
    if slot.primitive == "tone":
        _tone(program, slot, draws, size)
        return
    active, lowered = plan.lower_groups(slot.groups, draws, size, entry.unmeasured())
    _WRITERS[slot.primitive](program, active, lowered, slot.style, size)


def _tone(program: Program, slot: Slot, draws: Mapping[str, Draws], size: Size) -> None:
    """Writes curves: those of an image's statistics by their kind, the others as they are."""
    members = tuple(slot.members())
    on = {member.path: draws[member.path]["on"] for member in members}
    kind, factor = tf.zeros([1], tf.int32), tf.zeros([1])
    plain: list[Member] = []
    for member in members:
        if member.op.statistic is None:
            plain.append(member)
            continue
        if member.op.name not in CURVES:
            raise Unsupported(f"the native op has no '{member.op.name}'")
        kind = tf.where(on[member.path], CURVES[member.op.name], kind)
        if "factor" in draws[member.path]:
            factor = tf.where(on[member.path], draws[member.path]["factor"], factor)
    curve = tf.zeros([1, 1, 256], tf.uint8)
    if plain:
        _, lowered = plan.lower_group(plain, draws, size, entry.unmeasured())
        curve = tf.cast(lowered.curve, tf.uint8)
    program.step("tone", curve, kind, factor, on=tf.reduce_any(tf.stack(list(on.values())), axis=0))


# ---------------------------------------------------------------------------------------------------------------------
# The other primitives
# ---------------------------------------------------------------------------------------------------------------------


def _plain(code: str) -> Callable[..., None]:
    """Returns a writer of a primitive whose fields go as they are."""
    def write_it(program: Program, on: tf.Tensor, lowered: Any, style: Any, size: Size) -> None:
        program.step(code, *lowered, on=on)
    return write_it


def _sampling(style: warp.Style | elastic.Style, interpolation: str) -> list[int]:
    return [warp.FILLS.index(style.fill), round(style.value), int(interpolation == "nearest")]


def _warp(program: Program, on: tf.Tensor, lowered: warp.Warp, style: warp.Style | None, size: Size) -> None:
    style = style or warp.Style()
    program.step("warp", lowered.matrix, on=on, style=_sampling(style, style.interpolation))


def _mask(program: Program, on: tf.Tensor, lowered: Any, style: Any, size: Size) -> None:
    program.step("mask", tf.stack(list(lowered), axis=-1), on=on)


def _elastic(program: Program, on: tf.Tensor, lowered: elastic.Elastic, style: elastic.Style | None,
             size: Size) -> None:
    style = style or elastic.Style()
    weights, scale = elastic.kernel(size, style.sigma)
    program.step("elastic", lowered.key, lowered.alpha, tf.constant(weights[np.newaxis], tf.float32),
                 tf.constant([scale], tf.float32), on=on, style=_sampling(style, "bilinear"))


def _stain(program: Program, on: tf.Tensor, lowered: stain.Stain, style: Any, size: Size) -> None:
    program.step("stain", lowered.matrix, tf.constant(stain.LOGS[np.newaxis]), on=on)


def _jpeg(program: Program, on: tf.Tensor, lowered: jpeg.Jpeg, style: Any, size: Size) -> None:
    tables = np.concatenate([np.ravel(each) for each in (jpeg.MATRIX, jpeg.LUMINANCE, jpeg.CHROMINANCE)])
    program.step("jpeg", lowered.quality, tf.constant(tables[np.newaxis], tf.int32), on=on)


_WRITERS: dict[str, Callable[..., None]] = {
    "warp": _warp, "mask": _mask, "elastic": _elastic, "stain": _stain, "jpeg": _jpeg,
    **{code: _plain(code) for code in ("mix", "filter", "blur", "streak", "mosaic", "noise")}}
