"""The roofline: bytes by rule, a bandwidth that a copy has, and lines whose cliffs are found."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import bandwidth, charts_roofline, growth, ours, page_roofline, roofline, timing
from bloodcell import augment

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("side", "dtype", "moved"), [
    (96, "float32", 138_240),  # 9,216 pixels of 3 bytes in and 12 out
    (96, "bfloat16", 82_944),  # 3 in and 6 out
    (28, "float16", 7_056), (1, "uint8", 6), (512, "float32", 3_932_160)])
def test_an_image_goes_in_as_uint8_and_comes_out_once_in_its_dtype(side, dtype, moved):
    assert roofline.bytes_per_image(side, dtype) == moved


def test_every_primitive_takes_part_by_one_op_of_its_own():
    of = {op.primitive for op in augment.REGISTRY.values()}
    assert set(roofline.PRIMITIVES) == of
    assert len(of) == 12
    for primitive, op in roofline.PRIMITIVES.items():
        assert augment.REGISTRY[op].primitive == primitive
        assert augment.REGISTRY[op].statistic is None


def test_each_program_is_made_by_the_backend_that_its_contestant_names(monkeypatch):
    asked: list[tuple[str, str]] = []

    def function(text, by="xla"):
        asked.append((text, by))
        return lambda *given: given[0]

    for name in ("op_function", "policy_function"):
        monkeypatch.setattr(ours, name, function)
    wanted = [("mask: cutout", "native"), ("mask: cutout", "xla"), ("randaugment(2, 9)", "native")]
    roofline._compiled.cache_clear()
    for case, implementation in wanted:
        roofline._compiled(case, implementation)
    roofline._compiled.cache_clear()
    assert asked == [("cutout", "native"), ("cutout", "xla"), ("randaugment(2, 9)", "native")]


@pytest.mark.parametrize("fixed", [0.0, 0.3, 50.0])
@pytest.mark.parametrize("sizes", [(16, 64, 256, 1024, 4096), (1, 2, 3, 4, 5, 6, 7, 8), (28**2, 96**2, 512**2)])
def test_a_straight_line_is_one_and_its_parts_are_found(sizes, fixed):
    costs = [fixed * sizes[0] + 0.25 * size for size in sizes]
    line = growth.line(sizes, costs)
    assert line.deviation == pytest.approx(1.0, abs=0.005)
    assert not line.cliff
    assert line.each == pytest.approx(0.25, rel=0.01)
    assert line.fixed == pytest.approx(fixed * sizes[0], rel=0.01, abs=0.002 * sizes[0])


@pytest.mark.parametrize("where", [1, 2, 3, 4])
def test_a_cliff_is_flagged_where_it_begins_or_later(where):
    sizes = np.array([16, 64, 256, 1024, 4096])
    costs = 1e-3 * sizes
    costs[where:] *= 2.0
    line = growth.line(sizes.tolist(), costs.tolist())
    assert line.cliff
    assert line.deviation == pytest.approx(2.0, rel=0.01)
    assert line.worst >= sizes[where]


def test_a_single_slow_size_is_flagged_by_its_ratio_and_a_tenth_more_is_not():
    sizes = [28, 64, 96, 128, 224, 512]
    for ratio, flagged in ((1.1, False), (1.6, True), (4.0, True)):
        line = growth.line(sizes, [size * (ratio if size == 128 else 1.0) for size in sizes])
        assert (line.cliff, line.worst) == (flagged, 128)
        assert line.deviation == pytest.approx(ratio, rel=0.01)


def test_what_grows_faster_than_in_proportion_departs_and_a_constant_does_not():
    sizes = [1, 2, 4, 8]
    assert growth.line(sizes, [size**2 for size in sizes]).deviation == pytest.approx(8.0, rel=0.01)
    assert growth.line(sizes, [3.0] * 4).deviation == pytest.approx(1.0, abs=0.005)


def _measured(monkeypatch, looks):
    """Returns what `roofline` says of batches that cost so many seconds at each look, and what it asked for."""
    asked: list[tuple[int, float]] = []

    def race(suite, contestants, *, samples, seconds, tell):
        costs = looks[len(asked)]
        asked.append((samples, seconds))
        return [{"samples": samples, "images_per_second": {"q3": each.images / cost}}
                for each, cost in zip(contestants, costs, strict=True)]

    monkeypatch.setattr(roofline, "race", race)
    monkeypatch.setattr(roofline, "contestant",
                        lambda case, by, batch: timing.Contestant(case, by, batch, lambda step: None))
    grown = roofline._growth("warp: rotate", "xla", "batch", (16, 64, 256), samples=3, seconds=2.0, tell=print)
    return grown, asked


def test_a_cliff_is_measured_again_and_the_longer_look_counts(monkeypatch):
    straight, cliff, other = (1.6, 6.4, 25.6), (1.6, 19.2, 25.6), (1.6, 6.4, 51.2)
    grown, asked = _measured(monkeypatch, [straight])
    assert (asked, grown["cliff"], grown["samples"]) == ([(3, 2.0)], False, 3)
    grown, asked = _measured(monkeypatch, [cliff, straight])
    assert (asked, grown["cliff"], grown["samples"]) == ([(3, 2.0), (15, 10.0)], False, 15)
    assert grown["seconds"] == pytest.approx(straight)
    grown, asked = _measured(monkeypatch, [cliff, other])
    assert (len(asked), grown["cliff"], grown["worst"]) == (2, True, 256)


@pytest.mark.parametrize(("sizes", "costs"), [([1], [1.0]), ([1, 2], [1.0]), ([1, 1], [1.0, 1.0]), ([0, 1], [1.0, 1.0]),
                                              ([1, 2], [1.0, 0.0]), ([1, 2], [1.0, float("nan")])])
def test_a_line_needs_two_sizes_with_costs(sizes, costs):
    with pytest.raises(ValueError, match="expected two or more different sizes"):
        growth.line(sizes, costs)


def test_a_copy_moves_gigabytes_and_is_equal_to_its_original(monkeypatch):
    copied: list[int] = []
    copyto = np.copyto

    def counted(target, source):
        copied.append(source.nbytes)
        copyto(target, source)

    monkeypatch.setattr(np, "copyto", counted)
    size = 64 * 2**20
    rate, copies = bandwidth.on_cpu(size, threads=3, seconds=0.0)
    assert 1e9 < rate < 1e13
    assert copies == bandwidth.FEWEST
    assert sum(copied) == size * (copies + 1)  # the first one warms up
    monkeypatch.setattr(np, "copyto", lambda target, source: None)
    with pytest.raises(RuntimeError, match="equal to its original"):
        bandwidth.on_cpu(size, threads=1, seconds=0.0)


def test_the_last_level_of_all_cores_counts_once_for_those_that_share_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for core, level, size, shared in [(0, 1, "48K", "0"), (0, 3, "32768K", "0-1"), (1, 3, "32768K", "0-1"),
                                      (2, 3, "16M", "2-3"), (2, 2, "1024K", "2")]:
        folder = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(text + "\n")
    assert bandwidth.cache_bytes(tmp_path) == (32 + 16) * 2**20
    assert bandwidth.cache_bytes(tmp_path / "none") is None
    assert bandwidth.buffer_bytes(32 * 2**20) >= min(bandwidth.SMALLEST, 8 * 32 * 2**20)


def test_a_case_computes_what_the_op_gives_and_waits_once_for_all_its_batches(monkeypatch):
    waits = []
    monkeypatch.setattr(tf.test.experimental, "sync_devices", lambda: waits.append(1))
    results = []
    compiled = roofline._compiled("mask: cutout", "xla")
    monkeypatch.setattr(roofline, "_compiled", lambda *_: lambda *given: results.append(compiled(*given)))
    contestant = roofline.contestant("mask: cutout", "xla", batch=4, side=28)
    assert contestant.images == 4
    assert contestant.lengthen is not None
    contestant.lengthen(3)(2)
    assert (len(results), len(waits)) == (3, 1)
    images = tf.cast(roofline._images(4, 28), tf.float32)
    for number, result in enumerate(results):
        step = 2 * 3 + number
        expected = augment.REGISTRY["cutout"](images, tf.fill([4], 0.4), seed=tf.range(4, dtype=tf.int64) + 4 * step)
        np.testing.assert_array_equal(result, expected)


def test_memory_that_is_kept_costs_no_faults():
    """In a process of its own, as it holds for the rest of it."""
    program = """if True:
        import resource, sys
        import numpy as np
        from benchmarks import roofline
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                np.full(2**26, 1, np.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        given = faults()
        kept = roofline.keep_memory()
        np.full(2**26, 1, np.uint8)
        print(kept, given, faults())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    kept, given, left = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert int(left) < 0.1 * int(given)


def test_a_c_library_that_cannot_keep_memory_is_no_error(monkeypatch):
    monkeypatch.setattr(roofline.ctypes, "CDLL", lambda name: object())
    assert not roofline.keep_memory()


def _quick(monkeypatch):
    monkeypatch.setattr(roofline, "keep_memory", lambda: True)
    monkeypatch.setattr(roofline, "BATCH", 8)
    monkeypatch.setattr(roofline, "BATCH_OF_SIDES", 4)
    monkeypatch.setattr(roofline, "QUICK", "mask: cutout")
    monkeypatch.setattr(roofline, "QUICK_SIZES", {"batch": (8, 16), "side": (28, 32)})
    monkeypatch.setattr(bandwidth, "SMALLEST", 2**20)
    monkeypatch.setattr(bandwidth, "CACHES", 0)
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.02)
    monkeypatch.setattr(ours.backend, "choose", lambda _: ours.backend.Backend("xla", "not here"))
    return roofline.run({}, samples=1, seconds=1.0, only="cutout", tell=lambda line: None, quick=True)


