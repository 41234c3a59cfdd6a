"""The report of a run, or of an evaluation: a JSON file for programs, an HTML page and pictures for people.

What is written, and when, is here; figures come from `metrics`, pictures from `plots`; how the page is laid out is in
`report_page`.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bloodcell.evaluate import plots, report_page
from bloodcell.evaluate.explanations import Explanations
from bloodcell.evaluate.gallery import Classified
from bloodcell.files import write_atomically

RUN, EVALUATION = "report", "evaluation"  # names of the files, before .html and .json


def write(run_dir: pathlib.Path, report: dict[str, Any], *, history: Sequence[dict[str, Any]], grid: np.ndarray,
          grid_titles: Sequence[str], segmentation: bytes | None = None, classified: Classified | None = None,
          corrupted: bytes | None = None, explanations: Explanations | None = None) -> None:
    """Writes report.json, report.html, confusion.png, reliability.png and augmented.png, each whole or not at all.

    Args:
      run_dir: the run's folder; it exists.
      report: JSON values: the figures of `metrics.compute`, their `intervals` of `bootstrap`, and `part`, `recipe`,
        `config`, `data`, `devices`, `precision`, `jit`, `images_per_second`, `peak_memory_mib`, `weights_sha256`,
        `versions`; `averaged`: the printed figures of averaged weights, or None; `first_weights`: `source` and
        `sha256` of each file; and where there is something to say `corruptions`, `options` and `novelty`.
      history: the lines of metrics.jsonl.
      grid: augmented training images [N, H, W, 3] in grey levels 0..255.
      grid_titles: their class names.
      segmentation: the sheet of `segment_sheet` as PNG, where the run has segmented its images.
      classified: the images behind the confusion matrix; None: the page shows none.
      corrupted: the sheet of `corruption_sheet` as PNG, where corruptions were measured.
      explanations: of the model, where there are any.

    Raises:
      InputError: the disk refuses.
    """
    confusion = plots.confusion_png(report["confusion"], list(report["per_class"]))
    reliability = plots.reliability_png(report["calibration"], report["ece"])
    augmented = plots.image_grid_png(grid, grid_titles)
    page = report_page.page(report, classified=classified, history=history, augmented=augmented, corrupted=corrupted,
                            segmentation=segmentation, explanations=explanations,
                            again=f"python main.py --flagfile={run_dir / 'config.cfg'} --workdir={run_dir}-again")
    for name, content in (("confusion.png", confusion), ("reliability.png", reliability), ("augmented.png", augmented),
                          (f"{RUN}.html", page.encode()), (f"{RUN}.json", _json(report))):
        write_atomically(run_dir / name, content)


def write_evaluation(folder: pathlib.Path, report: dict[str, Any], *, again: str, classified: Classified | None = None,
                     corrupted: bytes | None = None, explanations: Explanations | None = None) -> None:
    """Writes evaluation.html and evaluation.json, each whole or not at all; the run's own report is left as it is.

    Args:
      folder: it is made where it is missing.
      report: as of `write`, without what only a training has.
      again: the command that does the same.
      classified: the images behind the confusion matrix; None: the page shows none.
      corrupted: the sheet of `corruption_sheet` as PNG, where corruptions were measured.
      explanations: of the model, where there are any.

    Raises:
      InputError: the disk refuses.
    """
    page = report_page.page(report, classified=classified, corrupted=corrupted, explanations=explanations, again=again)
    for name, content in ((f"{EVALUATION}.html", page.encode()), (f"{EVALUATION}.json", _json(report))):
        write_atomically(folder / name, content)


def _json(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()
