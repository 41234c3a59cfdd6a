"""Programs for machines without TensorFlow: complete, small, made by rule, and equal where JAX runs them.

The runs need JAX: set BLOODCELL_JAX_PYTHON to a Python that has it, or install it here.
"""

import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import export, ours, run_stablehlo, training
from bloodcell import augment
from bloodcell.errors import InputError
from bloodcell.train import losses, optimizers, step, strategy

SMALL = export.Sizes(ops=("rotate", "invert"), policies={"randaugment(2, 9)": "flip | oneof(gray, rotate(30))"},
                     batch=16, large=32, side=32, precisions=("float32",), step_batch=4, step_policy="flip")


def _tiny(network, *, policy, precision, jit, classes):
    """bloodcell's own step of a network with a convolution, batch normalisation, dropout and a dense layer."""
    del network
    runtime = strategy.resolve(strategy="none", replicas=0, precision=precision, jit=jit, seed=0)
    image = keras.Input((96, 96, 3))
    x = keras.layers.Conv2D(4, 5, strides=8, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.Dropout(0.2, seed=1)(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    model = keras.Model(image, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)))
    optimizer = optimizers.build(optimizers.parse("adamw"), learning_rate=1e-3, variables=model.trainable_variables,
                                 precision=precision)
    inputs = step.inputs(augment.parse(policy), runtime, 0, num_classes=classes)
    made = step.train_step(model, optimizer, inputs=inputs, loss=losses.parse("cross_entropy"),
                           class_weights=np.ones(classes, np.float32), runtime=runtime)
    return training.Training(runtime, model, lambda batches, epoch: None, made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `export` writes of a few small programs."""
    at = tmp_path_factory.mktemp("stablehlo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build", _tiny)
        export.write(at, sizes=SMALL)
    return at


def _strict(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")
    return json.loads(path.read_text(), parse_constant=refuse)


def _text(folder, entry):
    return gzip.decompress((folder / entry["program"]).read_bytes()).decode()


# ---------------------------------------------------------------------------------------------------------------------
# What is written
# ---------------------------------------------------------------------------------------------------------------------


def test_the_ops_are_one_of_each_primitive():
    assert sorted(augment.REGISTRY[name].primitive for name in export.OPS) == sorted(
        {op.primitive for op in augment.REGISTRY.values()})


def test_the_folder_is_all_that_travels_and_the_manifest_says_all_about_each_program(folder):
    manifest = _strict(folder / "manifest.json")
    named = {"manifest.json", "run_stablehlo.py"}
    for entry in manifest["programs"]:
        named |= {entry["program"], entry["expected"]}
    assert {path.name for path in folder.iterdir()} == named
    assert (folder / "run_stablehlo.py").read_bytes() == pathlib.Path(run_stablehlo.__file__).read_bytes()
    assert manifest["tensorflow"] == tf.__version__
    assert [(each["name"], each["images"], each["layout"]) for each in manifest["programs"]] == [
        ("randaugment(2, 9)", 32, "wide"), ("rotate", 32, "wide"), ("invert", 32, "wide"),
        ("step, no augmentation, float32", 4, "any"), ("step, v2s policy, float32", 4, "chunks"),
        ("step, v2s policy, float32", 4, "wide"),
        ("randaugment(2, 9)", 16, "chunks"), ("randaugment(2, 9)", 16, "wide"),
        ("rotate", 16, "chunks"), ("rotate", 16, "wide"), ("invert", 16, "chunks"), ("invert", 16, "wide")]
    assert {entry["bytes_per_image"] for entry in manifest["programs"] if entry["kind"] != "step"} == {5 * 32 * 32 * 3}


def test_programs_are_stablehlo_alone_and_take_what_the_rules_make(folder):
    for entry in _strict(folder / "manifest.json")["programs"]:
        text = _text(folder, entry)
        assert text.startswith("module {\n")
        assert "func.func @main(" in text
        assert not re.search(r"(?<!stable)\b[mc]hlo\.| loc\(|custom_call|python|/site-packages", text)
        given = [run_stablehlo.made(rule) for rule in entry["inputs"]]
        assert export.parameters(text) == [(each.shape, each.dtype.name) for each in given]


def test_a_wide_program_takes_all_images_in_one_launch_and_one_in_chunks_some_at_a_time(folder):
    for entry in _strict(folder / "manifest.json")["programs"]:
        if entry["kind"] != "step":
            at_a_time = {int(count) for count in re.findall(r"tensor<(\d+)x32x32xi32>", _text(folder, entry))}
            assert max(at_a_time) == entry["images"]
            assert (len(at_a_time) == 1) == (entry["layout"] == "wide"), (entry["program"], at_a_time)


def test_what_tensorflow_answered_is_what_the_ops_do_without_a_compiler(folder):
    by_name = {entry["name"]: entry for entry in _strict(folder / "manifest.json")["programs"] if entry["images"] == 32}
    functions = {name: ours.op_function(name) for name in SMALL.ops}
    functions |= {name: ours.policy_function(text) for name, text in SMALL.policies.items()}
    for name, function in functions.items():
        pictures, ids, epoch = (run_stablehlo.made(rule) for rule in by_name[name]["inputs"])
        eager = function(tf.constant(pictures), tf.constant(ids), tf.constant(epoch)).numpy()
        with np.load(folder / by_name[name]["expected"], allow_pickle=False) as file:
            agreement = run_stablehlo.check_images(eager, file)
            assert len(file["checksums"]) == 32
        assert agreement.passes, (name, agreement)
        changed = [np.abs(one.astype(np.float32) - other).max() for one, other in zip(pictures, eager, strict=True)]
        assert np.median(changed) > 8, name  # of grey levels: it did something


def test_a_step_updates_what_it_trains_and_starts_from_the_rules(folder):
    entry = next(each for each in _strict(folder / "manifest.json")["programs"]
                 if each["name"] == "step, no augmentation, float32")
    with np.load(folder / entry["expected"], allow_pickle=False) as file:
        expected = dict(file)
    loss, images, right, gradient, skipped = expected["result"]
    assert (images, skipped) == (4, 0)
    assert 0 <= right <= 4
    assert 0.5 * np.log(8) < loss / 4 < 2 * np.log(8)
    names = [str(name) for name in expected["names"]]
    trained = ("conv2d/kernel", "batch_normalization/gamma", "batch_normalization/beta", "dense/kernel", "dense/bias")
    assert [sum(re.sub(r"_\d+/", "/", name) == each for name in names) for each in trained] == [1] * 5
    assert sum(name.endswith("_momentum") for name in names) == 5
    # after one step the running means are a tenth of the gradients, so their norm is a tenth of the gradients'
    moments = [norm for name, norm in zip(names, expected["norms"], strict=True) if name.endswith("_momentum")]
    assert np.linalg.norm(moments) == pytest.approx(0.1 * gradient, rel=1e-4)
    kernel = next(rule for rule in entry["inputs"] if rule["shape"] == [5, 5, 3, 4])
    before = np.linalg.norm(run_stablehlo.made(kernel))
    after = next(norm for name, norm in zip(names, expected["norms"], strict=True) if "conv2d" in name and "/k" in name)
    assert 0 < abs(after - before) < 1e-3 * np.sqrt(300) * 1.01  # the rate, for each of 300 weights


def test_what_a_device_cannot_know_or_what_hides_data_is_refused(monkeypatch):
    rules = [{"rule": "count", "shape": [4], "dtype": "int64", "modulo": 0}]
    doubled = tf.function(lambda x: 2 * x, jit_compile=True)
    text, updated = export.stablehlo(doubled, [tf.range(4, dtype=tf.int64)], rules)
    assert (export.results(text), updated) == ([((4,), "int64")], [])
    with pytest.raises(RuntimeError, match="expected a program of 1 inputs, received 1; the first that differ"):
        export.stablehlo(doubled, [tf.range(5, dtype=tf.int64)], rules)
    monkeypatch.setattr(export, "MOST_CONSTANT", 1000)
    hidden = np.random.default_rng(0).integers(0, 2**40, 500)
    with pytest.raises(RuntimeError, match="constants of at most 1000 bytes, received one of 4000"):
        export.stablehlo(tf.function(lambda x: x[0] + hidden, jit_compile=True), [tf.range(4, dtype=tf.int64)], rules)


def test_truth_values_are_written_as_bytes_in_whatever_way_they_were_packed():
    truths = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    for data in (np.packbits(truths, bitorder="little"), truths.astype(np.uint8)):
        text = f'    %c_1 = stablehlo.constant dense<"0x{data.tobytes().hex().upper()}"> : tensor<3x4xi1>'
        found = export._TRUTHS.sub(export._bytes_of_truths, text)
        assert f'dense<"0x{truths.astype(np.uint8).tobytes().hex().upper()}"> : tensor<3x4xui8>' in found
        assert "%c_1 = stablehlo.convert %c_1_ui8 : (tensor<3x4xui8>) -> tensor<3x4xi1>" in found


def test_export_says_what_it_can_write_and_stops_at_its_limit(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"try one of .*rotate.*v2s.*step, no augmentation"):
        export.write(tmp_path, only="^nothing$")
    monkeypatch.setattr(export, "MOST", 1000)
    with pytest.raises(InputError, match="expected at most 0 MiB"):
        export.write(tmp_path, sizes=dataclasses.replace(SMALL, ops=("invert",)), only="^invert$")


# ---------------------------------------------------------------------------------------------------------------------
# The runner without JAX
# ---------------------------------------------------------------------------------------------------------------------


def _pcg(number):
    """One number in Python's own, unbounded integers."""
    state = (number * 747796405 + 2891336453) % 2**32
    word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737 % 2**32
    return (word >> 22) ^ word


def test_rules_make_the_same_numbers_as_unbounded_integers():
    numbers = [0, 1, 2, 1000, 2**31, 2**32 - 1]
    found = run_stablehlo.scrambled(np.array(numbers, np.uint32), 7)
    assert found.tolist() == [_pcg((_pcg(7) + number) % 2**32) for number in numbers]
    drawn = run_stablehlo.uniform([3, 1000], stream=5, limit=0.25)
    assert (drawn.dtype.name, drawn.shape) == ("float32", (3, 1000))
    assert drawn[1, 2] == np.float32(((_pcg((_pcg(5) + 1002) % 2**32) >> 8) - 2**23) * np.float32(0.25 / 2**23))
    assert np.abs(drawn).max() <= 0.25
    assert drawn.mean() == pytest.approx(0, abs=0.25 / np.sqrt(3) * 4 / np.sqrt(3000))
    assert drawn.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.03)


