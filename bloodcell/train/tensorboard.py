"""What a run writes for TensorBoard: scalars, pictures, the step's graph, and a profiler trace on request.

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


class Profiler:
    """Traces the steps `first` to `last` of this process for TensorBoard's profile tab.

    Args:
      steps: the first and the last step, counted from 1, or None for no trace.
      run_dir: the run's folder.
    """

    def __init__(self, steps: tuple[int, int] | None, run_dir: pathlib.Path):
        self._folder = str(run_dir / FOLDER)
        self._first, self._last = steps or (0, 0)
        self._step = 0
        self._running = False

    def before_step(self) -> None:
        """Counts a step and starts the trace at the first of its range."""
        self._step += 1
        if self._step == self._first:
            tf.profiler.experimental.start(self._folder)
            self._running = True

    def after_step(self, result: tf.Tensor) -> None:
        """Ends the trace after the last step of its range, once `result` has been computed."""
        if self._running and self._step == self._last:
            result.numpy()
            self.stop()

    def stop(self) -> None:
        """Ends a trace that is still running, because the training was shorter than its range."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False
