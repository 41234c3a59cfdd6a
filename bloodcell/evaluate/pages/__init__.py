"""What the HTML pages share: one style, one frame, tables and pictures. What they say is in `report` and `audit_page`.

A page is one file: style, script, data and pictures are inside it, and its Content-Security-Policy forbids the browser
to fetch anything, so it can be mailed, archived and opened offline.
"""

import base64
import hashlib
import html
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NOTHING = "'none'"


class Markup(str):
    """HTML that is whole already. Every other text is escaped on its way into a page."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Returns `text` as HTML, safe in an element and in a quoted attribute; `Markup` passes as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def document(title: str, body: str, *, styles: Sequence[str] = (), script: str = "", data: Any = None) -> str:
    """Frames a page.

    Args:
      title: plain text.
      body: HTML.
      styles: files of this package to add to style.css.
      script: a file of this package that runs when the page has loaded; "" for a page that needs none.
      data: JSON values for the script, in the element `page-data`.

    Returns:
      The whole file.
    """
    style = "".join(_resource(name) for name in ("style.css", *styles))
    code = _resource(script) if script else ""
    policy = (f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
              f"script-src {_digest(code) if code else _NOTHING}; base-uri 'none'; form-action 'none'")
    # A "<" would let a class name such as "</script>" end the block; in JSON it may be written \u003c everywhere.
    block = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    embedded = f'<script type="application/json" id="page-data">{block}</script>\n' if data is not None else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head><body>
{body}{embedded}{f"<script>{code}</script>" if code else ""}
</body></html>
"""


def data_uri(content: bytes, kind: str) -> str:
    """Returns a picture as a data URI; `kind` is png, webp, ..."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figures(values: Iterable[tuple[str, ...]]) -> Markup:
    """Lays out headline figures: (figure, what it is), or (figure, what it is, its interval)."""
    cells = ((value, "".join(f"<span>{escape(text)}</span>" for text in texts)) for value, *texts in values)
    body = "".join(f"<div><b>{escape(value)}</b>{texts}</div>" for value, texts in cells)
    return Markup(f'<div class="figures">{body}</div>')


def image(uri: str, description: str) -> Markup:
    """Lays out a picture as wide as there is room."""
    return Markup(f'<img alt="{escape(description)}" src="{uri}">')


def table(header: Sequence[str], rows: Iterable[Iterable[object]], *, kind: str = "") -> Markup:
    """Lays out a table that scrolls sideways where it is too wide. The first column is text, the others are figures.

    Args:
      header: a title per column.
      rows: cells, as text or `Markup`.
      kind: a class of the style, for tables of another make.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f'<td data-column="{escape(name)}">{escape(cell)}</td>'
                                    for name, cell in zip(header, row, strict=True)) + "</tr>\n" for row in rows)
    return Markup(f'<div class="scroll"><table class="{escape(kind)}"><thead><tr>{head}</tr></thead>\n'
                  f'<tbody>{body}</tbody></table></div>')


def settings(values: Mapping[str, Any]) -> Markup:
    """Lays out names and values; what is empty is left out."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>\n"
                   for name, value in values.items() if value != "")
    return Markup(f'<table class="settings">{body}</table>')


def _resource(name: str) -> str:
    return importlib.resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
