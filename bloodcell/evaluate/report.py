"""The report of a run: report.json for programs, report.html, confusion.png and augmented.png for people.

`report.html` is one file without any link to another: pictures are data URIs, the style is inline. Figures come from
`metrics` and pictures from `plots`; here they are only laid out.
"""

import base64
import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bloodcell.evaluate import plots
from bloodcell.files import write_atomically

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; color: #1f2328; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
.sub { margin: .2rem 0 1rem; color: #59636e; overflow-wrap: anywhere; }
.note { margin: 0 0 1.2rem; padding: .5rem .8rem; border-left: 4px solid #b3123f; background: #fbf0f3; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; }
.figures div { padding: .7rem .9rem; border: 1px solid #d6dade; border-radius: .4rem; }
.figures b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures span { color: #59636e; font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem; }
.pair > * { min-width: 0; }
img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e4e7ea; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.settings td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.settings td:first-child { width: 11rem; color: #59636e; }
pre { padding: .7rem .9rem; overflow-x: auto; background: #f4f5f7; border-radius: .4rem; font-size: .88rem; }
@media (max-width: 30rem) { .settings td:first-child { width: 8rem; } th, td { padding: .25rem .35rem; } }
"""


def write(run_dir: pathlib.Path, report: dict[str, Any], *, history: Sequence[dict[str, Any]], grid: np.ndarray,
          grid_titles: Sequence[str]) -> None:
    """Writes report.json, report.html, confusion.png and augmented.png, each whole or not at all.

    Args:
      run_dir: the run's folder; it exists.
      report: JSON values: the figures of `metrics.compute`, and `part`, `recipe`, `config`, `data`, `devices`,
        `precision`, `jit`, `images_per_second`, `peak_memory_mib`, `weights_sha256`, `versions`.
      history: the lines of metrics.jsonl.
      grid: augmented training images [N, H, W, 3] in grey levels 0..255.
      grid_titles: their class names.

    Raises:
      InputError: the disk refuses.
    """
    confusion = plots.confusion_png(report["confusion"], list(report["per_class"]))
    augmented = plots.image_grid_png(grid, grid_titles)
    page = _page(report, run_dir, confusion=confusion, curves=plots.curves_png(history) if history else None,
                 grid=augmented)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    for name, content in (("confusion.png", confusion), ("augmented.png", augmented), ("report.html", page.encode()),
                          ("report.json", text.encode())):
        write_atomically(run_dir / name, content)


def _page(report: dict[str, Any], run_dir: pathlib.Path, *, confusion: bytes, curves: bytes | None, grid: bytes) -> str:
    title = f"bloodcell: {report['recipe']}"
    per_class = [(name.replace("_", " "), *(_figure(values[key]) for key in ("precision", "recall", "f1")),
                  f"{values['support']:,}") for name, values in report["per_class"].items()]
    parts = report["data"]["parts"]
    counts = [(name.replace("_", " "), *(f"{part['per_class'][name]:,}" for part in parts.values()))
              for name in report["per_class"]]
    counts.append(("all", *(f"{part['images']:,}" for part in parts.values())))
    machine = {"devices": report["devices"], "precision": report["precision"], "jit": report["jit"],
               "training images/s": _figure(report["images_per_second"], 0),
               "peak memory": f"{report['peak_memory_mib']:,} MiB", "weights SHA-256": report["weights_sha256"],
               **{f"version of {name}": value for name, value in report["versions"].items()}}
    settings = {f"--{name}": value for name, value in report["config"].items() if name != "recipe"}
    again = f"python main.py --flagfile={run_dir / 'config.cfg'} --workdir={run_dir}-again"
    headline = "".join(f"<div><b>{_figure(report[key])}</b><span>{label}</span></div>" for key, label in (
        ("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro F1"), ("auc", "AUC"),
        ("ece", "calibration error (ECE)")))
    curve = f"<h2>Training</h2>{_image(curves, 'loss and accuracy by epoch')}" if curves else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="sub">{html.escape(report['config']['model'])} on {html.escape(report['data']['origin'])}; figures of the best
epoch on {parts[report['part']]['images']:,} images ({html.escape(report['part'])} part)</p>
<p class="note">Not for clinical use. The figures hold for images like those it was measured on.</p>
<div class="figures">{headline}</div>
<div class="pair"><div><h2>Confusion matrix</h2>{_image(confusion, 'confusion matrix')}</div>
<div>{curve}</div></div>
<h2>Per class</h2>{_table(('class', 'precision', 'recall', 'F1', 'images'), per_class)}
<h2>Training images as the model sees them</h2>{_image(grid, 'augmented training images')}
<h2>Data</h2>{_table(('class', *parts), counts)}
<h2>How to reproduce</h2><pre>{html.escape(again)}</pre>
<div class="pair"><div><h2>Flags</h2>{_settings(settings)}</div><div><h2>Machine</h2>{_settings(machine)}</div></div>
</body></html>
"""


def _figure(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _settings(values: dict[str, Any]) -> str:
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>\n"
                   for name, value in values.items() if value != "")
    return f'<table class="settings">{body}</table>'