def test_pictures_are_cells_that_depend_on_their_index_alone():
    pictures = run_stablehlo.cells(6, 96)
    assert (pictures.dtype.name, pictures.shape) == ("uint8", (6, 96, 96, 3))
    np.testing.assert_array_equal(pictures[:2], run_stablehlo.cells(2, 96))
    assert all((one != other).any() for one, other in itertools.combinations(pictures, 2))
    assert (pictures[:, :8, :8].mean(axis=(1, 2, 3)) - pictures[:, 40:56, 40:56].mean(axis=(1, 2, 3)) > 40).all()


def test_rules_cover_counts_constants_and_values():
    rule = {"shape": [5], "dtype": "int64"}
    assert run_stablehlo.made({"rule": "count", "modulo": 2, **rule}).tolist() == [0, 1, 0, 1, 0]
    assert run_stablehlo.made({"rule": "fill", "value": 7, **rule}).tolist() == [7] * 5
    assert run_stablehlo.made({"rule": "values", "value": [5, 4, 3, 2, 2**40], **rule}).tolist() == [5, 4, 3, 2, 2**40]
    with pytest.raises(ValueError, match="received 'magic'"):
        run_stablehlo.made({"rule": "magic", **rule})


def test_a_grey_level_more_passes_and_two_or_no_number_do_not():
    levels = run_stablehlo.cells(4, 32)
    index = np.array([0, 3])
    expected = {"checksums": run_stablehlo.checksums(levels), "index": index, "pixels": levels[index]}
    same = levels.astype(np.float32)
    assert run_stablehlo.check_images(same, expected).words == "all equal"
    assert run_stablehlo.check_images(same + 1, expected).passes
    assert run_stablehlo.check_images(same + 1, expected).figures == {
        "images_equal": 0.0, "pixels_equal": 0.0, "pixels_within_one": 1.0}
    assert not run_stablehlo.check_images(same - 2, expected).passes
    broken = same.copy()
    broken[1, 0, 0, 0] = np.nan  # in an image whose pixels were not written down
    assert not run_stablehlo.check_images(broken, expected).passes


