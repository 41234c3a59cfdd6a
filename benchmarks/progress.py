"""What a person sees while a suite runs: on a terminal one line that moves, elsewhere a line for each that stays.

The line is drawn between timed runs and never during one: a thread that redraws would run beside what is timed. What
is timed, and for how long, belongs to `timing` and the suites.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import rich.console
import rich.progress

LINE_SECONDS = 15.0  # between two lines of mere progress, where there is no terminal

Item = TypeVar("Item")
Tell = Callable[[str], None]


class Progress:
    """Shows which case of how many runs, since when and for how much longer; a context manager.

    Called with a line, it prints the line, which stays. Everything goes to stderr: stdout is the tables'.

    Args:
      suite: what runs.
      terminal: whether to draw the line that moves; None: where stderr is a terminal.
    """

    def __init__(self, suite: str, terminal: bool | None = None):
        self._suite, self._case = suite, ""
        self._began = self._last = time.monotonic()
        self._done, self._total, self._part = 0, 1, 0.0
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        if sys.stderr.isatty() if terminal is None else terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[numbers]}"), auto_refresh=False, transient=True,
                redirect_stdout=False, redirect_stderr=False,
                console=rich.console.Console(file=sys.stderr, force_terminal=terminal))
            self._task = self._bar.add_task("", total=1.0, numbers="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def plan(self, total: int) -> None:
        """Says how many cases are to come, after those that ran."""
        self._total = max(self._done + total, 1)

    def case(self, name: str) -> None:
        """Begins a case."""
        self._case, self._part = name, 0.0
        self._show()

    def finished(self) -> None:
        """Counts the case that ran."""
        self._done, self._part = self._done + 1, 0.0
        self._show()

    def part(self, part: float, now: str) -> None:
        """Says which part of the case is done, from 0 to 1, and who is next."""
        self._part = part
        if self._bar or time.monotonic() - self._last >= LINE_SECONDS:
            self._show(now)

    def detail(self, line: str) -> None:
        """Prints a line that nobody needs who sees the line that moves."""
        if not self._bar:
            self(line)

    def __call__(self, line: str) -> None:
        """Prints a line that stays."""
        self._last = time.monotonic()
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(f"[{self._suite} {self._numbers()}] {line}", file=sys.stderr, flush=True)

    def _show(self, now: str = "") -> None:
        if self._bar:
            text = " ".join(filter(None, (self._suite, now or self._case)))
            self._bar.update(self._task, completed=self._fraction(), description=text, numbers=self._numbers(),
                             refresh=True)
        elif now:
            self(now)

    def _fraction(self) -> float:
        return min((self._done + self._part) / self._total, 1.0)

    def _numbers(self) -> str:
        spent = time.monotonic() - self._began
        fraction = self._fraction()
        left = f", ETA {_clock(spent / fraction - spent)}" if fraction > 0 else ""
        return f"{min(self._done + 1, self._total)}/{self._total}, {_clock(spent)}{left}"


def each(items: Iterable[Item], tell: Tell, name: Callable[[Item], str] = str) -> Iterator[Item]:
    """Yields cases of a suite, and tells `tell`, where that is a `Progress`, which one runs of how many."""
    listed: Sequence[Item] = list(items)
    watch = tell if isinstance(tell, Progress) else None
    if watch:
        watch.plan(len(listed))
    for item in listed:
        if watch:
            watch.case(name(item))
        yield item
        if watch:
            watch.finished()


def part(tell: Tell, done: float, now: str) -> None:
    """Tells `tell`, where that is a `Progress`, which part of the case is done, and who is next."""
    if isinstance(tell, Progress):
        tell.part(done, now)


def detail(tell: Tell, line: str) -> None:
    """Tells a line that nobody needs who sees the line that moves."""
    (tell.detail if isinstance(tell, Progress) else tell)(line)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
