"""Labelled images: where they come from, how they are split, and how they reach the training step.

`sources.load` turns what the user typed into a `dataset.ImageSet`; `split.split` divides one; `pipeline.Pipeline` feeds
one to a step in batches of a fixed shape. One file per kind of source: `npz`, `folder`, `tfrecord`, `bloodmnist`
(download) and `demo` (rendered). Augmentation does not belong here: it runs inside the compiled step.
"""