def test_a_step_passes_by_loss_gradient_moments_and_weights():
    random = np.random.default_rng(0)
    outputs: list[np.ndarray] = [np.array([9.0, 4, 1, 2.0, 0]), random.normal(size=(3, 3)), random.normal(size=5)]
    expected = {"result": outputs[0], "norms": run_stablehlo.norms(outputs[1:]),
                "names": np.array(["conv/kernel", "adamw/conv_kernel_momentum"])}
    tolerance = {"loss": 1e-3, "gradient": 1e-2, "moments": 1e-2, "weights": 1e-3}
    assert run_stablehlo.check_step(outputs, expected, tolerance).passes
    for wrong in (np.array([9.1, 4, 1, 2.0, 0]), np.array([9.0, 4, 1, 2.1, 0]), np.array([np.nan, 4, 1, 2.0, 0])):
        assert not run_stablehlo.check_step([wrong, *outputs[1:]], expected, tolerance).passes
    assert not run_stablehlo.check_step([outputs[0], outputs[1] * 1.01, outputs[2]], expected, tolerance).passes
    found = run_stablehlo.check_step([outputs[0], outputs[1], outputs[2] * 1.1], expected, tolerance)
    assert not found.passes
    assert found.figures["moments"] == pytest.approx(0.1)


def test_contestants_take_turns_and_are_compared_turn_by_turn():
    turns = []

    def takes(name, seconds):
        def run(times):
            turns.append((name, times))
            return seconds * times
        return run

    rows = run_stablehlo.race([run_stablehlo.Contestant("plain", "xla", 10, takes("plain", 0.01)),
                               run_stablehlo.Contestant("more", "xla", 10, takes("more", 0.0125), {"kind": "step"})],
                              samples=4, seconds=0.1, baseline="plain")
    assert [name for name, times in turns if times in (8, 10)][-8:] == ["plain", "more", "more", "plain"] * 2
    assert rows[0]["images_per_second"] == {"median": 1000.0, "q1": 1000.0, "q3": 1000.0}
    assert "part_of_baseline" not in rows[0]
    assert rows[1]["part_of_baseline"]["median"] == 0.8
    assert rows[1]["kind"] == "step"
    slow = run_stablehlo.race([run_stablehlo.Contestant("slow", "xla", 1, takes("slow", 20.0))], samples=9, seconds=0.3)
    assert (slow[0]["samples"], slow[0]["images_per_second"]["median"]) == (1, 0.05)


