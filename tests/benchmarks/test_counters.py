"""Instructions and cache misses that are counted are those of the native op's calls."""

import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import counters, run_cuda_op


@pytest.mark.native  # builds the op's library, and valgrind is slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_counts_are_of_the_calls_and_plausible():
    tables = [counters.table(["hue"], batch) for batch in (4, 16, 16)]
    for lines in tables:
        assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    few, many, again = (_cells(lines[2]) for lines in tables)
    name, micros, instructions, _, accesses, misses, must, mispredicted = range(8)
    assert many[name] == "hue"
    assert many[must] == 96 * 96 * 3 * (1 + 4) / 64
    # With eight pixels to an instruction, a pixel's own work and its way in and out take a few dozen at most.
    assert 9216 * 4 < many[instructions] < 9216 * 30
    assert many[accesses] < many[instructions]
    assert many[must] < many[misses] < many[accesses] / 2  # 2.2 MB of images and results are in no first-level cache
    assert many[micros] > 1
    # Of the calls alone: an image counts the same in small calls and large ones, and in one process and the next.
    assert few[instructions] == pytest.approx(many[instructions], rel=0.01)
    assert (again[instructions], again[accesses]) == (many[instructions], many[accesses])
    # Where memory lies, and what was predicted before, is another process's own.
    assert again[misses] == pytest.approx(many[misses], rel=0.02)
    assert again[mispredicted] == pytest.approx(many[mispredicted], abs=5)


def _cells(line):
    name, *numbers = (cell.strip(" `").replace(",", "") for cell in line.strip("|").split("|"))
    return [name, *map(float, numbers)]


def test_a_missing_valgrind_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        counters.main(["hue"])
    assert ended.value.code == "error: valgrind is not installed"
    with pytest.raises(SystemExit):
        counters.main(["sharpen"])
    assert "unknown: sharpen" in capsys.readouterr().err


def test_its_policies_are_those_of_the_gpus_runner_and_the_counted_process_needs_no_tensorflow():
    assert set(counters.POLICIES) <= set(run_cuda_op.POLICIES)
    done = subprocess.run([sys.executable, "-X", "importtime", "benchmarks/counters.py", "--help"], capture_output=True,
                          text=True, check=True)
    assert not re.search(r"\btensorflow\b", done.stderr)
