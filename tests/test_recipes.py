"""Every flagfile of `flags/`: it can be read, its head says what it must, and (`-m recipes`, minutes) it trains.

The last is for CI, which runs `python -m pytest -m recipes tests/test_recipes.py`: each recipe through --dry_run, which
takes a step of every stage, and one of each system to its report. At reduced size: random weights, smallest images, an
epoch a stage over a few dozen rendered cells, and small networks in place of the largest.
"""

import json
import math
import pathlib
import re

import keras
import numpy as np
import pytest

from bloodcell import config
from bloodcell.commands import train
from bloodcell.data import demo
from bloodcell.models import backbones, concat
from bloodcell.train import stages

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = ROOT / "flags"
RECIPES = sorted(FLAGS.rglob("*.cfg"))
SEEDS = sorted((FLAGS / "seeds").glob("*.cfg"))
SYSTEMS = {"alpaca", "deepl", "m2g", "riconvoluzione", "dumbening"}


def parsed(*arguments: str) -> config.Config:
    settings = config.parse(["main.py", *arguments])
    assert settings is not None
    return settings


def head(recipe: pathlib.Path) -> str:
    """Returns the text of the comment at the top, as one line."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    until = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(" ".join(line.removeprefix("#") for line in lines[:until]).split())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_flag_and_every_spec_of_a_recipe_is_valid(recipe):
    config.validate(parsed(f"--flagfile={recipe}", "--data=demo"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_its_command(recipe):
    where = recipe.relative_to(ROOT)
    assert f" python main.py --flagfile={where} " in head(recipe)
    assert max(len(line) for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")) <= 120


def test_every_system_has_its_recipes():
    assert {path.stem.partition("_")[0] for path in SEEDS} == SYSTEMS
    assert {"alpaca_v2s", "alpaca_v2s_augmix", "alpaca_v2m", "alpaca_mobilenet", "alpaca_ensemble", "deepl_vgg16",
            "m2g_v2m", "m2g_concat", "riconvoluzione_convnext_base", "dumbening_mobilenet",
            "dumbening_unet"} <= {path.stem for path in SEEDS}


@pytest.mark.parametrize("recipe", SEEDS, ids=lambda path: path.stem)
def test_a_recipe_of_a_system_says_what_it_reproduces_what_that_scored_and_what_differs(recipe):
    text = head(recipe)
    assert f"python main.py --flagfile=flags/seeds/{recipe.name} --data=training_set.npz" in text
    for part in ("Reproduces: ", "Scored there: ", "Differs here: "):
        assert len(text.partition(part)[2]) > 20, part
    assert re.search(r"(Not measured|Measured) here: ", text)


def test_the_table_of_the_systems_names_every_recipe_and_no_other():
    table = (FLAGS / "seeds/README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.cfg\) \|", table, re.MULTILINE)
    assert all(text == target for text, target in named)
    assert sorted(text for text, _ in named) == [path.stem for path in SEEDS]


# ---------------------------------------------------------------------------------------------------------------------
# In CI
# ---------------------------------------------------------------------------------------------------------------------

WHOLE = ("alpaca_mobilenet", "deepl_vgg16", "m2g_v2m", "riconvoluzione_b0", "dumbening_unet")  # of each system one
# Building and tracing hundreds of layers is what takes the time, and is the same in every recipe: each network is built
# and compared by tests/models, and flags/v2s.cfg takes its steps with its own. The stages of the others count layers.
SIBLINGS = {"efficientnet_v2_s": "cnn", "efficientnet_v2_m": "cnn", "efficientnet_v2_l": "mobilenet_v3_small",
            "convnext_base": "convnext_small"}
SMALLER = (
    (r"\bepochs=\d+", "epochs=1"),
    (r"\bbatch_size=\d+", "batch_size=16"),
    (r"\b(replicate|synthetic)\(\d+", r"\1(6"),
    (r"\bsmote\(k=5, n=\d+", "smote(k=5, n=6"),
    (r"\bbalanced_test\(\d+", "balanced_test(1"),
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> pathlib.Path:
    """Rendered cells of 32x32, four to seven of each class."""
    images, labels = demo.render(200, seed=1, part="train", size=32)
    labels = np.asarray(labels)
    chosen = np.concatenate([np.flatnonzero(labels == label)[:4 + label % 4] for label in range(8)])
    path = tmp_path_factory.mktemp("recipes") / "cells.npz"
    np.savez(path, images=images[chosen], labels=labels[chosen])
    return path


def reduced(recipe: pathlib.Path, data: pathlib.Path, run_dir: pathlib.Path, *flags: str) -> config.Config:
    """Returns a recipe at reduced size: all that it says but first weights, sizes and numbers of epochs and images."""
    full = parsed(f"--flagfile={recipe}")
    parts = [SIBLINGS.get(part, part) for part in concat.parse(full.model)] if recipe in SEEDS else [full.model]
    model = parts[0] if len(parts) == 1 else f"{concat.NAME}({', '.join(parts)})"
    side = max(32, *(backbones.BACKBONES[part].minimum for part in parts))
    smaller = [f"--{name}={_smaller(getattr(full, name))}" for name in ("stages", "balance", "split")]
    settings = parsed(f"--flagfile={recipe}", f"--model={model}", "--weights=none", f"--data={data}", "--clean=none",
                      f"--image_size={side}", "--batch_size=16", "--progress=lines", "--jit=off",
                      f"--workdir={run_dir}", *smaller, *flags)
    config.validate(settings)
    return settings


@pytest.fixture
def _own_state():
    yield
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")


@pytest.mark.recipes
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_own_state")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_dry_run_with_a_real_step_of_every_stage(recipe, cells, tmp_path, capsys):
    settings = reduced(recipe, cells, tmp_path / "run", "--dry_run")
    train.run(settings)
    out = capsys.readouterr().out
    losses = re.findall(r"^stage (\d+)/\d+ .*: loss (\S+)  accuracy", out, re.MULTILINE)
    assert [int(stage) for stage, _ in losses] == list(range(1, len(stages.parse(settings.stages)) + 1))
    assert all(math.isfinite(float(loss)) for _, loss in losses)
    assert out.splitlines()[-1] == "dry run: done"
    assert not (tmp_path / "run").exists()


@pytest.mark.recipes
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_own_state")
@pytest.mark.parametrize("name", WHOLE)
def test_one_recipe_of_every_system_trains_to_its_report(name, cells, tmp_path, capsys):
    settings = reduced(FLAGS / f"seeds/{name}.cfg", cells, tmp_path / "run")
    train.run(settings)
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] <= 1
    epochs = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(epochs) == len(stages.parse(settings.stages))
    assert all(math.isfinite(epoch["loss"]) for epoch in epochs)


def _smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text
