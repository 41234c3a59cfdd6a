"""Counts what compiled programs move on a GPU that is not there: `python -m benchmarks.gpu_bytes [FOLDER]`.

XLA's compiler for GPUs needs none: JAX's CUDA plugin compiles for one that is described to it, here an H200, and what
comes out says what each kernel reads and writes. So the programs that `python -m benchmarks export` wrote can be held
against the bytes that must move, and a change that spares a kernel shows, before anybody has a GPU. Nothing is run and
nothing timed: what a launch, a branch's way over the host or a gather from afar takes, only a GPU can tell.

Each kernel counts once, its operands read once and its results written once, as if each lay in memory; a loop's kernels
count once for all trips. Programs are compiled without tuning, with cuBLAS for products of matrices. No TensorFlow:

    pip install jax jax-cuda12-plugin nvidia-cuda-nvcc-cu12

What belongs here: compiling for a described GPU, and counting. Running and checking is `run_stablehlo`'s business.
"""

import argparse
import dataclasses
import gzip
import importlib.util
import math
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import run_stablehlo

H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  l2_cache_size: 52428800 memory_bandwidth: 4800000000000 device_memory_size: 150000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_NO_KERNEL = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call",
              "after-all", "copy-done", "async-done", "partition-id", "replica-id"}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


class Failed(Exception):
    """What is needed is missing, or the compiler refuses; the message says what."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled program, its HLO operation and shape, and the bytes that it reads and writes."""

    name: str
    operation: str
    shape: str
    moved: int


def kernels(hlo: str) -> list[Kernel]:
    """Returns the kernels of a compiled program, whose HLO text (scheduled, for a GPU) is given."""
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    shapes: dict[str, str] = {}
    inner: set[str] = set()  # computations that are part of a kernel: a fusion's, a reduction's
    for line in hlo.splitlines():
        if begun := _COMPUTATION.match(line):
            instructions = computations.setdefault(begun[1], [])
        elif found := _INSTRUCTION.match(line):
            name, shape, operation, rest = found.groups()
            instructions.append((name, shape, operation, rest))
            shapes[name] = shape
            if operation not in _NO_KERNEL:
                inner.update(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", rest))
    counted = []
    for computation, instructions in computations.items():
        for name, shape, operation, rest in instructions if computation not in inner else []:
            if operation not in _NO_KERNEL:
                operands = set(re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0]))
                counted.append(Kernel(name, operation, shape,
                                      _bytes(shape) + sum(_bytes(shapes.get(each, "")) for each in operands)))
    return counted


def _bytes(shape: str) -> int:
    return sum(_SIZES.get(dtype, 0) * math.prod(int(side) for side in sides.split(",") if side)
               for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape))


def described(target: str) -> Any:
    """Returns a device of JAX that compiles and cannot run, from XLA's `GpuTargetConfigProto` as text.

    Raises:
      Failed: JAX, its CUDA plugin or nvcc's assembler is missing, or refuses the text.
    """
    nvcc = importlib.util.find_spec("nvidia.cuda_nvcc") if importlib.util.find_spec("nvidia") else None
    if nvcc is None or not nvcc.submodule_search_locations or not importlib.util.find_spec("jax_cuda12_plugin"):
        raise Failed("expected JAX's CUDA plugin, try pip install jax jax-cuda12-plugin nvidia-cuda-nvcc-cu12")
    tools = pathlib.Path(nvcc.submodule_search_locations[0])
    os.environ["XLA_FLAGS"] = " ".join(["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false",
                                        f"--xla_gpu_cuda_data_dir={tools}"])
    os.environ["JAX_PLATFORMS"] = "cpu"
    if str(tools / "bin") not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + str(tools / "bin")
    from jax.experimental import topologies
    try:
        return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target).devices[0]
    except Exception as error:  # JAX's own errors have no common class
        raise Failed(_line(error)) from error


def compiled(text: str, device: Any) -> str:
    """Compiles StableHLO for a device that is `described`; returns the program's HLO text.

    Raises:
      Failed: the compiler refuses.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    try:
        with mlir.make_ir_context():
            program = device.client.compile(ir.Module.parse(text), xla_client.DeviceList((device,)),
                                            xla_client.CompileOptions())
        return str(program.hlo_modules()[0].to_string())
    except Exception as error:  # as above, and other versions' methods have other arguments
        raise Failed(_line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 where a program cannot be compiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bytes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=pathlib.Path(__file__).parent / "stablehlo",
                        help="what `python -m benchmarks export` wrote (default benchmarks/stablehlo)")
    parser.add_argument("--only", type=run_stablehlo.pattern, default=".* @4096$", metavar="REGEX",
                        help="of the augmentations, those in whose `case @batch` it occurs (default: the larger batch)")
    parser.add_argument("--target", type=pathlib.Path,
                        help="describes another GPU: a GpuTargetConfigProto of XLA as text")
    parser.add_argument("--kernels", action="store_true", help="also each kernel that moves a megabyte or more")
    args = parser.parse_args(argv)
    try:
        device = described(args.target.read_text() if args.target else H200)
    except (OSError, UnicodeDecodeError, Failed) as error:
        sys.exit(f"error: {error}")
    programs = run_stablehlo.manifest_of(args.folder)["programs"]
    groups = run_stablehlo.chosen(programs, kind="gpu", layout="wide", only=args.only)
    print(f"{'case @batch':<34}{'kernels':>8}{'loops':>6}{'MB moved':>11}{'MB must':>9}{'ratio':>7}")
    failed = False
    for entry in (each for group in groups for each in group if each["kind"] != "step"):
        name = f"{entry['name']} @{entry['images']}"
        try:
            hlo = compiled(gzip.decompress((args.folder / entry["program"]).read_bytes()).decode(), device)
        except Failed as error:
            print(f"{name:<34}FAILED: {error}")
            failed = True
            continue
        found, must = kernels(hlo), entry["images"] * entry["bytes_per_image"]
        moved, loops = sum(each.moved for each in found), len(re.findall(r" while\(", hlo))
        print(f"{name:<34}{len(found):>8}{loops:>6}{moved / 1e6:>11,.0f}{must / 1e6:>9,.0f}{moved / must:>7.2f}",
              flush=True)
        for each in found if args.kernels else []:
            if each.moved >= 1e6:
                print(f"    {each.moved / 1e6:>9,.1f} MB  {each.operation:<12}{each.name:<40}{each.shape}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
