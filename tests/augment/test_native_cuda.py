"""The native op's CUDA kernel, without a GPU: NVRTC compiles it, and its source built as host C++ computes the same.

There a block's threads are real threads and its barriers real barriers, so that a sanitizer sees what a block would
race for.
"""

import concurrent.futures
import ctypes
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import run_cuda_op
from bloodcell import augment
from bloodcell.augment.native import build, library, program

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import fuzz_device
import fuzz_native
from native_plain import Library, Program

pytestmark = pytest.mark.native
POLICIES = {name: run_cuda_op.POLICIES[name] for name in ("randaugment", "augmix", "v2s")}
V2S = POLICIES["v2s"]
SIZES = ((1, 1), (3, 5), (17, 33), (96, 96))
OPS = tuple(augment.REGISTRY)
STRONG = {"blur": "blur(3)", "defocus": "defocus(3)"}  # whose kernels are wide, whatever is drawn
MULTIPROCESSOR = {80: 164 << 10, 90: 228 << 10}  # bytes of shared memory, of which every block takes 1 KiB unasked
BLOCK = {80: 163 << 10, 90: 227 << 10}  # at most


def written(text: str, images: np.ndarray) -> Program:
    """Returns a policy's program for images [B, H, W, 3]."""
    policy = augment.parse(text)
    draws = policy.draw(tf.range(len(images), dtype=tf.int64), epoch=0, seed=3)
    made = program.write(policy._stages, draws, images.shape[1:3])
    return Program(made.words, [each.numpy() for each in made.operands])


def case_of(text: str, size: tuple[int, int], batch: int = 3) -> fuzz_native.Case:
    """Returns a policy on levels that leave room to stretch."""
    images = np.random.default_rng(size[0]).integers(20, 200, [batch, *size, 3], dtype=np.uint8)
    return fuzz_native.Case(written(text, images), images)


# ---------------------------------------------------------------------------------------------------------------------
# Compiled for GPUs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def compiler():
    if library.nvrtc() is None:
        pytest.skip("nvidia-cuda-nvrtc-cu12 is not installed")
    return run_cuda_op.nvrtc(str(library.nvrtc()))


@pytest.mark.parametrize("capability", sorted(BLOCK))
def test_nvrtc_compiles_the_kernel_without_a_word(compiler, capability):
    code, said = run_cuda_op.compiled(compiler, library.SOURCE, f"compute_{capability}")
    text = code.decode()
    assert not said
    assert ".visible .entry bloodcell_policy(" in text
    assert f".target sm_{capability}" in text
    local = sum(map(int, re.findall(r"^\s*\.local .*\[(\d+)\];", text, re.MULTILINE)))
    assert local < ctypes.sizeof(run_cuda_op.Program), "a thread has a copy of the program, or of more"
    assert not re.search(r"^\s*\.shared .*\[\d+\];", text, re.MULTILINE), "shared memory that launch_of does not count"


def test_a_gpu_that_the_compiler_does_not_know_gets_its_newest(compiler, native_op):
    loaded = ctypes.CDLL(str(library.folder() / library.NAME))
    message = ctypes.create_string_buffer(300)
    assert loaded.bloodcell_compile_cuda(999, message, 300) == 0, message.value
    assert loaded.bloodcell_compile_cuda(61, message, 300) == 1
    assert message.value == b"expected a GPU of compute capability 7.0 or more that NVRTC knows"


# ---------------------------------------------------------------------------------------------------------------------
# Built as host C++
# ---------------------------------------------------------------------------------------------------------------------


