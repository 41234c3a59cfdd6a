"""The five primitives that every op lowers to: warp, tone, mix, filter, mask.

Each module holds the parameters of one primitive (a NamedTuple of tensors with a leading sample axis) and one
function that applies them to packed images (see `augment.pixels`). No randomness lives here.
"""
