"""The command line becomes a Config, or one line that says what is wrong."""

import dataclasses
import pathlib

import pytest

from bloodcell import config
from bloodcell.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "flags").glob("*.cfg"))


def parse(*arguments: str) -> config.Config:
    settings = config.parse(["main.py", *arguments])
    assert settings is not None
    return settings


def test_no_flags_give_the_defaults_of_the_dataclass():
    assert parse() == config.Config()


def test_later_flags_win_over_the_flagfile_before_them(tmp_path):
    recipe = tmp_path / "mine.cfg"
    recipe.write_text("# a comment\n\n--batch_size=16\n--augment=flip | rotate(180)\n--dry_run\n")
    settings = parse(f"--flagfile={recipe}", "--batch_size=8", "--nodry_run")
    assert (settings.batch_size, settings.augment, settings.dry_run) == (8, "flip | rotate(180)", False)


@pytest.mark.parametrize("arguments", [["--flagfile=flags/v2s.cfg"], ["--flagfile", "flags/v2s.cfg"]])
def test_the_default_run_folder_is_named_after_the_flagfile(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parse(*arguments).run_dir == pathlib.Path("runs/v2s")
    assert parse(*arguments, "--workdir=elsewhere").run_dir == pathlib.Path("elsewhere")
    assert parse().run_dir == pathlib.Path("runs/default")


def test_a_policy_quoted_over_several_lines_is_one_line():
    assert parse("--augment=flip |\n      rotate(180)\n").augment == "flip | rotate(180)"


def test_the_flagfile_that_is_written_gives_the_same_run_again(tmp_path):
    settings = parse("--data=some file.npz", "--augment=flip |\n rotate(180)", "--batch_size=7", "--seed=3",
                     "--early_stopping=2", "--workdir=w", "--dry_run", "--report=r.json")
    path = tmp_path / "config.cfg"
    path.write_text(config.to_flagfile(settings))
    expected = dataclasses.replace(settings, workdir="", dry_run=False, report="", recipe="config")
    assert parse(f"--flagfile={path}") == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid(recipe):
    config.validate(parse(f"--flagfile={recipe}", "--data=demo"))


def test_there_are_recipes():
    assert {"v2s", "lite0"} <= {path.stem for path in RECIPES}


def test_every_flag_has_help_with_its_default():
    text = config.help_text()
    for field in dataclasses.fields(config.Config):
        if field.name != "recipe":
            assert f"--{field.name}:" in text or f"--[no]{field.name}:" in text
            assert len(field.metadata["help"]) > 20
    assert config.parse(["main.py", "--help"]) is None


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--bacth_size=3"], "unknown flag --bacth_size; did you mean 'batch_size'?"),
    (["train"], "received the argument 'train'"),
    (["--dry_run", "--", "more"], "received the argument 'more'"),
    (["--batch_size=0"], "expected a whole number 1..65536"),
    (["--batch_size=many"], "expected a whole number 1..65536"),
    (["--seed=-1"], "expected a whole number 0.."),
    (["--mode=trian"], "train|evaluate|predict"),
    (["--precision=float8"], "mixed_bfloat16"),
    (["--nodry_run=1"], "does not take an argument"),
    (["--data"], "--data"),
    (["--flagfile=nowhere.cfg"], "nowhere.cfg"),
    (["--flagfile"], "no argument"),
])
def test_a_command_line_that_cannot_be_read_is_one_line(arguments, expected):
    with pytest.raises(InputError) as caught:
        parse(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flagfile_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "binary.cfg"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        parse(f"--flagfile={path}")


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--augment=flp"], "did you mean 'flip'?"),
    (["--augment=rotate(1e9)"], "rotate"),
    (["--val_augment=flp"], "val_augment"),
    (["--stages=all(epochs=0, lr=1e-3)"], "epochs"),
    (["--optimizer=adan"], "did you mean"),
    (["--schedule=cosine(warmup=2)"], "warmup"),
    (["--loss=cross_entropy(smoothing=1.5)"], "smoothing"),
    (["--balance=undersample"], "undersample"),
    (["--split=fractions(0.5, 0.9)"], "fractions"),
    (["--model=resnet"], "--model"),
    (["--head=dens(3)"], "dens"),
    (["--weights=missing.h5"], "missing.h5"),
    (["--image_size=17"], "--image_size"),
    (["--mode=evaluate"], "--checkpoint"),
    (["--mode=predict", "--checkpoint=runs/x"], "--predictions"),
    (["--split=fractions(0.8, 0.2)", "--val_data=demo"], "--split"),
    (["--test_data=demo"], "--val_data"),
    (["--profile_steps=20,10"], "FIRST < LAST"),
    (["--profile_steps=ten"], "FIRST,LAST"),
])
def test_values_that_cannot_run_are_found_before_any_work(arguments, expected):
    with pytest.raises(InputError) as caught:
        config.validate(parse(*arguments))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_window_is_two_steps():
    assert config.profile_window("") is None
    assert config.profile_window("10, 20") == (10, 20)