def host_built(folder: pathlib.Path, sanitize: str = "") -> pathlib.Path:
    """Compiles device_as_host.cc and the host's engine, both with fused operations where this machine has them."""
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no compiler: {compiler[0]} is not installed")
    info = pathlib.Path("/proc/cpuinfo")
    x86 = platform.machine() in ("x86_64", "AMD64")
    fused = ("-mfma",) if x86 and info.exists() and " fma " in info.read_text() else ()
    flags = (*build.FLAGS, "-Wno-unknown-pragmas", "-O1", "-g1", *fused, f"-I{library.SOURCE}",
             *([f"-fsanitize={sanitize}"] if sanitize else []))
    units = {pathlib.Path(__file__).with_name("device_as_host.cc"): (), library.SOURCE / "policy.cc": (),
             library.SOURCE / "isa.cc": ("-DISA=bloodcell_run_generic",)}

    def compiled(unit: pathlib.Path) -> str:
        made = str(folder / f"{unit.stem}.o")
        subprocess.run([*compiler, *flags, "-Werror", *units[unit], "-c", str(unit), "-o", made], check=True)
        return made

    with concurrent.futures.ThreadPoolExecutor(len(units)) as pool:
        objects = list(pool.map(compiled, units))
    made = folder / "libdevice.so"
    subprocess.run([*compiler, "-shared", "-pthread", *flags, *objects, "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    """The library's path."""
    return host_built(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="session")
def policies():
    return {f"{name}-{size[0]}": case_of(text, size) for name, text in POLICIES.items() for size in SIZES}


@pytest.mark.parametrize("name", OPS)
def test_every_op_gives_the_hosts_levels(device, name):
    square = name == "rot90"
    for height, width in SIZES:
        case = case_of(name, (height, height if square else width))
        assert not fuzz_device.differences(Library(device), case, [1, 3, 32] if height == 17 else [3])


def test_policies_give_the_hosts_levels_in_every_dtype(device, policies):
    for number, case in enumerate(policies.values()):
        output = fuzz_native.OUTPUTS[number % len(fuzz_native.OUTPUTS)]
        assert not fuzz_device.differences(Library(device), case, [1, 3, 32], output)


def test_random_programs_give_the_hosts_levels(device):
    for number in range(120):
        random = np.random.default_rng([7, number])
        assert not fuzz_device.differences(Library(device), fuzz_native.draw(random), [3]), number


def test_the_handler_compiles_places_and_launches_the_kernel(device, tmp_path, policies):
    (tmp_path / "libcuda.so.1").symlink_to(device)
    include, *abi = tf.sysconfig.get_compile_flags()
    handler = tmp_path / "handler.so"
    done = subprocess.run(
        [*os.environ.get("CXX", "g++").split(), *build.FLAGS, "-O0", "-Werror", f"-isystem{include[2:]}",
         *(flag for flag in abi if "ABI" in flag), f"-I{library.SOURCE}", "-shared",
         str(pathlib.Path(__file__).with_name("handler_on_host.cc")), str(library.SOURCE / "policy.cc"), "-ldl",
         "-o", str(handler)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    files = []
    for name, case in policies.items():
        files.append(str(tmp_path / f"{name}.npz"))
        fuzz_native.save(pathlib.Path(files[-1]), case)
    run = [sys.executable, fuzz_device.__file__, str(device), "--handler", str(handler), "--replay", *files]
    done = subprocess.run(run, capture_output=True, text=True, check=False,
                          env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert not done.returncode, done.stdout + done.stderr[-3000:]
    (tmp_path / "libcuda.so.1").unlink()
    (tmp_path / "libcuda.so.1").touch()  # which no driver of this machine comes before
    alone = subprocess.run(run, capture_output=True, text=True, check=False,
                           env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert "the CUDA driver (libcuda.so.1) cannot be loaded" in alone.stderr


class Sanitized:
    """`fuzz_device` in processes under a sanitizer."""

    def __init__(self, sanitize: str, runtimes: str, folder: pathlib.Path) -> None:
        self.folder = folder
        try:
            self.environment = fuzz_native.environment(runtimes)
        except fuzz_native.Unavailable as why:
            pytest.skip(str(why))
        self.library = host_built(folder, sanitize)
        if (probe := self.run()).returncode:
            pytest.skip(f"{sanitize}: {(probe.stderr.strip().splitlines() or ['no word'])[-1]}")

    def run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, fuzz_device.__file__, str(self.library), *flags], text=True,
                              capture_output=True, check=False, env=self.environment)

    def files(self, cases: dict[str, fuzz_native.Case]) -> list[str]:
        for name, case in cases.items():
            fuzz_native.save(self.folder / f"{name}.npz", case)
        return [str(self.folder / f"{name}.npz") for name in cases]


@pytest.fixture(scope="session")
def races(tmp_path_factory):
    return Sanitized("thread", "thread", tmp_path_factory.mktemp("races"))


def test_threads_of_a_block_never_race(races, policies):
    small = {name: case for name, case in policies.items() if case.images.shape[1] == 17}
    # After each op one that reads other pixels than its own; a width that three threads do not share out by columns.
    small |= {name: case_of(f"{STRONG.get(name, name)} | pixelate(0.2) | {name} | sharpness(0.9)", (10, 10), 2)
              for name in (*OPS, "augmix(severity=3)")}
    done = races.run("--replay", *races.files(small), "--cases=40", "--values=2000", "--seed=5")
    assert not done.returncode, done.stdout + done.stderr[-6000:]
    many = races.run("--replay", *races.files({"many": case_of(V2S, (13, 17), 2)}), "--threads=32")
    assert not many.returncode, many.stdout + many.stderr[-6000:]


def test_without_barriers_a_race_is_found(races):
    done = races.run("--replay", *races.files({"alone": case_of("pixelate(0.2)", (33, 33))}), "--unguarded")
    assert done.returncode
    assert "data race" in done.stderr


def test_threads_stay_within_the_memory_that_they_are_given(tmp_path, policies):
    memory = Sanitized("address", "address,undefined", tmp_path)  # of arithmetic the host's fuzzer sees more
    done = memory.run("--replay", *memory.files(policies), "--cases=40", "--seed=6")
    assert not done.returncode, done.stdout + done.stderr[-6000:]


# ---------------------------------------------------------------------------------------------------------------------
# Memory, and the script that times it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", sorted(BLOCK))
def test_two_blocks_of_96x96_images_share_a_multiprocessor(device, capability):
    words = ctypes.c_longlong()
    shared = ctypes.CDLL(str(device)).device_memory
    shared.restype, shared.argtypes = ctypes.c_longlong, [ctypes.c_longlong] * 2 + [ctypes.c_int] * 2 + [
        ctypes.c_longlong, ctypes.c_void_p]
    taken = shared(96, 96, 0, 0, BLOCK[capability], ctypes.byref(words))
    assert 2 * 96 * 96 * 4 < taken <= BLOCK[capability], "not in shared memory"
    assert words.value == 0
    assert 2 * (taken + 1024) <= MULTIPROCESSOR[capability]
    assert shared(512, 512, 0, 0, BLOCK[capability], ctypes.byref(words)) < taken
    assert words.value == 525_376  # two images, each with a row and a pixel more, in lines of 64


@pytest.mark.parametrize("wrong", [False, True])
def test_the_timing_script_packs_and_launches_what_the_library_does(device, tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.setattr(run_cuda_op, "nvrtc", lambda path: None)
    monkeypatch.setattr(run_cuda_op, "compiled", lambda compiler, source, architecture: (architecture.encode(), ""))
    images = np.random.default_rng(0).integers(0, 256, [3, 17, 33, 3], dtype=np.uint8)
    held: dict[str, Any] = {"names": np.array(["v2s", "elastic"]), "images": images}
    for name, text in (("v2s", V2S), ("elastic", "elastic | jpeg(50) | autocontrast")):
        made = written(text, images)
        expected = Library(device).apply(made, images, instruction_set="host")
        held |= {f"{name}/words": np.array(made.words), f"{name}/operands": np.array(len(made.operands)),
                 f"{name}/expected": expected ^ (4 * wrong)}
        held |= {f"{name}/operand{number}": each for number, each in enumerate(made.operands)}
    np.savez(tmp_path / "programs.npz", **held)
    gpu = run_cuda_op.Gpu(library.SOURCE, "", str(device))
    assert run_cuda_op.run(tmp_path / "programs.npz", gpu, [2]) is not wrong
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "host, compute capability 8.0, 2 multiprocessors"
    assert len(lines) == 5
    assert all(("most 4" if wrong else "levels off 0.0e+00, most 0") in line for line in lines[1:])


def test_the_timing_script_says_that_there_is_no_gpu(tmp_path):
    with pytest.raises(run_cuda_op.Failed, match="no CUDA driver"):
        run_cuda_op.Gpu(library.SOURCE, "", str(tmp_path / "libcuda.so.1"))