def _row(case, rate, implementation="xla", images=4096, **more):
    return {"suite": "stablehlo", "case": case, "implementation": implementation, "images": images, "samples": 9,
            "images_per_second": {"median": rate, "q1": rate, "q3": rate}, **more}


def test_goals_are_reached_missed_or_not_measured():
    rows = [_row("v2s", 2e6), _row("v2s", 1e5, "torchvision"), _row("randaugment(2, 9)", 2.9e6),
            _row("randaugment(2, 9)", 9e6, images=256), _row("rotate", 1e7, kind="op", of_bandwidth=0.6),
            _row("step, no augmentation, float32", 1e3, images=64),
            _row("step, v2s policy, float32", 9.9e2, images=64,
                 part_of_baseline={"median": 0.99, "q1": 0.98, "q3": 0.995})]
    of = {goal.goal: (goal.word(), goal.figures) for goal in run_stablehlo.goals(rows, "gpu")}
    assert of["v2s policy at least 10x torchvision v2's"] == ("reached", "2,000,000 against 100,000 images/s: 20.0x")
    assert of["v2s policy at least 10x Kornia's"] == ("not measured", "no row of v2s in kornia")
    assert of["RandAugment(2) at least 3 million images/s"] == ("MISSED", "2,900,000 images/s")  # by the larger batch
    assert of["every primitive at least 50% of the bandwidth limit"] == ("reached", "rotate 60%")
    assert of["augmentation at most 2% of the V2-S step, float32"][0] == "reached"
    assert of["augmentation at most 2% of the V2-S step, mixed_bfloat16"][0] == "not measured"
    on_cpu = run_stablehlo.goals(rows, "cpu")
    assert {goal.word() for goal in on_cpu} == {"not measured"}
    assert on_cpu[0].figures == "a goal for GPUs; on this CPU: 2,000,000 against 100,000 images/s: 20.0x"
    assert {goal.word() for goal in run_stablehlo.goals([], "gpu")} == {"not measured"}


