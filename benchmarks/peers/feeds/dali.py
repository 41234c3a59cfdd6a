"""NVIDIA DALI's pipeline on the CPU: its reader of TFRecords, decoder, operators and `rand_augment`, a thread a core.

The reader wants an index of each shard, which DALI's own script writes; the few lines here do the same. The pipeline
is given one more batch to do whenever one is taken, up to the last that was asked for: what it works on ahead is its
own time, never another's.
"""

import pathlib
import struct
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, tfrecord, types
from nvidia.dali.auto_aug import rand_augment

from benchmarks.peers import CORES, FILL
from benchmarks.peers.feeds import DEGREES, MAGNITUDE, OPS, SHUFFLED, ZOOM, Batch, Feed, Source

Node = Any  # DALI's DataNode
_BINS = 31  # of the library's magnitudes
_AHEAD = 2  # batches in the works
_LINEAR = {"fill_value": FILL, "interp_type": types.INTERP_LINEAR}


def start(source: Source, *, batch: int, augment: bool) -> Feed:
    """See `feeds.Implementation`."""
    rows = _Rows(source, batch)
    index, folder = _index(source)

    @pipeline_def(batch_size=batch, num_threads=CORES, device_id=None, prefetch_queue_depth=_AHEAD,
                  enable_conditionals=True)
    def graph() -> tuple[Node, Node]:
        if source.images is None:
            features = {"image/encoded": tfrecord.FixedLenFeature((), tfrecord.string, ""),
                        "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1)}
            read = fn.readers.tfrecord(path=list(source.shards), index_path=index, features=features,
                                       random_shuffle=True, initial_fill=min(SHUFFLED, len(source.labels)))
            images, labels = fn.decoders.image(read["image/encoded"], output_type=types.RGB), read["image/class/label"]
        else:
            images, labels = fn.external_source(source=rows, num_outputs=2, batch=True, layout=["HWC", ""])
        return (_augmented(images) if augment else images), labels

    with warnings.catch_warnings(record=True):  # `auto_aug` itself uses names that have moved; a filter does not help
        pipeline = graph()
        pipeline.build()
    if folder is not None:
        weakref.finalize(pipeline, folder.cleanup)

    def call(count: int) -> Iterator[Batch]:
        for _ in range(min(_AHEAD, count)):
            pipeline.schedule_run()
        for number in range(count):
            images, labels = pipeline.share_outputs()
            yield np.asarray(images.as_tensor()), np.asarray(labels.as_tensor())[:, 0]
            pipeline.release_outputs()
            if number + _AHEAD < count:
                pipeline.schedule_run()

    return call


def _augmented(images: Node) -> Node:
    images = fn.flip(images, horizontal=fn.random.coin_flip(), vertical=fn.random.coin_flip())
    size = images.shape(dtype=types.FLOAT)
    centre = fn.stack(size[1], size[0]) * 0.5
    factor = fn.random.uniform(range=(1.0 - ZOOM, 1.0 + ZOOM))
    turn = fn.transforms.rotation(angle=fn.random.uniform(range=(-DEGREES, DEGREES)), center=centre)
    matrix = fn.transforms.scale(turn, scale=fn.stack(factor, factor), center=centre)
    images = fn.warp_affine(images, matrix, inverse_map=False, **_LINEAR)  # turn and zoom in one pass
    return rand_augment.rand_augment(images, n=OPS, m=round(MAGNITUDE * (_BINS - 1)), num_magnitude_bins=_BINS,
                                     fill_value=FILL)


class _Rows:
    """Calls give batches of an array's rows, each epoch in an order of its own."""

    def __init__(self, source: Source, batch: int) -> None:
        self._source, self._batch = source, batch
        self._random = np.random.default_rng(0)
        self._order = np.empty(0, np.int64)

    def __call__(self) -> Batch:
        while len(self._order) < self._batch:
            self._order = np.concatenate([self._order, self._random.permutation(len(self._source.labels))])
        rows, self._order = self._order[:self._batch], self._order[self._batch:]
        assert self._source.images is not None
        return self._source.images[rows], self._source.labels[rows, np.newaxis]


def _index(source: Source) -> tuple[list[str], tempfile.TemporaryDirectory[str] | None]:
    """Writes where each shard's records begin and how many bytes they take, framing included."""
    if not source.shards:
        return [], None
    folder = tempfile.TemporaryDirectory()
    written = []
    for number, shard in enumerate(source.shards):
        lines, position = [], 0
        with open(shard, "rb") as file:
            while header := file.read(8):
                size = 8 + 4 + struct.unpack("<Q", header)[0] + 4  # length and its checksum, the record and its
                lines.append(f"{position} {size}\n")
                position += size
                file.seek(position)
        written.append(pathlib.Path(folder.name, f"{number}.idx"))
        written[-1].write_text("".join(lines))
    return [str(path) for path in written], folder
