"""The primitives that every op lowers to, one a module.

A module holds the parameters of its primitive (a NamedTuple of tensors with a leading sample axis) and one
function that applies them to packed images (see `augment.pixels`). Nothing is drawn here:
noise and elastic hash a key that was.
"""
