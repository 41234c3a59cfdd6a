"""The report is whole, self-contained, within its size, and says what was measured, in figures and in words."""

import base64
import dataclasses
import io
import itertools
import json
import re

import made_report
import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from bloodcell.errors import InputError
from bloodcell.evaluate import (
    bootstrap,
    gallery,
    metrics,
    plots,
    report,
    report_charts,
    report_confusions,
    report_page,
    report_words,
)
from bloodcell.evaluate.gallery import Classified

LIMIT = 10_000_000  # bytes of a page
AGAIN = "python main.py --mode=evaluate '--data=<x>'"


def decoded(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def embedded(page: str) -> dict:
    return json.loads(page.split('id="page-data">')[1].split("</script>", maxsplit=1)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    report.write(path, made_report.content(), history=made_report.HISTORY, grid=made_report.GRID,
                 grid_titles=["platelet"] * 7, classified=made_report.classified())
    return path


def full_page() -> str:
    sheet = plots.image_grid_png(np.zeros((4, 8, 8, 3)), ["a"] * 4)
    return report_page.page(
        made_report.content(corruptions=made_report.corruptions(), options=made_report.OPTIONS), again=AGAIN,
        classified=made_report.classified(), history=made_report.HISTORY, augmented=sheet, corrupted=sheet,
        segmentation=sheet, explanations=made_report.explanations())


# ---- What is written -------------------------------------------------------------------------------------------------


def test_five_files_are_written_and_nothing_is_left_over(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "augmented.png", "confusion.png", "reliability.png", "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text()) == made_report.content()


def test_an_evaluation_leaves_the_runs_own_report_as_it_is(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report.write_evaluation(tmp_path, made_report.content(recipe="other"), again=AGAIN)
    assert sorted({path.name for path in tmp_path.iterdir()} - {path.name for path in folder.iterdir()}) == [
        "evaluation.html", "evaluation.json"]
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    page = (tmp_path / "evaluation.html").read_text()
    assert "An evaluation" in page
    assert re.sub("</?span>", "", page).count("python main.py --mode=evaluate &#x27;--data=&lt;x&gt;&#x27;</pre>") == 1
    assert 'id="training"' not in page


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        report.write(tmp_path / "file", made_report.content(), history=made_report.HISTORY, grid=made_report.GRID,
                     grid_titles=["a"] * 7)


# ---- What the page holds ---------------------------------------------------------------------------------------------


def test_the_page_links_to_nothing_outside_itself():
    page = full_page()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) > 20
    assert all(re.match(r"data:image/(png|webp);base64,", source) for source in sources)
    assert not re.search(r"https?://|<link|url\(", page.replace('"http://www.w3.org/2000/svg"', ""))
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert min(picture.size) > 8


def test_names_are_text_wherever_they_stand():
    page = full_page()
    outside = page.split('<script type="application/json"')[0] + page.split("</script>", 1)[1]
    for tag in ("<img src=x", "<b>0</b>", "<views>", "<remark>", "<train>", 'co"<'):
        assert tag not in outside
    assert "</script><img" not in page.replace("\\u003c", "")  # nor in the script's data
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert embedded(page)["classes"][1] == made_report.NAMES[1]
    assert page.count("<script") == page.count("</script>") == 2


def test_the_page_holds_figures_command_and_warning(folder):
    page = (folder / "report.html").read_text()
    for text in ("Not for clinical use", "--flagfile=", "immature granulocyte", "a &amp; b", "0" * 64,
                 "flip | rotate(180)", "123"):
        assert text in page


def test_sections_without_anything_to_say_are_left_out(folder):
    page, full = (folder / "report.html").read_text(), full_page()
    for section in ("corruptions", "options", "explanations"):
        assert f'<section id="{section}">' not in page
        assert f'href="#{section}"' not in page
        assert f'<section id="{section}">' in full
        assert f'href="#{section}"' in full
    for each in (page, full):
        assert re.findall(r'href="#([a-z]+)"', each) == re.findall(r'<section id="([a-z]+)">', each)[1:]


def test_headings_go_down_one_level_at_a_time():
    levels = [int(level) for level in re.findall(r"<h([1-6])", full_page())]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_headline_figures_have_their_intervals_and_absent_classes_are_said(folder):
    page, values = (folder / "report.html").read_text(), made_report.content()
    for name, label in metrics.HEADLINE.items():
        low, high = values["intervals"][name]
        assert f"<b>{values[name]:.3f}</b><span>{label}</span><span>{low:.3f} to {high:.3f}</span>" in page
    assert "95% interval" in page
    means = [values[name] for name in ("macro_precision", "macro_recall", "macro_f1", "auc")]
    assert ">mean, all</td>" + "".join(
        f'<td data-column="{column}">{value:.3f}</td>'
        for column, value in zip(("precision", "recall", "F1", "AUC"), means, strict=True)) in page


def test_a_run_whose_figures_have_no_interval_is_reported(tmp_path):
    labels, probabilities, names = np.array([0]), np.eye(3)[[0]], ("a", "b", "c")
    part = {"images": 1, "origin": "x", "fingerprint": "f", "per_class": dict.fromkeys(names, 0)}
    report.write(tmp_path, {**made_report.content(), **metrics.compute(labels, probabilities, names),
                            "data": {"origin": "demo", "parts": {"test": part}},
                            "intervals": bootstrap.intervals(labels, probabilities)},
                 history=made_report.HISTORY, grid=made_report.GRID, grid_titles=["a"] * 7)
    page = (tmp_path / "report.html").read_text()
    assert "<b>n/a</b><span>AUC</span><span>no interval</span>" in page
    assert bootstrap.NO_ERROR in page
    assert "no image of b, c" in page


def test_the_matrix_has_every_count_and_its_share_is_its_shade():
    page = full_page()
    matrix = page.split('<table class="confusion">')[1].split("</table>")[0]
    counts = [[int(text) for text in re.findall(r">(\d+)<", row)] for row in matrix.split("<tr>")[2:]]
    assert counts == [list(row) for row in made_report.CONFUSION]
    # 70 of 77 are 91%, 6 of 77 are 8%, 2 of 42 are 4.8%, 3 of 3 are all of the class
    for kind, label in (("r3", "70 of 77: immature granulocyte named rightly"), ("w3", "6 of 77: "),
                        ("w2", "2 of 42: "), ("w6", "3 of 3: ")):
        assert re.search(rf'<td class="{kind}"><button[^>]*aria-label="{label}', matrix), kind


def test_many_classes_are_a_list_of_what_is_confused():
    count = report_confusions.MOST_CLASSES + 5
    labels, names = np.arange(count).repeat(2), tuple(f"class_{i}" for i in range(count))
    probabilities = np.eye(count)[np.where(np.arange(2 * count) % 2, labels, (labels + 1) % count)] * 0.9 + 0.1 / count
    part = {"images": 2 * count, "origin": "x", "fingerprint": "f", "per_class": dict.fromkeys(names, 2)}
    page = report_page.page({**made_report.content(), **metrics.compute(labels, probabilities, names),
                             "data": {"origin": "x", "parts": {"test": part}}}, again="")
    assert "<table class=\"confusion\">" not in page
    assert page.count(" taken for ") >= count


@pytest.mark.parametrize(("fitted_on", "part", "said"), [("val", "val", True), ("val", "test", False),
                                                          ("", "val", False)])
def test_a_temperature_says_whether_these_images_chose_it(fitted_on, part, said):
    content = made_report.content(temperature="1.7", temperature_fitted_on=fitted_on, part=part)
    content["data"]["parts"] = {part: next(iter(content["data"]["parts"].values()))}
    page = report_page.page(content, again="")
    assert "the temperature 1.7" in page
    assert ("fitted on these very images" in page) == said


def test_options_say_their_gain_and_their_cost():
    row = full_page().split("+ mean of 4 &lt;views&gt;")[1].split("</tr>")[0]
    assert "0.9125 <small>+0.0125</small>" in row
    assert "0.7900 <small>-0.0100</small>" in row
    assert "0.100</td>" in row  # no difference, none said
    assert "100 <small>4.0 x the time</small>" in row


def test_the_heat_map_of_corruptions_has_each_error_in_its_colour():
    table = full_page().split('<table class="heat">')[1].split("</table>")[0]
    row = table.split("pixelate")[1].split("</tr>")[0]
    assert re.findall(r'class="(h\d)">([\d.]+)<', row) == [
        ("h3", "0.100"), ("h4", "0.150"), ("h5", "0.200"), ("h5", "0.250"), ("h6", "0.300"), ("h5", "0.200")]
    assert "+0.100" in row
    assert "mean of 2" in table


def test_what_is_known_of_strange_images_is_said():
    page = report_page.page(made_report.content(novelty={
        "flagged_here": 0.0214, "val_flagged": 0.01, "flagged_under <strong>": 0.3, "threshold": 0.61234,
        "training_vectors": 23918, "val_images": 1712}), again="")
    section = page.split('<section id="novelty">')[1].split("</section>", maxsplit=1)[0]
    for row in (("flagged of the measured images", "2.1%"), ("flagged of the validation images", "1.0%"),
                ("flagged under &lt;strong&gt;", "30.0%"), ("threshold", "0.612"), ("training vectors", "23,918")):
        assert "<tr><td>{}</td><td>{}</td></tr>".format(*row) in section
    assert "of these images it says so of 2.1 in 100" in page


# ---- The images behind the matrix ------------------------------------------------------------------------------------


def test_every_cell_has_its_images_in_the_order_promised():
    found = gallery.data(made_report.classified(), made_report.NAMES)
    predicted, sure = made_report.probabilities().argmax(axis=1), made_report.probabilities().max(axis=1)
    place = 0
    for true, guess, count, shown in found["cells"]:
        own = np.flatnonzero((made_report.labels() == true) & (predicted == guess))
        assert count == shown == len(own) == made_report.CONFUSION[true][guess]
        order = own[np.argsort(sure[own] if true == guess else -sure[own])]
        assert found["file"][place:place + shown] == [made_report.files()[row] for row in order]
        np.testing.assert_allclose(found["confidence"][place:place + shown], sure[order] * 10_000, atol=1)
        place += shown
    assert place == len(found["file"]) == made_report.COUNT
    assert all(second != guess for second, guess in zip(
        found["second"], [cell[1] for cell in found["cells"] for _ in range(cell[3])], strict=True))


def test_wrong_images_go_first_where_not_all_fit_and_cells_share_evenly():
    labels = np.array([0] * 100 + [1] * 50 + [0] * 10 + [1] * 2)
    predicted = np.array([0] * 100 + [1] * 50 + [1] * 10 + [0] * 2)
    sure = np.random.default_rng(0).random(len(labels))
    for most, expected in ((0, {}), (5, {(0, 1): 3, (1, 0): 2}), (12, {(0, 1): 10, (1, 0): 2}),
                           (32, {(0, 1): 10, (1, 0): 2, (0, 0): 10, (1, 1): 10}),
                           (122, {(0, 1): 10, (1, 0): 2, (0, 0): 60, (1, 1): 50})):
        which = gallery.chosen(labels, predicted, sure, most)
        cells = {(t, p): int(((labels[which] == t) & (predicted[which] == p)).sum()) for t in (0, 1) for p in (0, 1)}
        assert {cell: count for cell, count in cells.items() if count} == expected
        for true in (0, 1):  # of the right ones those that the model was least sure of
            own = which[(labels[which] == true) & (predicted[which] == true)]
            np.testing.assert_array_equal(sure[own], np.sort(sure[(labels == true) & (predicted == true)])[:len(own)])


class Noise:
    """Pictures that do not compress, made when they are asked for."""

    def __len__(self) -> int:
        return 30_000

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.random.default_rng(int(np.sum(index))).integers(0, 256, (len(index), 64, 64, 3), np.uint8)


def test_a_page_stays_within_its_size_whatever_the_set():
    count = len(Noise())
    names = tuple("<&\u4e2d" * 30 + str(row) for row in range(count))
    labels = np.random.default_rng(1).integers(0, 4, count)
    probabilities = np.full((count, 4), 0.01)
    probabilities[np.arange(count), np.random.default_rng(2).integers(0, 4, count)] = 0.97
    page = report_page.page(made_report.content(), again="",
                            classified=Classified(Noise(), names, labels, probabilities)).encode()
    assert len(page) < LIMIT * 0.8  # the rest is for the other sections
    assert len(embedded(page.decode())["file"]) > 500


def test_what_is_left_out_is_said(monkeypatch):
    assert "All 187 images are in this page" in full_page()
    monkeypatch.setattr(gallery.data, "__kwdefaults__", {"most": 50, "budget": gallery.BUDGET})
    page = report_page.page(made_report.content(), again="", classified=made_report.classified())
    assert "50 of 187 images are in this page, so that it stays small: all 12 wrong ones" in page


def test_nearest_training_images_of_other_classes_than_the_cells_own_are_red():
    found = made_report.explanations()
    assert found.neighbours is not None
    labels = (found.neighbours.cells.labels[:, None] + [[0, 1], [1, 1], [0, 0]]) % len(made_report.NAMES)
    found = dataclasses.replace(found, neighbours=dataclasses.replace(found.neighbours, labels=labels))
    page = report_page.page(made_report.content(), again="", explanations=found)
    rows = page.split('<div class="cells row">')[1:]
    assert [row.count('<figure class="other">') for row in rows] == [1, 2, 0]


# ---- Plain words -----------------------------------------------------------------------------------------------------


def said(**more) -> str:
    return " ".join(report_words.summary(made_report.content(**more)))


def test_the_summary_says_how_many_of_a_hundred_and_what_is_confused():
    low, high = (100 * end for end in made_report.figures()["intervals"]["accuracy"])
    text = said()
    # 175 of 187 are 93.58%
    assert f"Of 100 cells like these, about 94 get the right name (175 of the 187 that were looked at; 95% interval: " \
           f"{low:.3g} to {high:.3g} of 100)." in text
    name = made_report.NAMES[1]
    assert (f"The commonest mistakes: immature granulocyte taken for {name} (6 of 77), basophil & \"co\" taken for "
            f"{name} (3 of 3) and {name} taken for immature granulocyte (2 of 42).") in text
    assert 'misses most: basophil & "co", of which it found 0 of 3 (0%, few images, so the true share may be quite ' \
           "another)" in text
    # recalls 70/77, 40/42, 1, 0: mean 0.715
    assert "With each class counted alike, whatever its number of images, it is 72 of 100." in text
    assert "Measured on 187 images of x (a test part that was kept out of training)." in text
    assert "was not measured here" in text


@pytest.mark.parametrize(("matrix", "expected"), [
    ([[999, 1], [0, 1000]], "Of 10,000 cells like these, about 9,995 get the right name (1,999 of the 2,000"),
    ([[990, 10], [0, 1000]], "Of 1,000 cells like these, about 995 get the right name (1,990 of the 2,000"),
    ([[10, 0], [0, 10]], "All 20 cells that were looked at got the right name. That does not mean"),
    ([[1, 9], [9, 1]], "Of 100 cells like these, about 10 get the right name (2 of the 20")])
def test_hundred_grows_with_the_accuracy_and_perfect_is_no_promise(matrix, expected):
    matrix = np.array(matrix)
    pairs = [(t, p) for t in (0, 1) for p in (0, 1) for _ in range(matrix[t, p])]
    labels, probabilities = np.array([t for t, _ in pairs]), np.eye(2)[[p for _, p in pairs]] * 0.8 + 0.1
    content = {**made_report.content(), **metrics.compute(labels, probabilities, ("a", "b")),
               "intervals": bootstrap.intervals(labels, probabilities)}
    assert report_words.summary(content)[0].startswith(expected)


@pytest.mark.parametrize(("confidence", "ece", "expected"), [
    (0.99, 0.05, "It is surer than it should be: on average it says 99%, and 94% of the names are right."),
    (0.80, 0.14, "It is less sure than it could be: on average it says 80%, and 94% of the names are right."),
    (0.935, 0.01, "Its confidence can be taken at its word"),
    (0.935, 0.06, "it is off by 6 points")])
def test_the_summary_says_what_confidence_is_worth(confidence, ece, expected):
    bins = [{"above": 0.9, "up_to": 1.0, "images": 187, "accuracy": 0.9358, "confidence": confidence},
            {"above": 0.0, "up_to": 0.9, "images": 0, "accuracy": None, "confidence": None}]
    assert expected in said(calibration=bins, ece=ece)


def test_the_summary_says_what_corruptions_do_and_who_chose_the_epoch():
    text = said(corruptions=made_report.corruptions(), part="val")
    assert "On images made worse on purpose it names 60 of 100 right on average, with each class counted alike; on " \
           "the same images as they are, 72." in text
    assert "It suffers most from defocus: 40 of 100." in text
    assert "Under several strong transforms at once (heavy) it names 50 of 100 right" in text
    assert "chose the best epoch, so that the figures lean upwards" in text
    evaluated = said(config={"mode": "evaluate", "model": "m", "val_augment": "flip"})
    assert "whether any of them was used in training is not known here" in evaluated
    assert "each transformed by the policy flip" in evaluated


# ---- Pictures --------------------------------------------------------------------------------------------------------


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
    drawn = [report_charts.reliability(bins(accuracy)) for accuracy in (0.25, 0.75)]
    bars = [float(re.findall(r'class="bar"[^>]*height="([\d.]+)"', chart)[0]) for chart in drawn]
    assert bars[1] / bars[0] == pytest.approx(3, rel=0.01)


def test_a_grid_shows_each_image():
    white = decoded(plots.image_grid_png(np.full((5, 8, 8, 3), 255.0), ["a"] * 5, columns=3))
    black = decoded(plots.image_grid_png(np.zeros((5, 8, 8, 3), np.uint8), ["a"] * 5, columns=3))
    shown = np.abs(white - black).max(axis=-1) > 0.5
    # five of six places, most of the picture
    assert 0.5 < shown.mean() < 0.8
