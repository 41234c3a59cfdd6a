"""What a person sees while training: a live bar on a terminal, a line now and then elsewhere, or nothing.

The numbers come from `loop`; here they are only shown. The time left assumes that later stages run as fast as this one.
"""

import sys
import time
from types import TracebackType

import rich.console
import rich.progress

LINE_SECONDS = 10.0  # between two lines, where there is no bar


class Progress:
    """Shows the training's steps; a context manager.

    Args:
      mode: `auto` (bar on a terminal, else lines), `bar`, `lines` or `none`.
      total_steps: steps of all stages together.
      done_steps: of those, finished by an earlier process.
    """

    def __init__(self, mode: str, total_steps: int, done_steps: int = 0):
        if mode == "auto":
            mode = "bar" if sys.stdout.isatty() else "lines"
        self.mode = mode
        self._total, self._done = total_steps, done_steps
        self._where = ""
        self._started: tuple[float, int] | None = None  # when and at which step this stage's speed began to count
        self._last_line = 0.0
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        if mode == "bar":
            self._bar = rich.progress.Progress(
                rich.progress.SpinnerColumn(), rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(), rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[numbers]}"), rich.progress.TimeElapsedColumn(),
                console=rich.console.Console(file=sys.stdout))
            self._task = self._bar.add_task("", total=total_steps, completed=done_steps, numbers="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.mode == "lines":
            print(text, flush=True)

    def where(self, text: str) -> None:
        """Sets the place shown, such as `stage 1/2 head, epoch 3/10`."""
        self._where = text
        if self._bar:
            self._bar.update(self._task, description=text)

    def compiling(self) -> None:
        """Says that the step is being traced and compiled; the stage's speed counts from the next `advance`."""
        self._started = None
        self._numbers("compiling the step...")
        if self.mode == "lines":
            self.say(f"{self._where}: compiling the step...")

    def advance(self, steps: int, images_per_second: float, loss: float) -> None:
        """Counts finished steps and shows the speed and the mean training loss."""
        self._done += steps
        now = time.monotonic()
        if self._started is None:
            self._started = now, self._done
        speed = f"{images_per_second:,.0f} images/s  " if images_per_second else ""  # unknown after one step
        text = f"{speed}loss {loss:.4f}  ETA {self._eta(now)}"
        self._numbers(text)
        if self.mode == "lines" and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"{self._where}: step {self._done}/{self._total}  {text}")

    def validating(self) -> None:
        """Says that the validation set is being read."""
        self._numbers("validating...")

    def skip(self, steps: int) -> None:
        """Counts steps that will not be taken (early stopping)."""
        self._done += steps
        if self._started:
            self._started = self._started[0], self._started[1] + steps
        self._numbers("")

    def _numbers(self, text: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._done, numbers=text)

    def _eta(self, now: float) -> str:
        if self._started is None or self._done <= self._started[1]:
            return "?"
        seconds = (now - self._started[0]) / (self._done - self._started[1]) * (self._total - self._done)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
