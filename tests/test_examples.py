"""Every example runs from the checkout by itself, and prints what it is there to show."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output(name: str, folder: pathlib.Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT / "examples" / f"{name}.py")], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(folder.iterdir())  # an example leaves nothing behind
    return done.stdout


def test_a_map_over_batches_gives_what_the_policy_gives(tmp_path):
    lines = output("tf_data_map", tmp_path).splitlines()
    assert [re.sub(r"[\d,]+ images/s", "N images/s", line) for line in lines[:-1]] == [
        "epoch 1: N images/s (compiling)", *(f"epoch {epoch}: N images/s" for epoch in (2, 3, 4))]
    assert lines[-1] == ("image 7 of epoch 2, alone and in the pipeline: the same; "
                         "in epochs 2 and 3: different")


def test_a_model_with_the_layer_learns_and_is_loaded_with_its_policy(tmp_path):
    text = output("keras_fit", tmp_path)
    tested = re.search(r"test accuracy: ([\d.]+) \(the commonest class alone: ([\d.]+)\)", text)
    assert tested
    assert float(tested[1]) > 2 * float(tested[2])
    assert text.splitlines()[-1].startswith("loaded: flip | rotate(180) | ")
    assert text.splitlines()[-1].endswith("4,096 images seen")  # 8 epochs of 512, and none of evaluation


def test_an_own_step_learns_and_its_draws_can_be_read_and_changed(tmp_path):
    text = output("own_training_step", tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 10
    assert losses[-1] < 0.7 * losses[0]
    assert re.search(r"image 5, epoch 3, 1\.rotate: degrees -?[\d.]+", text)
    assert text.splitlines()[-2:] == ["replayed: the same image", "at 90 degrees: another image"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_the_readme_names_it(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
