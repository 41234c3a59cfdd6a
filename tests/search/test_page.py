"""study.html and trials.csv: what they say, that names cannot break them, and that the page works in a browser."""

import csv
import io
import re

import chromium
import pytest

from bloodcell.search import page, space, table
from bloodcell.search.study import Row

SPACE = space.parse("lr=log(1e-5, 1e-2), augment.randaugment.m=int(2, 9), "
                    "optimizer=choice('adamw(weight_decay=1e-3)', '</script><b>x'), head=choice('', 'dense(8)', None)")


def rows() -> list[Row]:
    made = []
    for number in range(12):
        state = {4: "pruned", 7: "failed", 8: "killed"}.get(number, "complete")
        point = SPACE.at({name: (number * (place + 3) % 11) / 11 for place, name in enumerate(SPACE.names)})
        made.append(Row(number, state, 0.5 + number / 50 if state == "complete" else None, 0.4 + number / 100, point,
                        60.0 * number, 5, (), "expected a finite loss <here>, received nan" if number == 7 else ""))
    return made


@pytest.fixture(scope="module")
def text() -> str:
    return page.page(rows(), SPACE, {"lr": 0.7, "augment.randaugment.m": 0.2, "optimizer": 0.1, "head": 0.0},
                     folder="runs/search", settings={"method": "tpe(trials=12)"})


def test_the_page_says_the_best_trial_and_how_to_train_it(text):
    assert "The best: trial 11" in text
    assert "0.7200" in text
    assert "python main.py --flagfile=runs/search/best.cfg --workdir=runs/search-best" in text
    assert re.findall(r'<td data-column="trial">(\d+)</td>', text) == ["11", "10", "9", "6", "5", "3", "2", "1", "0",
                                                                      "4", "7", "8"]


def test_names_and_lines_cannot_break_out_of_the_page(text):
    assert "<b>x" not in text
    assert "&lt;/script&gt;&lt;b&gt;x" in text
    assert "a finite loss &lt;here&gt;" in text


def test_pages_of_few_trials_say_what_cannot_be_said_yet():
    waiting = [Row(0, "running", None, None, SPACE.corners()[0], 0.0, 0)]
    assert "No trial has finished yet" in page.page(waiting, SPACE, {}, folder="x", settings={})
    one = page.page(rows()[:1], SPACE, {}, folder="x", settings={})
    assert "Too few complete trials" in one


def test_the_csv_has_every_trial_with_its_values_as_they_were():
    read = list(csv.DictReader(io.StringIO(table.csv_text(rows(), SPACE.names))))
    assert [row["trial"] for row in read] == [str(number) for number in range(12)]
    assert [float(row["lr"]) for row in read] == [row.point["lr"] for row in rows()]
    assert {row["head"] for row in read} == {"", "dense(8)", "None"}
    assert read[7]["line"] == "expected a finite loss <here>, received nan"
    assert (read[7]["balanced_accuracy"], read[11]["balanced_accuracy"]) == ("", "0.72")


@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
def test_the_page_opens_without_errors_requests_or_overflow(text, tmp_path):
    path = tmp_path / "study.html"
    path.write_text(text)
    with chromium.launched() as browser:
        for width in (1280, 400):
            with chromium.opened(browser, path, width=width) as seen:
                assert seen.problems == []
                assert seen.requests == [path.as_uri()]
                assert seen.overflow() <= 0
                shown = seen.page.evaluate("[...document.images].map((each) => each.alt && each.naturalWidth)")
                assert len(shown) == 7
                assert all(shown)
