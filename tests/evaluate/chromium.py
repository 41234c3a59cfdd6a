"""Pages in headless Chromium: opens a file and notes errors and requests. What a page must do is in the tests."""

import contextlib
import dataclasses
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def missing() -> str:
    """Returns why no page can be opened here, "" where it can."""
    if importlib.util.find_spec("playwright") is None:
        return "needs the Python package playwright"
    return "" if _program() else f"needs a browser on the PATH: one of {', '.join(NAMES)}"


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """Yields a Playwright browser; its own download of one is not needed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program())
        try:
            yield browser
        finally:
            browser.close()


@dataclasses.dataclass
class Opened:
    """A page in a window of its own.

    Attributes:
      page: Playwright's.
      problems: errors and warnings of the console, and exceptions.
      requests: addresses that were asked for, but data URIs.
    """

    page: Any
    problems: list[str]
    requests: list[str]

    def overflow(self) -> int:
        """Returns by how many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@contextlib.contextmanager
def opened(browser: Any, path: pathlib.Path, *, width: int, height: int = 900, touch: bool = False,
           ratio: float = 1) -> Iterator[Opened]:
    """Opens a file in a window of `width` x `height` CSS pixels; `ratio` device pixels each."""
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=touch,
                                  device_scale_factor=ratio)
    try:
        seen = Opened(context.new_page(), [], [])
        seen.page.on("console", lambda message: seen.problems.append(message.text)
                     if message.type in ("error", "warning") else None)
        seen.page.on("pageerror", lambda error: seen.problems.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url)
                     if not request.url.startswith("data:") else None)
        seen.page.goto(path.resolve().as_uri())
        yield seen
    finally:
        context.close()


def _program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)
