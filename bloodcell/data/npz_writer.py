"""Writes a set as the `.npz` that `npz` reads, a few images at a time, whole or not at all."""

import pathlib
import zipfile
from typing import BinaryIO

import numpy as np

from bloodcell.data.dataset import ImageSet
from bloodcell.files import write_atomically

_CHUNK = 512  # images in memory at a time, where the set's own are not


def write(images: ImageSet, path: pathlib.Path, *, audited: str) -> None:
    """Writes `images`, `labels`, `index`, `class_names` and `audited`, without compression.

    Args:
      images: N labelled images.
      path: the file; one that is there is replaced.
      audited: what the set is left of, in words; `npz` takes a file that has it as audited.

    Raises:
      InputError: the folder cannot be written or the disk is full; a file that was there is then untouched.
    """
    labels = np.asarray(images.labels)
    small = {"labels": labels.astype(np.uint8 if images.num_classes <= 256 else np.int64)[:, None], "index": images.ids,
             "class_names": np.asarray(images.class_names, dtype=str), "audited": np.asarray(audited)}

    def content(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in small.items():
                with archive.open(f"{key}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
            with archive.open("images.npy", "w", force_zip64=True) as entry:
                header = {"descr": "|u1", "fortran_order": False, "shape": tuple(images.images.shape)}
                np.lib.format.write_array_header_1_0(entry, header)
                for start in range(0, len(images), _CHUNK):
                    entry.write(np.ascontiguousarray(images.images[start:start + _CHUNK]).data)

    write_atomically(path, content)
