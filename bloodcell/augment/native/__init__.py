"""The custom op: one hand-written kernel that applies a whole policy to an image while it lies in cache.

XLA compiles the same policies from TensorFlow's operations (`augment.plan`); this package computes them again, to the
same bits wherever no logarithm, no exponential and no long sum is involved, and within one grey level everywhere.
Drawing and lowering stay where they are: the kernel takes the parameters that the XLA path takes.

- `source/`: the kernel in C++ and CUDA;
- `build`: from source to a library in the user's cache; `library`: which one fits this TensorFlow and this machine;
- `selftest`: whether it computes what XLA computes here;
- `program`: a policy and its draws as the kernel's steps; `call`: the custom call in the graph;
- `backend`: who augments, from `--backend`.

It has no gradient, as no augmentation here has: asking for one is an error.
"""
