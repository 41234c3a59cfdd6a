"""docs/results.md: what is run, at what budget, that it is run once, and what the page makes of the figures."""

import json
import pathlib
import shlex

import numpy as np
import pytest

from bloodcell import config
from bloodcell.errors import InputError
from docs import results

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs/results.md", ROOT / "docs/results.json"
# Rows an epoch of the course's 11,959 cells: classes of 852, 2181, 1085, 2026, 849, 993, 2330 and 1643 images.
COUNTS = np.array([852, 2181, 1085, 2026, 849, 993, 2330, 1643])


def parsed(recipe: str) -> config.Config:
    settings = config.parse(["main.py", f"--flagfile={ROOT}/flags/results/{recipe}.cfg"])
    assert settings is not None
    return settings


def test_every_recipe_of_the_folder_is_a_row_and_every_row_a_recipe():
    assert sorted(results.RECIPES) == sorted(path.stem for path in (ROOT / "flags/results").glob("*.cfg"))


@pytest.mark.parametrize("recipe", results.RECIPES)
def test_recipes_differ_in_images_and_balance_alone_and_see_about_as_many_images(recipe):
    from bloodcell.train import stages

    first, other = parsed("flips"), parsed(recipe)
    for name in ("model", "weights", "head", "image_size", "batch_size", "optimizer", "schedule", "loss",
                 "early_stopping", "average", "split", "val_augment", "segment", "precision", "clean"):
        assert getattr(first, name) == getattr(other, name), name
    assert stages.parse(first.stages)[0].lr == stages.parse(other.stages)[0].lr
    least = {"synthetic(1500": 1500, "synthetic(2000": 2000, "replicate(2000": 2000, "smote(k=5, n=2000": 2000}
    rows = np.maximum(COUNTS, least.get(other.balance.partition(")")[0].partition(", policy")[0], 0)).sum()
    seen = rows * stages.parse(other.stages)[0].epochs
    assert 0.88 < seen / (COUNTS.sum() * stages.parse(first.stages)[0].epochs) < 1.05


# ---------------------------------------------------------------------------------------------------------------------


class Machine:
    """Stands for main.py: writes what it would, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, arguments: list[str]) -> None:
        import dataclasses

        given = dict(each.removeprefix("--").split("=", 1) for each in arguments)
        if "mode" not in given:
            settings = results._parsed(arguments)
            folder = pathlib.Path(settings.workdir)
            self.calls.append(f"train {folder.name}")
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("{}\n" * 4)
            alpaca = folder.name.startswith("alpaca")
            (folder / "report.json").write_text(json.dumps({
                "config": dataclasses.asdict(settings), "devices": "CPU",
                "precision": "float32", "jit": "augment", "versions": {"bloodcell": "0.1.0"},
                "data": {"training_rows": {"after": 150} if alpaca else None,
                         "parts": {"train": {"images": 100}, "val": {"images": 400}}}}))
            return
        folder = pathlib.Path(given["checkpoint"])
        self.calls.append(f"evaluate {folder.name}")
        recipe, _, seed = folder.name.rpartition("-")
        clean = {"flips": 0.9, "alpaca": 0.8}[recipe] + 0.02 * int(seed)
        heavy = {"flips": 0.3, "alpaca": 0.7}[recipe]
        pathlib.Path(given["report"]).write_text(json.dumps({
            **dict.fromkeys(results.FIGURES, clean), "corruptions": {"heavy": dict.fromkeys(results.FIGURES, heavy)}}))


@pytest.fixture
def plan(tmp_path) -> results.Plan:
    return results.Plan("/somewhere/clean.npz", "/somewhere/val.npz", tmp_path / "runs")


def test_seeds_come_one_after_the_other_and_what_is_there_is_not_run_again(plan):
    machine = Machine()
    results.run(plan, ["flips", "alpaca"], [0, 1], machine)
    assert machine.calls == [f"{what} {name}-{seed}" for seed in (0, 1) for name in ("flips", "alpaca")
                             for what in ("train", "evaluate")]
    (plan.folder("alpaca", 1) / results.EVALUATED).unlink()
    again = Machine()
    results.run(plan, ["flips", "alpaca"], [0, 1, 2], again)
    assert again.calls == ["evaluate alpaca-1", "train flips-2", "evaluate flips-2", "train alpaca-2",
                           "evaluate alpaca-2"]


def test_a_run_of_other_flags_is_no_result(plan):
    results.run(plan, ["flips"], [0], Machine())
    other = results.Plan(plan.data, plan.val_data, plan.workdir, ("--batch_size=8",))
    with pytest.raises(InputError, match=r"--batch_size=64; try another --workdir"):
        results.run(other, ["flips"], [0], Machine())


def test_the_page_holds_means_spreads_and_commands_that_anybody_can_type(plan):
    results.run(plan, ["flips"], [0, 1, 2], Machine())
    results.run(plan, ["alpaca"], [0], Machine())
    found = results.gather(plan)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    page = results.page(found)
    flips, alpaca = (next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
                     for name in ("flips", "alpaca"))
    assert "| 0.920 ± 0.020 | 0.300 ± 0.000 | 0.300 ± 0.000 | 400 | 0, 1, 2 |" in flips
    assert "| 0.800 | 0.700 | 0.700 | 600 | 0 alone |" in alpaca
    assert "Highest on clean cells: `flips` (0.920" in page
    assert "highest on heavy ones: `alpaca` (0.700" in " ".join(page.split())
    assert "somewhere" not in page
    assert str(plan.workdir) not in page
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    python main.py ")]
    assert len(commands) == 4
    for command in commands:
        settings = results._parsed(command[2:])
        assert {settings.data, settings.val_data} <= {"clean.npz", "val.npz", ""}


@pytest.mark.skipif(not FIGURES.exists(), reason="docs/results.json is not there: python -m docs.results run writes it")
def test_the_page_is_what_its_figures_say():
    assert PAGE.read_text(encoding="utf-8") == results.page(json.loads(FIGURES.read_text(encoding="utf-8")))
    assert json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize(("arguments", "says"), [
    (["run", "--data=x.npz", "--val_data=y.npz", "--only=alpacca"], "did you mean 'alpaca'?"),
    (["run", "--data=x.npz", "--val_data=y.npz", "--seeds=one"], "try 0,1,2"),
    (["page", "--docs=nowhere"], "nowhere"),
])
def test_what_cannot_be_is_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        results.main(arguments)
    assert says in str(caught.value)