def test_a_device_gets_the_programs_that_suit_it(folder):
    programs = _strict(folder / "manifest.json")["programs"]

    def names(**given):
        return [[f"{each['name']}/{each['images']}/{each['layout']}" for each in group]
                for group in run_stablehlo.chosen(programs, **given)]

    on_gpu = names(kind="gpu")
    assert on_gpu[:3] == [["randaugment(2, 9)/32/wide"], ["rotate/32/wide", "invert/32/wide"],
                          ["step, no augmentation, float32/4/any", "step, v2s policy, float32/4/wide"]]
    assert names(kind="cpu")[-1] == ["step, no augmentation, float32/4/any", "step, v2s policy, float32/4/chunks"]
    assert names(kind="cpu", only="^invert") == [["invert/16/chunks"]]
    assert names(kind="cpu", only="@32$", layout="wide") == on_gpu[:2]


def test_a_row_that_failed_or_is_wrong_says_so():
    assert "FAILED: out of memory" in run_stablehlo.line({"case": "v2s", "images": 4096, "implementation": "xla",
                                                          "failed": "out of memory"})
    row = _row("v2s", 1234.5, compile_seconds=2.0, of_bandwidth=0.25,
               equals={"passes": False, "words": "3.0% of images equal", "figures": {}})
    assert run_stablehlo.line(row).endswith("3.0% of images equal  WRONG")
    assert "1,234.5" in run_stablehlo.line(row)


def test_the_runner_refuses_what_it_cannot_use(tmp_path, capsys):
    for given, expected in ((["--only=("], "expected a regular expression"),
                            (["--samples=0"], "expected more than 0, received 0")):
        with pytest.raises(SystemExit) as stopped:
            run_stablehlo.main(given)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err
    for held, expected in ((None, "received No such file"), (b"", "received another file or a part of one"),
                           (b'{"programs": [{"na', "received another file"), (b"\xff\xfe", "received another file"),
                           (b"[1]", "received another file"), (b'{"programs": []}', "received one without programs")):
        if held is not None:
            (tmp_path / "manifest.json").write_bytes(held)
        with pytest.raises(SystemExit, match=rf"^error: .*manifest\.json: .*{expected}.*; try python -m"):
            run_stablehlo.main([str(tmp_path)])


# ---------------------------------------------------------------------------------------------------------------------
# The runner with JAX
# ---------------------------------------------------------------------------------------------------------------------


def test_jax_gives_what_tensorflow_gave(folder, tmp_path):
    python = os.environ.get("BLOODCELL_JAX_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import jax"], check=False, capture_output=True).returncode:
        pytest.skip(f"{python} has no JAX; set BLOODCELL_JAX_PYTHON to a Python that has")
    travelled = shutil.copytree(folder, tmp_path / "travelled")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "run_stablehlo.py", "--samples=2", "--seconds=0.01", "--no-peers", f"--json={tmp_path / 'out.json'}"],
        check=False, capture_output=True, text=True, cwd=travelled, env={**environment, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    result = _strict(tmp_path / "out.json")
    assert [(row["case"], row["images"]) for row in result["rows"]] == [
        ("randaugment(2, 9)", 16), ("rotate", 16), ("invert", 16), ("step, no augmentation, float32", 4),
        ("step, v2s policy, float32", 4)]
    for row in result["rows"]:
        assert row["equals"]["passes"], row
        assert row["images_per_second"]["median"] > 0
    steps = result["rows"][3:]
    assert all(max(row["equals"]["figures"].values()) < 1e-3 for row in steps)  # the same machine, another compiler
    assert "part_of_baseline" in steps[1]
    assert {goal["verdict"] for goal in result["goals"]} == {"not measured"}  # they are a GPU's
