"""How the report is laid out: one page that a haematologist and an engineer can both read, the simplest things first.

The page needs nothing but itself (see `pages`), and stays under 10 MB whatever the set: every kind of picture has a
budget. What is written where is `report`'s business; the plain words come from `report_words`, the charts from
`report_charts`, the matrix from `report_confusions`, and what explains the model from `report_explanations`.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bloodcell.evaluate import (
    bootstrap,
    corruptions,
    gallery,
    medmnist_c,
    metrics,
    pages,
    report_charts,
    report_confusions,
    report_explanations,
    report_words,
)
from bloodcell.evaluate.explanations import Explanations
from bloodcell.evaluate.pages import Markup, escape
from bloodcell.evaluate.report_confusions import shade
from bloodcell.evaluate.report_words import name

LEFT_OUT_ROWS = 20
PICTURE_BUDGET = 700_000  # bytes of one sheet as it stands in the page
_WIDTHS = ((1600, 85), (1600, 70), (1300, 70), (1000, 60), (800, 45), (600, 30))  # pixels, and WebP's quality

_ERROR = (0.02, 0.05, 0.10, 0.15, 0.20, 0.30, 0.40, 0.50)  # balanced error, in the heat map of corruptions


_NOVELTY = {"flagged_here": "flagged of the measured images", "flagged_mistakes": "flagged of the mistakes",
            "val_flagged": "flagged of the validation images", "val_images": "validation images"}


def page(report: Mapping[str, Any], *, again: str, classified: gallery.Classified | None = None,
         history: Sequence[dict[str, Any]] = (), augmented: bytes | None = None, corrupted: bytes | None = None,
         segmentation: bytes | None = None, explanations: Explanations | None = None) -> str:
    """Lays out the page; a section without anything to say is left out.

    Args:
      report: JSON values as `report.write` takes them.
      again: the command that does the same.
      classified: the images behind the confusion matrix; None: it shows none.
      history: the lines of metrics.jsonl.
      augmented: the sheet of augmented training images as PNG.
      corrupted: that of cells under corruption.
      segmentation: that of cells before and after segmentation.
      explanations: of the model, where there are any.

    Returns:
      The whole file.
    """
    title = f"bloodcell: {report['recipe']}"
    shown = gallery.data(classified, list(report["per_class"])) if classified else None
    trained = bool(history)
    model = report.get("model") or report["config"]["model"]
    sections = {
        "confusions": ("Which classes are confused", report_confusions.section(report, shown)),
        "classes": ("Each class", _per_class(report)),
        "calibration": ("Calibration: what its confidence is worth", _calibration(report)),
        "corruptions": ("Images made worse on purpose", _corruptions(report, corrupted)),
        "options": ("Gain against cost", _options(report)),
        "novelty": ("Images that are no blood cell", _novelty(report)),
        "explanations": ("What the model goes by", report_explanations.section(explanations)),
        "training": ("Training", _training(report, history, augmented)),
        "data": ("Data", _data(report, segmentation)),
        "reproduce": ("How to reproduce", _reproduce(report, again, trained))}
    present = {key: value for key, value in sections.items() if value[1]}
    links = "".join(f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, (heading, _) in present.items())
    body = "\n".join(f'<section id="{key}"><h2>{escape(heading)}</h2>\n{content}</section>'
                     for key, (heading, content) in present.items())
    lead, *rest = report_words.summary(report)
    words = f'<p class="lead">{escape(lead)}</p>' + "".join(f"<p>{escape(each)}</p>" for each in rest)
    what = "A training's report: figures of the best epoch" if trained else "An evaluation: figures"
    of_part = f" ({'validation' if report['part'] == 'val' else report['part']} part)" if trained else ""
    return pages.document(title, f"""<header><h1>{escape(title)}</h1>
