"""The ops, one entry each; importing this package fills the registry."""

from bloodcell.augment.ops import colour, degradation, geometry, neighbourhood, occlusion, tonal

__all__ = ["colour", "degradation", "geometry", "neighbourhood", "occlusion", "tonal"]