def test_a_quick_run_gives_strict_json_a_chart_and_a_page(monkeypatch):
    found = _quick(monkeypatch)
    result = json.loads(json.dumps(found, allow_nan=False))
    row, = result["rows"]
    assert {"suite", "case", "implementation", "images_per_second", "compile_seconds", "samples", "bytes_per_image",
            "part_of_limit"} == set(row)
    assert (row["suite"], row["case"], row["implementation"]) == ("roofline", "mask: cutout", "xla")
    limit = result["bandwidth"]["bytes_per_second"] / 138_240
    for name, rate in row["images_per_second"].items():
        assert row["part_of_limit"][name] == pytest.approx(rate / limit, abs=1e-5)
    assert [(line["along"], line["sizes"], line["units"]) for line in result["growth"]] == [
        ("batch", [8, 16], [8, 16]), ("side", [28, 32], [4 * 28 * 28, 4 * 32 * 32])]
    for line in result["growth"]:
        assert len(line["seconds"]) == 2
        assert min(line["seconds"]) > 0
        assert line["deviation"] >= 1.0
        assert line["cliff"] == (line["deviation"] > 1.5)
    assert charts_roofline.limits(result).get_axes()
    assert len(charts_roofline.growth(result).get_axes()) == 2
    page = "\n".join(page_roofline.section(result, lambda head, rows: "\n".join(map(" | ".join, [head, *rows]))))
    assert "`mask: cutout` | xla" in page
    assert "ns a pixel" in page


