"""What a run writes for TensorBoard: scalars, pictures, the step's graph; traces are `profiler`'s.

Everything lies in `tensorboard/` of the run's folder. Drawing pictures belongs to `evaluate.plots`.
"""

import pathlib

import numpy as np
import tensorflow as tf

FOLDER = "tensorboard"


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
        count, height, width, channels = images.shape
        columns = min(columns, count)
        rows = -(-count // columns)
        cells = np.zeros((rows * columns, height, width, channels), np.uint8)
        cells[:count] = np.clip(np.rint(images), 0, 255)
        grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
        with self._writer.as_default():
            tf.summary.image(name, grid.reshape(1, rows * height, columns * width, channels), step=step)
        self._writer.flush()

    def png(self, name: str, png: bytes, step: int) -> None:
        """Writes an encoded PNG picture, such as the confusion matrix."""
        with self._writer.as_default():
            tf.summary.image(name, tf.image.decode_png(png, channels=3)[None], step=step)
        self._writer.flush()

    def graph(self, function: tf.types.experimental.ConcreteFunction) -> None:
        """Writes the graph of a traced function."""
        with self._writer.as_default():
            tf.summary.graph(function.graph.as_graph_def())
        self._writer.flush()
