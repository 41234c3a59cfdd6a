"""The report is whole, self-contained and says what was measured."""

import base64
import io
import json
import re

import matplotlib.image
import numpy as np
import pytest

from bloodcell.errors import InputError
from bloodcell.evaluate import bootstrap, metrics, plots, report

NAMES = ("immature_granulocyte", "<script>", "platelet")


def content() -> dict:
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.eye(3)[[0, 1, 1, 1, 1]]
    part = {"images": 5, "origin": "x", "fingerprint": "f", "per_class": dict(zip(NAMES, (2, 3, 0), strict=True))}
    return {**metrics.compute(labels, probabilities, NAMES), "intervals": bootstrap.intervals(labels, probabilities),
            "part": "test", "recipe": "mine",
            "config": {"model": "a & b", "data": "demo", "augment": "flip | rotate(180)"},
            "data": {"origin": "demo", "parts": {"train": part, "test": part}}, "devices": "CPU",
            "precision": "float32", "jit": "augment", "images_per_second": 123.4, "peak_memory_mib": 2048,
            "weights_sha256": "0" * 64, "versions": {"tensorflow": "2.21.0"}}


HISTORY = [{"epoch": n, "loss": 2 / n, "accuracy": 0.3 * n, "val_loss": 1.9 / n, "val_accuracy": 0.25 * n}
           for n in (1, 2, 3)]
GRID = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3)).astype(np.float32)


def decoded(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    report.write(path, content(), history=HISTORY, grid=GRID, grid_titles=["platelet"] * 7)
    return path


def test_five_files_are_written_and_nothing_is_left_over(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "augmented.png", "confusion.png", "reliability.png", "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text()) == content()


def test_the_page_links_to_nothing_outside_itself(folder):
    page = (folder / "report.html").read_text()
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"https?://|<link|<script", page)
    pictures = re.findall(r'base64,([^"]+)"', page)
    assert len(pictures) == 4  # confusion matrix, reliability diagram, curves, images
    for picture in pictures:
        assert decoded(base64.b64decode(picture)).std() > 0.01


def test_the_page_holds_figures_command_and_warning(folder):
    page = (folder / "report.html").read_text()
    for text in ("Not for clinical use", "--flagfile=", "0.800", "immature granulocyte", "&lt;script&gt;", "a &amp; b",
                 "0" * 64, "flip | rotate(180)", "123", "n/a"):
        assert text in page


def test_headline_figures_have_their_intervals_and_absent_classes_are_said(folder):
    page, values = (folder / "report.html").read_text(), content()
    for name, label in metrics.HEADLINE.items():
        low, high = values["intervals"][name]
        assert f"<b>{values[name]:.3f}</b><span>{label}</span><span>{low:.3f} to {high:.3f}</span>" in page
    assert "95% interval" in page
    assert "no image of platelet" in page
    means = [values[name] for name in ("macro_precision", "macro_recall", "macro_f1", "auc")]
    assert ">mean, all</td>" + "".join(
        f'<td data-column="{column}">{value:.3f}</td>'
        for column, value in zip(("precision", "recall", "F1", "AUC"), means, strict=True)) in page


def test_a_run_whose_figures_have_no_interval_is_reported(tmp_path):
    labels, probabilities = np.array([0]), np.eye(3)[[0]]
    report.write(tmp_path, {**content(), **metrics.compute(labels, probabilities, NAMES),
                            "intervals": bootstrap.intervals(labels, probabilities)},
                 history=HISTORY, grid=GRID, grid_titles=["a"] * 7)
    page = (tmp_path / "report.html").read_text()
    assert "<b>n/a</b><span>AUC</span><span>no interval</span>" in page
    assert bootstrap.NO_ERROR in page


def test_a_reliability_diagram_has_a_bar_as_high_as_the_bins_accuracy():
    def bins(accuracy):
        return [{"above": i / 5, "up_to": (i + 1) / 5, "images": 10 if i == 3 else 0,
                 "accuracy": accuracy if i == 3 else None, "confidence": 0.7 if i == 3 else None} for i in range(5)]

    low, high = (decoded(plots.reliability_png(bins(accuracy), 0.1)) for accuracy in (0.25, 0.75))
    column = low.shape[1] * 7 // 10 + 20  # within the fourth bin, beside its dot
    heights = []
    for picture in (low, high):
        bar = (picture[:, column, 0] > picture[:, column, 1] + 0.15)  # red
        heights.append(bar.sum())
    assert heights[1] / heights[0] == pytest.approx(3, rel=0.1)


def test_a_grid_shows_each_image():
    white = decoded(plots.image_grid_png(np.full((5, 8, 8, 3), 255.0), ["a"] * 5, columns=3))
    black = decoded(plots.image_grid_png(np.zeros((5, 8, 8, 3), np.uint8), ["a"] * 5, columns=3))
    shown = np.abs(white - black).max(axis=-1) > 0.5
    # five of six places, most of the picture
    assert 0.5 < shown.mean() < 0.8


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        report.write(tmp_path / "file", content(), history=HISTORY, grid=GRID, grid_titles=["a"] * 7)
