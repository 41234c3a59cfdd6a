"""What a run writes for TensorBoard: scalars, pictures, vectors, the step's graph; traces are `profiler`'s.

Everything lies in `tensorboard/` of the run's folder. Drawing pictures belongs to `evaluate.plots`.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from bloodcell.errors import shown
from bloodcell.files import write_atomically

FOLDER = "tensorboard"
_PROJECTOR = "projector_config.pbtxt"  # the name that TensorBoard looks for
_SPRITE_SIDE = 8192  # pixels; WebGL takes no larger picture everywhere


class Board:
    """Writes TensorBoard's event files of one run; a context manager. The folder is made at the first use."""

    def __init__(self, run_dir: pathlib.Path):
        self.folder = run_dir / FOLDER
        self._writer = tf.summary.create_file_writer(str(self.folder))

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Writes named numbers at a step."""
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)
        self._writer.flush()

    def images(self, name: str, images: np.ndarray, step: int, *, columns: int = 8) -> None:
        """Writes images [N, H, W, 3] in grey levels 0..255 as one grid."""
        grid = _grid(images, min(columns, len(images)))
        with self._writer.as_default():
            tf.summary.image(name, grid[np.newaxis], step=step)
        self._writer.flush()

    def png(self, name: str, png: bytes, step: int) -> None:
        """Writes an encoded PNG picture, such as the confusion matrix."""
        with self._writer.as_default():
            tf.summary.image(name, tf.image.decode_png(png, channels=3)[None], step=step)
        self._writer.flush()

    def projector(self, name: str, vectors: np.ndarray, *, columns: Mapping[str, Sequence[str]],
                  images: np.ndarray) -> None:
        """Writes vectors with their images to TensorBoard's Projector, in place of those written before.

        Args:
          name: of the vectors, also of their files.
          vectors: float [N,D], N from 1.
          columns: at least two, N values each by the column's name, by which the Projector labels and colours.
          images: uint8 [N,t,t,3]; left out where they would make too large a picture.

        Raises:
          InputError: the folder cannot be written.
        """
        rows = zip(*columns.values(), strict=True)
        tables = {f"{name}.tsv": ("\t".join(f"{value:.6g}" for value in row) for row in vectors.tolist()),
                  f"{name}_metadata.tsv": ("\t".join(shown(value) for value in row) for row in (tuple(columns), *rows))}
        files = {file: "".join(f"{line}\n" for line in lines).encode() for file, lines in tables.items()}
        entry = [f'tensor_name: "{name}"', *(f"tensor_shape: {size}" for size in vectors.shape),
                 f'tensor_path: "{name}.tsv"', f'metadata_path: "{name}_metadata.tsv"']
        across, side = math.ceil(math.sqrt(len(images))), images.shape[1]
        if across * side <= _SPRITE_SIDE:
            files[f"{name}_sprite.png"] = tf.io.encode_png(_grid(images, across)).numpy()
            entry.append(f'sprite {{ image_path: "{name}_sprite.png" single_image_dim: {side} '
                         f'single_image_dim: {side} }}')
        stated = "".join(f"  {line}\n" for line in entry)
        files[_PROJECTOR] = f"embeddings {{\n{stated}}}\n".encode()  # last: it names the others
        for file, content in files.items():
            write_atomically(self.folder / file, content)

    def graph(self, function: tf.types.experimental.ConcreteFunction) -> None:
        """Writes the graph of a traced function."""
        with self._writer.as_default():
            tf.summary.graph(function.graph.as_graph_def())
        self._writer.flush()


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns images [N, H, W, 3] in grey levels side by side, row by row, the last row filled up with black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = np.clip(np.rint(images), 0, 255)
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)
