"""The ops, one entry each; importing this package fills the registry."""

from bloodcell.augment.ops import colour, geometry, neighbourhood, occlusion, tonal

__all__ = ["colour", "geometry", "neighbourhood", "occlusion", "tonal"]
