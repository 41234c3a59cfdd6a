"""The report of a run: report.json for programs; report.html and its pictures for people.

`report.html` is one file without any link to another (see `pages`). Figures come from `metrics` and pictures from
`plots`; here they are only laid out.
"""

import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bloodcell.evaluate import bootstrap, metrics, pages, plots
from bloodcell.evaluate.pages import escape
from bloodcell.files import write_atomically

LEFT_OUT_ROWS = 20


def write(run_dir: pathlib.Path, report: dict[str, Any], *, history: Sequence[dict[str, Any]], grid: np.ndarray,
          grid_titles: Sequence[str], segmentation: bytes | None = None) -> None:
    """Writes report.json, report.html, confusion.png, reliability.png and augmented.png, each whole or not at all.

    Args:
      run_dir: the run's folder; it exists.
      report: JSON values: the figures of `metrics.compute`, their `intervals` of `bootstrap`, and `part`, `recipe`,
        `config`, `data`, `devices`, `precision`, `jit`, `images_per_second`, `peak_memory_mib`, `weights_sha256`,
        `versions`; `averaged`: the printed figures of averaged weights, or None; `first_weights`: `source` and
        `sha256` of each file.
      history: the lines of metrics.jsonl.
      grid: augmented training images [N, H, W, 3] in grey levels 0..255.
      grid_titles: their class names.
      segmentation: the sheet of `segment_sheet` as PNG, where the run has segmented its images.

    Raises:
      InputError: the disk refuses.
    """
    confusion = plots.confusion_png(report["confusion"], list(report["per_class"]))
    reliability = plots.reliability_png(report["calibration"], report["ece"])
    augmented = plots.image_grid_png(grid, grid_titles)
    page = _page(report, run_dir, confusion=confusion, reliability=reliability,
                 curves=plots.curves_png(history) if history else None, grid=augmented, segmentation=segmentation)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    for name, content in (("confusion.png", confusion), ("reliability.png", reliability), ("augmented.png", augmented),
                          ("report.html", page.encode()), ("report.json", text.encode())):
        write_atomically(run_dir / name, content)


def _page(report: dict[str, Any], run_dir: pathlib.Path, *, confusion: bytes, reliability: bytes, curves: bytes | None,
          grid: bytes, segmentation: bytes | None) -> str:
    title = f"bloodcell: {report['recipe']}"
    parts = report["data"]["parts"]
    counts = [(name.replace("_", " "), *(f"{part['per_class'][name]:,}" for part in parts.values()))
              for name in report["per_class"]]
    counts.append(("all", *(f"{part['images']:,}" for part in parts.values())))
    machine = {"devices": report["devices"], "precision": report["precision"], "jit": report["jit"],
               "training images/s": _figure(report["images_per_second"], 0),
               "peak memory": f"{report['peak_memory_mib']:,} MiB", "weights SHA-256": report["weights_sha256"],
               **{f"first weights: {each['source']}": each["sha256"]
                  for each in report.get("first_weights", []) if each["sha256"]},
               **{f"version of {name}": value for name, value in report["versions"].items()}}
    settings = {f"--{name}": value for name, value in report["config"].items() if name != "recipe"}
    again = f"python main.py --flagfile={run_dir / 'config.cfg'} --workdir={run_dir}-again"
    headline = pages.figures((_figure(report[key]), label, _interval(report["intervals"][key]))
                             for key, label in metrics.HEADLINE.items())
    no_error = f"; {bootstrap.NO_ERROR}" if report["accuracy"] == 1 else ""
    averaged = report.get("averaged")
    average = (f"<p>Averaged weights (--average={escape(report['config']['average'])}; not the figures above): "
               f"accuracy {_figure(averaged['accuracy'])}, balanced accuracy {_figure(averaged['balanced_accuracy'])}, "
               f"macro F1 {_figure(averaged['macro_f1'])}; --which=average uses them.</p>" if averaged else "")
    segmented = ("<h2>Segmentation</h2>" + _image(segmentation, "cells before and after segmentation")
                 if segmentation else "")
    curve = f"<h2>Training</h2>{_image(curves, 'loss and accuracy by epoch')}" if curves else ""
    return pages.document(title, f"""<h1>{escape(title)}</h1>
<p class="sub">{escape(report['config']['model'])} on {escape(report['data']['origin'])}; figures of the best
epoch on {parts[report['part']]['images']:,} images ({escape(report['part'])} part)</p>
<p class="note">Not for clinical use. The figures hold for images like those it was measured on.</p>
{headline}
<p class="small">Beneath each figure its {bootstrap.LEVEL:.0%} interval: percentiles of {bootstrap.RESAMPLES:,} samples
of as many of these images, drawn with replacement{no_error}. Another training, or images of another laboratory, may
differ by more.</p>
{average}
<div class="pair"><div><h2>Confusion matrix</h2>{_image(confusion, 'confusion matrix')}</div>
<div><h2>Calibration</h2>{_image(reliability, 'reliability diagram: accuracy by confidence')}
<p class="small">ECE: mean distance of confidence from accuracy over {len(report['calibration'])} bins of equal width,
weighted by their images. Bars below the line: surer than right. Small errors grow in the resamples, so an interval may
lie above its figure.</p></div></div>
<div class="pair"><div><h2>Per class</h2>{_per_class(report)}</div>
<div>{curve}</div></div>
{segmented}<h2>Training images as the model sees them</h2>{_image(grid, 'augmented training images')}
<h2>Data</h2>{pages.table(('class', *parts), counts)}{_left_out(report['data'].get('left_out', []))}
{_cleaned(report['data'].get('cleaned', []))}
<h2>How to reproduce</h2><pre>{escape(again)}</pre>
<div class="pair"><div><h2>Flags</h2>{pages.settings(settings)}</div>
<div><h2>Machine</h2>{pages.settings(machine)}</div></div>
""")


