"""The suites: complete, strict JSON, and never stopped by a peer that is not there."""

import contextlib
import dataclasses
import json
import platform
import time
import types
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks import (
    SIDE,
    charts,
    charts_look,
    memory,
    ops,
    ours,
    peers,
    policies,
    replicas,
    report,
    streaming,
    threads,
    timing,
    training,
)
from benchmarks import __main__ as command
from benchmarks import input as feeding
from benchmarks import step as stepping
from benchmarks.peers import feeds
from bloodcell import augment, config, models
from bloodcell.data import demo
from bloodcell.train import step

ROW = {"suite", "case", "implementation", "images_per_second", "compile_seconds", "samples"}


def _strict(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")
    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(autouse=True)
def _without_the_native_op(monkeypatch):
    """Whether it is built here must not matter to what a suite is expected to run."""
    monkeypatch.setattr(ours.backend, "choose", lambda wanted: ours.backend.Backend("xla", "left out by the test"))


@pytest.fixture
def few(monkeypatch):
    """Eight images, Pillow, and a peer that is not installed."""
    cells, _ = demo.render(8, seed=0, size=SIDE)
    monkeypatch.setattr(ours, "cells", lambda count: cells)
    pillow = next(peer for peer in peers.PEERS if peer.name == "pillow")
    absent = peers.Peer("absent", "Absent", "no_such_file", "no-such-distribution", "not at all")
    monkeypatch.setattr(peers, "PEERS", (absent, pillow))


def test_every_op_of_the_registry_takes_part_compiled_and_eager(few, monkeypatch):
    entered = []

    def race(suite, contestants, **_):
        entered.extend(contestants)
        return []

    monkeypatch.setattr(ops, "race", race)
    ops.run({}, samples=1, seconds=1.0, only="", tell=print)
    assert [(each.case, each.implementation) for each in entered] == [
        (name, how) for name in augment.REGISTRY for how in ("xla", "eager")]


def test_ops_writes_strict_json_and_goes_on_without_a_missing_peer(few, tmp_path, capsys):
    command.main(["ops", "--only=^invert$", "--samples=1", f"--json={tmp_path / 'out.json'}",
                  f"--results={tmp_path / 'results'}"])
    result = _strict(tmp_path / "out.json")
    assert {"command", "date", "hardware", "versions", "rows", "missing", "peers"} <= set(result)
    assert [row["implementation"] for row in result["rows"]] == ["xla", "eager", "pillow"]
    for row in result["rows"]:
        assert set(row) == ROW
        assert set(row["images_per_second"]) == {"median", "q1", "q3"}
        assert (row["suite"], row["case"], row["samples"]) == ("ops", "invert", 1)
        assert row["images_per_second"]["median"] > 0
    assert "not installed" in result["missing"]["absent"]
    printed = capsys.readouterr()
    assert "Absent: not installed" in printed.err
    assert "not judged" in printed.out
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"ops.json", "ops.png", "README.md",
                                                                          "peers.md"}


def test_policies_measures_the_memory_of_the_compiled_programs(few, tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "POLICIES", {"randaugment(2, 9)": "invert"})
    monkeypatch.setattr(threads, "NUMBERS", (1,))
    command.main(["policies", "--samples=1", "--seconds=0.1", f"--json={tmp_path / 'out.json'}"])
    result = _strict(tmp_path / "out.json")
    assert [(row["threads"], row["implementation"]) for row in result["threads"]][:1] == [(1, "xla")]
    assert [row["implementation"] for row in result["rows"]] == ["xla", "eager", "pillow"]
    assert result["memory"][0]["case"] == "randaugment(2, 9)"
    assert 0 < result["memory"][0]["float32_batches"] < 8


