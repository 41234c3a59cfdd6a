"""bloodcell: train blood-cell classifiers that survive heavily transformed images.

`from bloodcell import augment` gives the augmentations alone; `main.py` is the whole job. Nothing is imported here, so
that each part stays as light as what it needs.
"""

__version__ = "0.1.0"