def _line(along, deviation):
    return {"case": "a", "along": along, "deviation": deviation, "worst": 512, "cliff": deviation > 1.5}


def test_goals_of_the_roofline_are_judged_by_their_own_device():
    row = {"suite": "roofline", "case": "mask: cutout", "implementation": "xla", "part_of_limit": {"median": 0.6}}
    found = page_roofline.judge({"rows": [row], "bandwidth": {"device": "GPU"},
                                 "growth": [{**_line("batch", 1.49), "implementation": "xla"},
                                            {**_line("side", 1.51), "implementation": "xla"},
                                            {**_line("side", 1.42), "implementation": "native"}]})
    assert [verdict.word() for verdict in found] == [
        "not judged", "met", "not judged", "met", "NOT met", "not judged", "not judged", "met"]
    assert "1.42x at 512" in found[1].figures
    assert "1.51x at 512" in found[4].figures
    native = {**row, "case": "randaugment(2, 9)", "implementation": "native", "part_of_limit": {"median": 0.29}}
    on_cpu = page_roofline.judge({"rows": [row, native], "bandwidth": {"device": "CPU"}})
    assert [verdict.word() for verdict in on_cpu] == [*["not judged"] * 6, "NOT met", "not judged"]
    assert [verdict.word() for verdict in page_roofline.judge({})] == ["not judged"] * 8


def test_the_native_op_gets_the_same_draws_and_is_left_out_with_its_reason(monkeypatch):
    images, ids = tf.constant(roofline._images(4, 28)), tf.range(4, dtype=tf.int64)
    given: list[tuple[str, str]] = []
    parse = augment.parse

    def plain_parse(text, backend):  # the native op itself may not be built here: what it would be given goes to XLA
        given.append((text, backend))
        return parse(text)

    monkeypatch.setattr(augment, "parse", plain_parse)
    for op in ("cutout", "hue", "motion_blur"):
        native, plain = (ours.op_function(op, by)(images, ids, tf.constant(3, tf.int64)) for by in ("native", "xla"))
        np.testing.assert_array_equal(native, plain)
    assert given == [(op, by) for op in ("cutout", "hue", "motion_blur") for by in ("native", "xla")]
    said: list[str] = []
    for name, expected in (("xla", ["xla"]), ("native", ["xla", "native"])):
        found = ours.backend.Backend(name, "no compiler")
        monkeypatch.setattr(ours.backend, "choose", lambda _, found=found: found)
        assert ours.backends(said.append) == expected
    assert said == ["the native op is left out: no compiler"]