def _per_class(report: dict[str, Any]) -> str:
    """Each class's figures, the means below them, and what is said of a class without images."""
    rows = [(name.replace("_", " "), *(_figure(values[key]) for key in ("precision", "recall", "f1", "auc")),
             f"{values['support']:,}") for name, values in report["per_class"].items()]
    means = ("macro_precision", "macro_recall", "macro_f1", "auc")
    rows.append(("mean, all", *(_figure(report[key]) for key in means),
                 f"{sum(values['support'] for values in report['per_class'].values()):,}"))
    absent = [name.replace("_", " ") for name, values in report["per_class"].items() if not values["support"]]
    said = f"<p class=\"small\">n/a: no image of {escape(', '.join(absent))}.</p>" if absent else ""
    return pages.table(("class", "precision", "recall", "F1", "AUC", "images"), rows) + said


def _left_out(entries: Sequence[dict[str, str]]) -> str:
    """The images that could not be used, the first of them by name; report.json has them all."""
    if not entries:
        return ""
    rows = [(entry["file"], entry["reason"]) for entry in entries[:LEFT_OUT_ROWS]]
    some = f", the first {LEFT_OUT_ROWS} of them:" if len(entries) > LEFT_OUT_ROWS else ":"
    return (f"<p>left out: {len(entries):,} images that cannot be used{some}</p>"
            f"{pages.table(('image', 'reason'), rows)}")


def _cleaned(entries: Sequence[dict[str, str]]) -> str:
    """What an audit removed before the training: how many images for which reason; report.json names each."""
    if not entries:
        return ""
    reasons = Counter(entry["reason"] for entry in entries)
    rows = [(reason, f"{count:,}") for reason, count in reasons.most_common(LEFT_OUT_ROWS)]
    some = f", the {LEFT_OUT_ROWS} commonest reasons:" if len(reasons) > LEFT_OUT_ROWS else ":"
    return (f"<p>cleaned: {len(entries):,} images were removed before the training (--clean){some}</p>"
            f"{pages.table(('reason', 'images'), rows)}")


def _figure(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "no interval" if ends is None else f"{_figure(ends[0])} to {_figure(ends[1])}"


def _image(png: bytes, description: str) -> str:
    return pages.image(pages.data_uri(png, "png"), description)
