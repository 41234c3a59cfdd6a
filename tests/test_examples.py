"""Every example runs from the checkout by itself, and prints what it is there to show."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# TensorFlow is imported once, and nothing yet computed with it; then each example runs in a fork of that process.
RUN = '''
import os, pathlib, runpy, sys
import tensorflow, bloodcell.augment, bloodcell.data.demo
for path in sys.argv[1:]:
    print(f"==> {pathlib.Path(path).stem}", flush=True)
    if not (child := os.fork()):
        runpy.run_path(path, run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
    print(f"left: {os.listdir()}")
'''


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, str]:
    """What each example prints, by its name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, EXAMPLES)], cwd=tmp_path_factory.mktemp("examples"),
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    shown = {}
    for part in done.stdout.split("==> ")[1:]:
        name, text = part.split("\n", 1)
        shown[name], left = text.rsplit("left: ", 1)
        assert left == "[]\n", f"{name} leaves something behind: {left}"
    return shown


def test_a_map_over_batches_gives_what_the_policy_gives(outputs):
    lines = outputs["tf_data_map"].splitlines()
    assert [re.sub(r"[\d,]+ images/s", "N images/s", line) for line in lines[:-1]] == [
        "epoch 1: N images/s (compiling)", *(f"epoch {epoch}: N images/s" for epoch in (2, 3, 4))]
    assert lines[-1] == ("image 7 of epoch 2, alone and in the pipeline: the same; "
                         "in epochs 2 and 3: different")


def test_a_model_with_the_layer_learns_and_is_loaded_with_its_policy(outputs):
    text = outputs["keras_fit"]
    tested = re.search(r"test accuracy: ([\d.]+) \(the commonest class alone: ([\d.]+)\)", text)
    assert tested
    assert float(tested[1]) > 2 * float(tested[2])
    assert text.splitlines()[-1].startswith("loaded: flip | rotate(180) | ")
    assert text.splitlines()[-1].endswith("4,096 images seen")  # 8 epochs of 512, and none of evaluation


def test_an_own_step_learns_and_its_draws_can_be_read_and_changed(outputs):
    text = outputs["own_training_step"]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 10
    assert losses[-1] < 0.7 * losses[0]
    assert re.search(r"image 5, epoch 3, 1\.rotate: degrees -?[\d.]+", text)
    assert text.splitlines()[-2:] == ["replayed: the same image", "at 90 degrees: another image"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_the_readme_names_it(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