<p class="sub">{what} on {int(np.sum(report['confusion'])):,} images of
{escape(report_words.origin(report))}{escape(of_part)}, by {escape(model)}</p>
<p class="note"><strong>Not for clinical use.</strong> The figures hold for images like those it was measured on.</p>
</header>
<nav aria-label="contents"><ul>{links}</ul></nav>
<main><section id="summary"><h2>In plain words</h2>
<div class="words">{words}</div>
{_headline(report)}</section>
{body}</main>
""", styles=("report.css",), script="report.js", data=shown)


def _headline(report: Mapping[str, Any]) -> str:
    cards = pages.figures((_figure(report[key]), label, _interval(report["intervals"][key]))
                          for key, label in metrics.HEADLINE.items())
    no_error = f"; {bootstrap.NO_ERROR}" if report["accuracy"] == 1 else ""
    averaged = report.get("averaged")
    average = (f"<p>Averaged weights (--average={escape(report['config']['average'])}; not the figures above): "
               f"accuracy {_figure(averaged['accuracy'])}, balanced accuracy {_figure(averaged['balanced_accuracy'])}, "
               f"macro F1 {_figure(averaged['macro_f1'])}; --which=average uses them.</p>" if averaged else "")
    return f"""{cards}
<p class="small">Beneath each figure its {bootstrap.LEVEL:.0%} interval: percentiles of {bootstrap.RESAMPLES:,} samples
of as many of these images, drawn with replacement{no_error}. Another training, or images of another laboratory, may
differ by more.</p>
{average}"""


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------

def _per_class(report: Mapping[str, Any]) -> str:
    """Each class's figures, the means below them, and what is said of a class without images."""
    rows = [(name(key), *(_figure(values[each]) for each in ("precision", "recall", "f1", "auc")),
             f"{values['support']:,}") for key, values in report["per_class"].items()]
    means = ("macro_precision", "macro_recall", "macro_f1", "auc")
    rows.append(("mean, all", *(_figure(report[key]) for key in means),
                 f"{sum(values['support'] for values in report['per_class'].values()):,}"))
    absent = [name(key) for key, values in report["per_class"].items() if not values["support"]]
    said = f"<p class=\"small\">n/a: no image of {escape(', '.join(absent))}.</p>" if absent else ""
    return pages.table(("class", "precision", "recall", "F1", "AUC", "images"), rows, kind="sums") + said + (
        '<p class="small">Recall (sensitivity): of the cells of a class, the share that was found. Precision (positive '
        "predictive value): of the cells that were given the name, the share that has it by right. F1: their harmonic "
        "mean. AUC: how often a cell of the class gets a higher probability of it than a cell of another class.</p>")


def _calibration(report: Mapping[str, Any]) -> str:
    temperature = report.get("temperature")
    own = ", which was fitted on these very images: on others the error is a little larger" \
        if report.get("temperature_fitted_on", "") == report["part"] else ""
    divided = f"<p>Logits were divided by the temperature {escape(temperature)}{own}.</p>" if temperature else ""
    return f"""<div class="pair"><div>{report_charts.reliability(report['calibration'])}</div>
<div><p>A model that says 90% should be right nine times out of ten. Each bar is the accuracy of the images whose
confidence lies in its range, each dot stands at their mean confidence. Dots on the dashed line: confidence as it should
be. Below the line: surer than right. Above: righter than sure.</p>
<p>The calibration error (ECE) is <b>{_figure(report['ece'])}</b>: the mean distance of confidence from accuracy over
{len(report['calibration'])} bins of equal width, weighted by their images.</p>{divided}
<p class="small">Small errors grow in the resamples, so an interval may lie above its figure.</p></div></div>"""