def test_input_feeds_a_training_from_every_side_and_measures_memory(few, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "RENDERED", 8)
    for name, value in (("IMAGES", 64), ("LARGE", 128), ("PIPELINE_STEPS", 2), ("POLICY", "")):
        monkeypatch.setattr(feeding, name, value)
    plain = next(feeder for feeder in feeds.FEEDERS if feeder.name == "plain")
    absent = feeds.Feeder("absent", "Absent", "no_such_file", "no-such-distribution", "not at all")
    monkeypatch.setattr(feeds, "FEEDERS", (absent, plain))

    # what takes long is left out: the step, and two of three processes that import TensorFlow
    def training_without_a_step(network, case, sets):
        sides = feeding._feeding("jpeg", case, sets)[:3]
        return [*sides, dataclasses.replace(sides[0], implementation="tensors")]

    monkeypatch.setattr(feeding, "_training", training_without_a_step)
    measure = streaming.measure
    monkeypatch.setattr(streaming, "measure", lambda pattern, cache: measure(pattern, cache) if cache == "memory" else
                        dataclasses.asdict(streaming._epoch(pattern, cache)))
    command.main(["input", "--samples=1", f"--json={tmp_path / 'out.json'}", f"--results={tmp_path / 'results'}"])
    result = _strict(tmp_path / "out.json")
    assert [(row["case"], row["implementation"]) for row in result["rows"]] == [
        *((case, side) for case in ("pipeline, jpeg", "pipeline, png")
          for side in ("memory", "device", "tfrecord", "plain")),
        ("whole job, jpeg", "tfrecord"), ("whole job, jpeg", "plain"),
        *(("whole job, arrays", side) for side in ("memory", "device", "plain")),
        *((case, side) for case in ("training efficientnet_lite0", "training mobilenet_v3_small")
          for side in ("memory", "device", "tfrecord", "tensors"))]
    assert len(result["demand"]) == 2 * 13
    assert list(result["missing"]) == ["absent"]
    assert result["peers"]["plain"]["version"] == tf.__version__
    assert [(each["images"], each["cache"]) for each in result["streams"]] == [
        (64, "memory"), (64, "none"), (128, "none")]
    assert all(100 < each["peak_mib"] < 100_000 for each in result["streams"])
    page = (tmp_path / "results" / "README.md").read_text()
    assert "| images | where | peak memory, MiB |" in page
    assert "| case | in memory | on the device | streamed | tensors, ready | tf.data, no augmentation |" in page
    assert "| `training efficientnet_lite0` |" in page
    assert "| case | from | `efficientnet_lite0` | `mobilenet_v3_small` |" in page
    assert (tmp_path / "results" / "input.png").read_bytes().startswith(b"\x89PNG")


def test_training_takes_the_same_images_from_every_side_and_traces_its_step_twice(few, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "RENDERED", 8)
    for name, value in (("BATCH", 4), ("TRAIN_STEPS", {"cnn": 2}), ("POLICY", "flip")):
        monkeypatch.setattr(feeding, name, value)
    monkeypatch.setattr(models, "build", lambda *_, num_classes, **__: keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]))
    steps: list[Any] = []
    taken: list[dict[str, tf.Tensor]] = []
    epochs: list[int] = []
    make = step.train_step

    def train_step(*args, **kwargs):
        steps.append(make(*args, **kwargs))

        def seen(batch, epoch):
            taken.append(batch)
            epochs.append(int(epoch))
            return steps[-1](batch, epoch)
        return seen

    monkeypatch.setattr(step, "train_step", train_step)
    sets = feeding._Sets(tmp_path, images=16, cells=0, present={}, steps=9, tell=print)
    contestants = {each.implementation: each for each in feeding._training("cnn", "training cnn", sets)}
    assert list(contestants) == ["memory", "device", "tfrecord", "tensors"]
    images = {}
    for turn in range(3):
        for name, contestant in contestants.items():
            taken.clear()
            epochs.clear()
            contestant.run(turn)
            assert epochs == [turn, turn], "who is timed in one turn draws the same"
            images[name] = [(tf.gather(batch["set"], batch["index"]) if "set" in batch else batch["image"]).numpy()
                            for batch in taken]
            assert contestant.images == sum(map(len, images[name])) == 8
    assert steps[0].experimental_get_tracing_count() == 2  # with images, and with their positions: all of it at first
    np.testing.assert_array_equal(images["device"], images["memory"])
    np.testing.assert_array_equal(images["tfrecord"], images["memory"])
    np.testing.assert_array_equal(images["tensors"], images["memory"])
    assert not np.array_equal(*images["memory"])
    assert all(isinstance(value, tf.Tensor) for value in taken[0].values())


