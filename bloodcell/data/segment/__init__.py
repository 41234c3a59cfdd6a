"""Segmentation (`--segment`): the cell in the middle stays, pixel for pixel, and everything else becomes one colour.

`parse` checks the flag, `learn` makes a `Segmenter` from training images, `load` reads back what a run has saved.
Augmentation, and deciding which images enter a set, do not belong here.
"""

from bloodcell.data.segment.segmenter import FILE, SEGMENTERS, Result, Segmenter, learn, load, parse, same
from bloodcell.data.segment.shape import outline

__all__ = ["FILE", "SEGMENTERS", "Result", "Segmenter", "learn", "load", "outline", "parse", "same"]