def _corruptions(report: Mapping[str, Any], corrupted: bytes | None) -> str:
    measured = report.get("corruptions")
    if not measured:
        return ""
    mean, clean = measured.get("mean"), 1 - report["balanced_accuracy"]
    each = {key: values for key, values in measured.items() if key != "mean"}
    most = max(len(values.get("severities", ())) for values in each.values())
    header = ["corruption", *map(str, range(1, most + 1)), "mean" if most else "error", "to clean"]
    if mean:
        header.append("AlexNet")
    rows = [_errors("none, as they are", [], error=clean, most=most, compared=bool(mean))]
    for key, values in each.items():
        rows.append(_errors(name(key), [one["balanced_error"] for one in values.get("severities", ())], most=most,
                            error=values["balanced_error"], relative=values["relative_balanced_error"],
                            alexnet=corruptions.CORRUPTIONS[key].alexnet, compared=bool(mean)))
    if mean:
        published = float(np.mean([corruptions.CORRUPTIONS[key].alexnet or 0 for key in mean["of"]]))
        title = f"mean of {len(mean['of'])}"
        rows.append(_errors(title, [], error=mean["balanced_error"], most=most, alexnet=published,
                            relative=mean["relative_balanced_error"], compared=True))
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in header)
    severity = (f' The columns 1 to {most} are severities; "to clean" is what the corruption adds.' if most else
                ' "To clean" is what the corruption adds.')
    alexnet = (f' AlexNet: as published, {medmnist_c.SIDE} x {medmnist_c.SIDE} pixels, test part of BloodMNIST.'
               if mean else "")
    sheet = (f'<details><summary>What the corruptions look like</summary><div class="scroll">'
             f'{_sheet(corrupted, "a cell of each class as it is, and under each corruption and severity")}</div>'
             "</details>") if corrupted else ""
    return ("<p>Balanced error: the share of cells that get a wrong name, each class counted alike; 0 is perfect, "
            f"darker is worse.{escape(severity)}{alexnet}</p>"
            f'<div class="scroll"><table class="heat"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>{sheet}")


def _errors(label: str, by_severity: Sequence[float], *, error: float, most: int, compared: bool,
            relative: float | None = None, alexnet: float | None = None) -> str:
    cells = [_heat(value) for value in by_severity] + ["<td></td>"] * (most - len(by_severity))
    cells += [_heat(error), f"<td>{'' if relative is None else f'{relative:+.3f}'}</td>"]
    if compared:
        cells.append(f"<td>{'' if alexnet is None else _figure(alexnet)}</td>")
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>'


def _heat(error: float) -> str:
    return f'<td class="{shade("h", error, _ERROR)}">{_figure(error)}</td>'


def _options(report: Mapping[str, Any]) -> str:
    options = report.get("options")
    if not options:
        return ""
    first = options[0]
    rows = []
    for row in options:
        cells: list[object] = [row["name"]]
        for key, digits in (("accuracy", 4), ("balanced_accuracy", 4), ("ece", 3), ("nll", 3)):
            gain = row[key] - first[key]
            small = f" <small>{gain:+.{digits}f}</small>" if row is not first and round(gain, digits) else ""
            cells.append(Markup(f"{_figure(row[key], digits)}{small}"))
        speed = row["images_per_second"]
        cost = f" <small>{first['images_per_second'] / speed:.1f} x the time</small>" if row is not first else ""
        rows.append((*cells, Markup(f"{_figure(speed, 0)}{cost}")))
    header = ("options", "accuracy", "balanced", "ECE", "log loss", "images/s")
    return pages.table(header, rows, kind="options") + (
        '<p class="small">Each row has what those above it marked with + have. In small letters the difference to the '
        "first row; lower is better for ECE and log loss. Speed is on the machine below.</p>")


def _novelty(report: Mapping[str, Any]) -> str:
    found = report.get("novelty")
    if not found:
        return ""
    values = {_NOVELTY.get(key, name(key)): f"{value:.1%}" if key.startswith(("flagged", "val_flagged")) else
              _figure(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
              for key, value in found.items() if isinstance(value, str | int | float)}
    return ("<p>The model also measures how unlike its training images an image is: from a novelty of 0.5 on, predict "
            f"flags it.</p>{pages.settings(values)}")


# ---------------------------------------------------------------------------------------------------------------------
# Training, data, how to do it again
# ---------------------------------------------------------------------------------------------------------------------

def _training(report: Mapping[str, Any], history: Sequence[dict[str, Any]], augmented: bytes | None) -> str:
    if not history:
        return ""
    averaged = any("average_val_accuracy" in line for line in history)
    key = ('<p class="small legend"><span class="key train"></span> training, augmented images '
           '<span class="key val"></span> validation'
           + (' <span class="key mean"></span> validation, averaged weights' if averaged else "") + "</p>")
    left = f"<div><h3>Accuracy and loss by epoch</h3>{report_charts.curves(history)}{key}</div>"
    right = (f"<div><h3>Training images as the model sees them</h3>"
             f"{_sheet(augmented, 'augmented training images')}</div>") if augmented else ""
    return f'<div class="pair">{left}{right}</div>'


def _data(report: Mapping[str, Any], segmentation: bytes | None) -> str:
    parts = report["data"]["parts"]
    header = list(parts) if len(parts) > 1 else ["images"]
    counts = [(name(key), *(f"{part['per_class'][key]:,}" for part in parts.values())) for key in report["per_class"]]
    counts.append(("all", *(f"{part['images']:,}" for part in parts.values())))
    segmented = ("<h3>Segmentation</h3>" + _sheet(segmentation, "cells before and after segmentation")
                 if segmentation else "")
    return (f"{pages.table(('class', *header), counts, kind='sums')}{_left_out(report['data'].get('left_out', []))}"
            f"{_cleaned(report['data'].get('cleaned', []))}{segmented}")


def _left_out(entries: Sequence[dict[str, str]]) -> str:
    """The images that could not be used, the first of them by name; the JSON file has them all."""
    if not entries:
        return ""
    rows = [(entry["file"], entry["reason"]) for entry in entries[:LEFT_OUT_ROWS]]
    some = f", the first {LEFT_OUT_ROWS} of them:" if len(entries) > LEFT_OUT_ROWS else ":"
    return (f"<p>left out: {len(entries):,} images that cannot be used{some}</p>"
            f"{pages.table(('image', 'reason'), rows, kind='said')}")


def _cleaned(entries: Sequence[dict[str, str]]) -> str:
    """What an audit removed before the training: how many images for which reason; report.json names each."""
    if not entries:
        return ""
    reasons = Counter(entry["reason"] for entry in entries)
    rows = [(reason, f"{count:,}") for reason, count in reasons.most_common(LEFT_OUT_ROWS)]
    some = f", the {LEFT_OUT_ROWS} commonest reasons:" if len(reasons) > LEFT_OUT_ROWS else ":"
    return (f"<p>cleaned: {len(entries):,} images were removed before the training (--clean){some}</p>"
            f"{pages.table(('reason', 'images'), rows, kind='said')}")


def _reproduce(report: Mapping[str, Any], again: str, trained: bool) -> str:
    given = report.get("flags") or {key: value for key, value in report["config"].items() if key != "recipe"}
    flags = {f"--{key}": value for key, value in given.items()}
    earlier = "".join(f"<details><summary>Flags that trained {escape(run)}</summary><pre>{escape(text)}</pre></details>"
                      for run, text in report.get("trained_by", {}).items() if text)
    machine = {"devices": report["devices"], "precision": report["precision"], "jit": report["jit"],
               f"{'training ' if trained else ''}images/s": _figure(report["images_per_second"], 0),
               "peak memory": f"{report['peak_memory_mib']:,} MiB", "weights SHA-256": report["weights_sha256"],
               **{f"first weights: {each['source']}": each["sha256"]
                  for each in report.get("first_weights", []) if each["sha256"]},
               **{f"fingerprint of {part}": values["fingerprint"] for part, values in report["data"]["parts"].items()},
               **{f"version of {key}": value for key, value in report["versions"].items()}}
    # Lines break between flags, not at their hyphens.
    parts = " ".join(f"<span>{escape(part)}</span>" for part in re.split(r" (?='?--)", again))
    return f"""<pre class="command">{parts}</pre>
<div class="pair"><details><summary>Flags</summary>{pages.settings(flags)}</details>
<details><summary>Machine, weights and versions</summary>{pages.settings(machine)}</details></div>{earlier}
"""


def _figure(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "no interval" if ends is None else f"{_figure(ends[0])} to {_figure(ends[1])}"


def _sheet(png: bytes, description: str) -> str:
    """A picture within its budget, as large and as true as that allows."""
    uri = pages.data_uri(png, "png")
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for width, quality in _WIDTHS:
        if len(uri) <= PICTURE_BUDGET // 4:
            break
        buffer, size = io.BytesIO(), (width, round(picture.height * width / picture.width))
        smaller = picture.resize(size, Image.Resampling.LANCZOS) if width < picture.width else picture
        smaller.save(buffer, "WEBP", quality=quality)
        uri = pages.data_uri(buffer.getvalue(), "webp")
        if len(uri) <= PICTURE_BUDGET:
            break
    return Markup(f'<img class="sheet" alt="{escape(description)}" src="{uri}">')