def test_page_compares_trainings_with_tensors_and_draws_what_there_is(tmp_path):
    whole = _result("input", [("pipeline, png", "memory", 9000.0), ("pipeline, png", "device", 90000.0),
                              ("training, png", "memory", 99.0), ("training, png", "device", 50.0),
                              ("training, png", "tensors", 100.0)])
    whole["rows"][2]["part_of_baseline"] = {"median": 0.985, "q1": 0.98, "q3": 0.99}
    old = _result("input", [("pipeline, png", "memory", 9000.0), ("training, png", "memory", 99.0)])
    only = _result("input", [("training, png", "tensors", 100.0)])
    for name, result in (("whole", whole), ("old", old), ("only", only)):
        report.write_json(tmp_path / name / "input.json", result)
        command.main(["report", f"--results={tmp_path / name}"])
        assert (tmp_path / name / "input.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "whole" / "README.md").read_text()
    assert "| case | in memory | on the device | tensors, ready |" in page
    assert "| `pipeline, png` | 9,000 | 90,000 |  |" in page
    assert "| `training, png` | 99 (98.5%) | 50 | 100 |" in page
    old_page = (tmp_path / "old" / "README.md").read_text()
    assert "| `training, png` | 99 |" in old_page
    assert "| training from memory at 98% of the rate on tensors, or more | not judged |" in old_page


@pytest.mark.parametrize(("lines", "name"), [
    (["cpu family\t: 25", "model\t\t: 17", "model name\t: AMD EPYC", "flags\t\t: fma avx2 avx512f"],
     "AMD EPYC (family 25, model 17, AVX-512)"),
    (["cpu family\t: 25", "model\t\t: 1", "model name\t: AMD EPYC", "flags\t\t: fma avx2"],
     "AMD EPYC (family 25, model 1, AVX2)"),
    (["BogoMIPS\t: 50.00", "Features\t: fp asimd"], f"{platform.processor() or platform.machine()} (NEON)"),
    ([], platform.processor() or platform.machine()),
])
def test_a_processor_is_named_with_what_its_name_leaves_open(lines, name):
    assert command._processor("\n".join(lines) + "\n\nprocessor\t: 1\n") == name


def test_variations_of_rendered_cells_are_all_different():
    cells = streaming.Cells(600, demo.render(8, seed=0, size=SIDE)[0])
    assert cells[:0:-1][0].shape == (SIDE, SIDE, 3)
    assert len({image.tobytes() for image in cells[0:600]}) == 600


def test_v2s_is_the_policy_of_the_recipe():
    recipe = config.parse(["main.py", "--flagfile=flags/v2s.cfg"])
    assert recipe is not None
    assert policies.POLICIES["v2s"] == recipe.augment


def test_extra_memory_leaves_out_parameters_and_output():
    assert memory.extra_bytes("allocation 0: size 4096, output shape is |f32[4]|, maybe-live-out:\n"
                              " value: <1 a @0> (size=4096,offset=0): f32[4]\n"
                              "allocation 1: size 512, parameter 0, shape |u8[4]| at ShapeIndex {}:\n"
                              "allocation 2: size 30, constant:\n"
                              "allocation 40: size 1000, preallocated-temp:\n") == 1030


@pytest.mark.parametrize("argument", ["--samples=0", "--seconds=0", "--only=("])
def test_a_mistyped_argument_says_what_was_expected(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["ops", argument])
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err


def _result(suite, rows, **more):
    return {"command": f"python -m benchmarks {suite}", "date": "2026-01-01", "batch": 256, "side": 96,
            "hardware": {"cpu": "A CPU", "cores": 2, "gpus": []}, "versions": {"python": "3.11"},
            "missing": {"dali": "gone"},
            "peers": {"keras": {"title": "Keras 3", "how": "as it says", "policies": {"v2s": "RandAugment"}},
                      "dali": {"title": "DALI (CPU)", "how": "in a pipeline", "policies": {}}},
            "rows": [{"suite": suite, "case": case, "implementation": name, "compile_seconds": 1.0, "samples": 3,
                      "images_per_second": {"median": rate, "q1": rate, "q3": rate}} for case, name, rate in rows],
            **more}


def test_functions_made_in_one_place_are_no_retracing(tmp_path, caplog):
    with pytest.raises(SystemExit, match=r"received .*none\.json"):
        command.main(["compare", *[str(tmp_path / "none.json")] * 2])

    def made(number):
        return tf.function(lambda: tf.constant(number))

    for number in range(8):
        made(number)()
    tf.get_logger().warning("another word")
    assert "another word" in caplog.text
    assert "retracing" not in caplog.text


def test_page_and_charts_come_from_the_json_alone_with_losses_beside_wins(tmp_path):
    report.write_json(tmp_path / "ops.json", _result("ops", [
        ("flip", "xla", 1000.0), ("flip", "eager", 100.0), ("flip", "keras", 500.0), ("gray", "xla", 1000.0),
        ("gray", "keras", 4000.0), ("noise", "xla", 10.0)]))
    report.write_json(tmp_path / "policies.json", _result(
        "policies", [("v2s", "xla", 2500.0), ("v2s", "keras", 400.0)],
        memory=[{"case": "v2s", "bytes": 10, "float32_batches": 2.5}]))
    report.write_json(tmp_path / "input.json", {
        **_result("input", [("pipeline, png", "memory", 9000.0)]), "missing": {"keras": "not where input ran"}})
    command.main(["report", f"--results={tmp_path}"])
    for suite in ("ops", "policies", "input"):
        assert (tmp_path / f"{suite}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "README.md").read_text()
    assert "| `flip` | 1,000 | 100 | 500 | 2.00x |" in page
    assert "| `gray` | 1,000 |  | 4,000 | **0.25x** |" in page
    assert "Keras 3, 2 ops in common, faster than ours in: `gray` (0.25x)" in page
    assert "| no op slower than the same op in Keras 3 | **NOT met** |" in page
    assert "| v2s | 1.0 | 2.50 |" in page
    assert "A CPU, 2 cores, no GPU; batch 256 at 96x96; 2026-01-01" in page
    assert "Left out: DALI (CPU) (gone)." in page
    assert "Left out: Keras 3 (not where input ran)." in page  # its peers are found by itself


@pytest.fixture
def small(monkeypatch):
    """Trainings of a network without convolutions, eight images a step; returns the arguments of each."""
    made: list[dict[str, Any]] = []
    build = training.build

    def watched(network, **given):
        made.append({"network": network, **given})
        return build(network, **{**given, "precision": "float32", "jit": "off"})

    monkeypatch.setattr(training, "build", watched)
    monkeypatch.setattr(models, "build", lambda *_, num_classes, **__: keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]))
    monkeypatch.setattr(stepping, "BATCH", 8)
    monkeypatch.setattr(stepping, "STEPS", dict.fromkeys(stepping.STEPS, 1))
    yield made
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", ["CPU", "A processor (family 6, model 167, AVX-512) " * 2])
def test_what_stands_over_a_chart_fits_it(name):
    figure = charts.headed(charts_look.sheet(3.0), "Title", {
        "hardware": {"cpu": name, "cores": 2, "gpus": []}, "batch": 256, "side": 96, "date": "2026-01-01"})
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        assert text.get_window_extent(renderer).x1 <= figure.bbox.x1
    assert (figure.texts[1].get_fontsize() == 9) == (name == "CPU")


def test_step_trains_every_network_with_and_without_augmentation(few, small, tmp_path, monkeypatch):
    asked: list[tuple[int, Any]] = []

    @contextlib.contextmanager
    def start(count, programs):  # the processes themselves are test_scaling's
        asked.append((count, programs[0]))
        yield types.SimpleNamespace(contestant=lambda case, name, program, number: timing.Contestant(
            case, name, program.batch, lambda _: time.sleep(0.01)))

    monkeypatch.setattr(replicas, "start", start)
    monkeypatch.setattr(training, "V2S", "flip")
    monkeypatch.setattr(stepping, "POLICIES", {"none": {}, "v2s policy": {"policy": "flip"},
                                               "mixup": {"mix": "mixup(0.2)"}})
    command.main(["step", "--samples=1", f"--json={tmp_path / 'out.json'}", f"--results={tmp_path / 'results'}"])
    result = _strict(tmp_path / "out.json")
    rows = [(row["case"], row["implementation"]) for row in result["rows"]]
    assert rows == [*((network, name) for network in stepping.STEPS for name in stepping.POLICIES),
                    *(("mobilenet_v3_small, v2s policy", name) for name in stepping.SETTINGS),
                    ("mobilenet_v3_small, v2s policy, replicas", "1 replica"),
                    ("mobilenet_v3_small, v2s policy, replicas", "2 replicas")]
    assert [(count, program.batch) for count, program in asked] == [(1, 8), (2, 8)]  # the global batch
    assert [row["implementation"] for row in result["rows"] if "part_of_baseline" not in row] == [
        *["none"] * 3, "float32, jit=augment", "1 replica"]
    assert [made.get("mix", "") for made in small[:3]] == ["", "", "mixup(0.2)"]
    assert {(made["precision"], made["jit"]) for made in small if "jit" in made} == {
        ("float32", "augment"), ("float32", "off"), ("float32", "step"), ("mixed_bfloat16", "augment")}
    page = (tmp_path / "results" / "README.md").read_text()
    assert "| case | what the step does | images/s | of the first |" in page
    assert (tmp_path / "results" / "step.png").read_bytes().startswith(b"\x89PNG")
