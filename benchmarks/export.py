"""`python -m benchmarks export [FOLDER]`: the compiled programs, for machines that have JAX and no TensorFlow.

Writes StableHLO (compressed text) of an op of each primitive, of whole policies, and of bloodcell's own training step
of EfficientNetV2-S, forward, backward and optimizer, with and without augmentation. Beside them lie what TensorFlow
answered, `manifest.json`, which says all about each program, and `run_stablehlo.py`, which runs them: the folder is all
that has to travel. Nothing big is stored: pictures, weights and the optimizer's state are made by rules that are in
`run_stablehlo` (`made`), and enter the programs as inputs; a program with a large constant is refused.

Programs have static shapes and come for batches of 256 and 4096 (a step for 64), and in two layouts: `chunks` visits as
many images at a time as fit a CPU's cache, and `wide` all of them in one launch, as bloodcell does on a GPU. A sample's
result depends on neither, so TensorFlow answers once, on this machine, for all of them.

What belongs here: which programs there are, and how each is made. How they are checked and timed is `run_stablehlo`'s.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import gzip
import io
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import SIDE, ours, run_stablehlo, training
from benchmarks.run_stablehlo import AUGMIX, PLAIN_STEP, RANDAUGMENT, STEP, V2S
from bloodcell import augment
from bloodcell.augment import pixels
from bloodcell.errors import InputError
from bloodcell.files import make_folder, write_atomically

FOLDER = pathlib.Path(__file__).parent / "stablehlo"
OPS = ("rotate", "brightness", "hue", "sharpness", "cutout", "blur", "motion_blur", "pixelate", "elastic", "stain",
       "noise", "jpeg")  # one of each primitive
POLICIES = {V2S: training.V2S, RANDAUGMENT: "randaugment(2, 9)", AUGMIX: AUGMIX}
BATCH, LARGE, STEP_BATCH = 256, 4096, 64
NETWORK, CLASSES = "efficientnet_v2_s", 8
SHOWN = 16  # images of which every pixel is written down
MIB = 2**20
MOST, MOST_CONSTANT = 60 * MIB, 10 * MIB  # bytes: of all files, of one constant, as large as TensorFlow folds any
CHUNKS, WIDE = "chunks", "wide"  # what a layout is called: a cache's worth of images at a time, or all in one launch
# What other compilers and devices may make of the same step: sums in another order; on GPUs TensorFloat-32 products.
# The norm of all gradients is that of a few large ones, which bfloat16 moves: with the v2s policy TensorFlow's own is
# 18% above its float32 one, JAX's on the same CPU 7% below. The moments, a median, are the finer check.
TOLERANCE = {
    "float32": {"loss": 2e-3, "gradient": 5e-2, "moments": 5e-2, "weights": 5e-2},
    "mixed_bfloat16": {"loss": 2e-2, "gradient": 4e-1, "moments": 2e-1, "weights": 2e-1},
}

Rule = dict[str, Any]
_TYPES = {"ui8": "uint8", "i32": "int32", "i64": "int64", "ui32": "uint32", "ui64": "uint64", "f32": "float32",
          "i1": "bool", "bf16": "bfloat16"}
_LOCATION = re.compile(r' loc\((?:[^()"]|"[^"]*"|\((?:[^()"]|"[^"]*")*\))*\)')  # parentheses within once
_MODULE = re.compile(r"^module @\S+ attributes \{.*\} \{$", re.MULTILINE)
_COPY = re.compile(r"mhlo\.copy (%\S+) : (tensor<\S+>)$", re.MULTILINE)
_ATTRIBUTES = re.compile(r" \{mhlo\.frontend_attributes = \{[^{}]*\}\}")
_TRUTHS = re.compile(r'(%\S+) = stablehlo\.constant dense<"0x([0-9A-F]+)"> : tensor<((?:\d+x)+)i1>')
_UPDATE = re.compile(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>")
_MAIN = re.compile(r"func\.func (?:public )?@main\((.*?)\) -> (.*) \{")
_TENSOR = re.compile(r"tensor<(?:([0-9x]+)x)?([a-z]+\d+)>")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes what the command line asks for, and prints how large it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=FOLDER,
                        help="where to write (default benchmarks/stablehlo, which git ignores)")
    parser.add_argument("--only", default="", help="only programs in whose names this expression occurs")
    args = parser.parse_args(argv)
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only: expected a regular expression, received {args.only!r}: {error}")
    written = write(args.folder, only=args.only, tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{args.folder}: {len(written)} programs, {size(args.folder) / MIB:.1f} MiB; run there: "
          "python run_stablehlo.py")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is exported, and how large: smaller in tests. `side` is of the augmentations; steps take SIDE."""

    ops: Sequence[str] = OPS
    policies: Mapping[str, str] = dataclasses.field(default_factory=lambda: POLICIES)
    batch: int = BATCH
    large: int = LARGE
    side: int = SIDE
    network: str = NETWORK
    precisions: Sequence[str] = tuple(TOLERANCE)
    step_batch: int = STEP_BATCH
    step_policy: str = training.V2S


def write(folder: pathlib.Path, *, sizes: Sizes | None = None, only: str = "",
          tell: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Writes programs, answers, manifest and runner.

    Args:
      folder: where to; a manifest of before goes first, so that none speaks of other files.
      sizes: what, and how large.
      only: a regular expression; the cases to write are those in whose names it occurs.
      tell: called with a line for each case.

    Returns:
      The manifest's `programs`, in the order in which they are to run.

    Raises:
      InputError: the folder cannot be written; no case has such a name; the files are larger than MOST together.
      RuntimeError: a program hides a large constant or calls what only TensorFlow has.
    """
    sizes = sizes or Sizes()
    make_folder(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    cases = [(name, "op", ours.op_function(name)) for name in sizes.ops]
    cases += [(name, "policy", ours.policy_function(text)) for name, text in sizes.policies.items()]
    steps = [(name, policy, precision) for precision in sizes.precisions
             for name, policy in ((PLAIN_STEP, ""), (STEP, sizes.step_policy))]
    programs: list[dict[str, Any]] = []

    def add(name: str, made: Callable[[], list[dict[str, Any]]]) -> None:
        if re.search(only, name):
            began = time.monotonic()
            programs.extend(made())
            _manifest(folder, programs, sizes)  # each time: what takes long may be stopped
            tell(f"{name}: {time.monotonic() - began:.0f} s")

    for name, kind, function in cases:
        add(name, functools.partial(_augmentation, folder, name, kind, function, sizes))
    policy_of_before = keras.config.dtype_policy()
    for name, policy, precision in steps:
        add(f"{name}, {precision}", functools.partial(_step, folder, name, policy, precision, sizes))
        keras.config.set_dtype_policy(policy_of_before)
        gc.collect()  # a network with its program takes gigabytes
    if not programs:
        raise InputError(f"--only: expected part of a program's name, received {only!r}, try one of "
                         f"{', '.join([*(name for name, *_ in cases), *(name for name, *_ in steps[:2])])}")
    write_atomically(folder / "run_stablehlo.py", pathlib.Path(run_stablehlo.__file__).read_bytes())
    if (total := size(folder)) > MOST:
        raise InputError(f"export: expected at most {MOST / MIB:.0f} MiB in {folder}, received {total / MIB:.1f}, try "
                         "an empty folder, or fewer programs (--only)")
    return programs


def _manifest(folder: pathlib.Path, programs: list[dict[str, Any]], sizes: Sizes) -> None:
    """Sorts the programs as they are to run, what the goals are about first, and writes the manifest."""
    order = (f"policy @{sizes.large}", f"op @{sizes.large}", *(f"step {each}" for each in sizes.precisions[::-1]),
             f"policy @{sizes.batch}", f"op @{sizes.batch}")
    programs.sort(key=lambda entry: order.index(entry["group"]))
    manifest = {"tensorflow": tf.__version__, "side": sizes.side, "programs": programs}
    write_atomically(folder / "manifest.json", (json.dumps(manifest, allow_nan=False) + "\n").encode())


def size(folder: pathlib.Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# Augmentations
# ---------------------------------------------------------------------------------------------------------------------


def _augmentation(folder: pathlib.Path, name: str, kind: str, function: ours.Function, sizes: Sizes
                  ) -> list[dict[str, Any]]:
    entries = []
    expected, epoch = f"{_slug(name)}.expected.npz", tf.constant(0, tf.int64)
    for batch, layout in ((sizes.batch, CHUNKS), (sizes.batch, WIDE), (sizes.large, WIDE)):
        shape = [batch, sizes.side, sizes.side, 3]
        inputs: list[Rule] = [{"rule": "cells", "shape": shape, "dtype": "uint8"},
                              {"rule": "count", "shape": [batch], "dtype": "int64", "modulo": 0},
                              {"rule": "fill", "shape": [], "dtype": "int64", "value": 0}]
        with laid_out(layout):
            traced = tf.function(function, jit_compile=True, autograph=False)
            text, _ = stablehlo(traced, [tf.zeros(shape, tf.uint8), tf.range(batch, dtype=tf.int64), epoch], inputs)
        entries.append(_entry(folder, name, text, kind=kind, layout=layout, group=f"{kind} @{batch}", images=batch,
                              inputs=inputs, expected=expected, bytes_per_image=5 * math.prod(shape[1:])))
        if kind == "op":
            strength = augment.REGISTRY[name].strength(tf.constant([ours.LEVEL]))
            entries[-1]["strength"] = round(float(strength[0]), 6)
    _savez(folder / expected, answers(function, sizes.large, sizes.batch, sizes.side))
    return entries


def answers(function: ours.Function, count: int, batch: int, side: int) -> dict[str, np.ndarray]:
    """Returns what TensorFlow's compiler makes of the first `count` pictures, as `check_images` wants it."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    pictures = run_stablehlo.cells(count, side)
    sums = []
    index = np.linspace(0, batch - 1, min(SHOWN, batch)).astype(np.int64)
    shown = np.empty([len(index), side, side, 3], np.uint8)
    for first in range(0, count, batch):
        ids = tf.range(first, first + batch, dtype=tf.int64)
        levels = compiled(tf.constant(pictures[first:first + batch]), ids, tf.constant(0, tf.int64)).numpy()
        found = np.rint(levels).astype(np.uint8)
        sums.append(run_stablehlo.checksums(found))
        if first == 0:
            shown[:] = found[index]
    return {"checksums": np.concatenate(sums), "index": index, "pixels": shown}


@contextlib.contextmanager
def laid_out(layout: str) -> Iterator[None]:
    """Traces programs of a layout; left to itself, the engine takes the one that suits the devices that are here."""
    before, pixels.WIDE = pixels.WIDE, layout == WIDE
    try:
        yield
    finally:
        pixels.WIDE = before


# ---------------------------------------------------------------------------------------------------------------------
# Training steps
# ---------------------------------------------------------------------------------------------------------------------


def _step(folder: pathlib.Path, name: str, policy: str, precision: str, sizes: Sizes) -> list[dict[str, Any]]:
    name, batch = f"{name}, {precision}", sizes.step_batch
    rules: dict[str, Rule] = {  # in the order in which a dict's items enter a program
        "id": {"rule": "count", "shape": [batch], "dtype": "int64", "modulo": 0},
        "image": {"rule": "cells", "shape": [batch, SIDE, SIDE, 3], "dtype": "uint8"},
        "label": {"rule": "count", "shape": [batch], "dtype": "int64", "modulo": CLASSES},
        "weight": {"rule": "fill", "shape": [batch], "dtype": "float32", "value": 1.0}}
    given = {key: tf.constant(run_stablehlo.made(rule)) for key, rule in rules.items()}
    epoch = tf.constant(0, tf.int64)
    entries: list[dict[str, Any]] = []
    expected = f"{_slug(name)}.expected.npz"
    for layout in (CHUNKS, WIDE) if policy else ("any",):
        with laid_out(layout):
            trained = training.build(sizes.network, policy=policy, precision=precision, jit="step", classes=CLASSES)
            step: Any = trained.step
            variables = _variables(step.get_concrete_function(given, epoch))
            state = [_rule(variable, stream) for stream, variable in enumerate(variables)]
            inputs = [*rules.values(), {"rule": "fill", "shape": [], "dtype": "int64", "value": 0}, *state]
            text, updated = stablehlo(step, [given, epoch], inputs)
            if not entries:
                changed = [variables[number - len(inputs) + len(state)] for number in updated]
                made = list(zip(variables, state, strict=True))
                _savez(folder / expected, _stepped(step, given, epoch, made, changed))
        entries.append(_entry(
            folder, name, text, kind="step", layout=layout, group=f"step {precision}", images=batch, inputs=inputs,
            expected=expected, bytes_per_image=None, tolerance=TOLERANCE[precision],
            baseline=f"{PLAIN_STEP}, {precision}"))
    return entries


def _variables(concrete: Any) -> list[tf.Variable]:
    """Returns a step's variables in the order in which they enter its program."""
    of_handle = {id(variable.handle): variable for variable in concrete.variables}
    return [of_handle[id(captured)] for captured in concrete.captured_inputs]


def _rule(variable: tf.Variable, stream: int) -> Rule:
    """Returns the rule for a variable's value: its own where that is one number or a few, else noise of its size."""
    value = variable.numpy()
    own: Rule = {"shape": list(value.shape), "dtype": value.dtype.name}
    if value.size and (value == value.flat[0]).all():
        return {"rule": "fill", **own, "value": value.flat[0].item()}
    if value.size <= 16:
        return {"rule": "values", **own, "value": value.ravel().tolist()}
    limit = float(f"{math.sqrt(3) * float(value.std()):.4g}")  # of a uniform with this deviation
    return {"rule": "uniform", **own, "stream": stream, "limit": limit}


def _stepped(step: Callable[..., tf.Tensor], given: Mapping[str, tf.Tensor], epoch: tf.Tensor,
             state: Sequence[tuple[tf.Variable, Rule]], changed: Sequence[tf.Variable]) -> dict[str, np.ndarray]:
    """Returns what TensorFlow's compiler makes of the step, as `check_step` wants it."""
    for variable, rule in state:
        variable.assign(run_stablehlo.made(rule))
    result = step(given, epoch).numpy()
    return {"result": result, "norms": run_stablehlo.norms(variable.numpy() for variable in changed),
            "names": np.array([variable.name.removesuffix(":0") for variable in changed])}


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------


def stablehlo(function: Any, arguments: Sequence[Any], inputs: Sequence[Rule]) -> tuple[str, list[int]]:
    """Returns a compiled function's program as StableHLO text, and what it updates.

    The text is without the places in files that it comes from, without what only XLA knows (MHLO), and without its
    wish to write over what it updates: a program that is called again and again needs its inputs.

    Args:
      function: a `tf.function` with `jit_compile=True`.
      arguments: as it is called.
      inputs: the rules for what the program takes; its parameters must have these shapes and dtypes.

    Returns:
      The text, and for each result after the first the number of the parameter whose new value it is.

    Raises:
      RuntimeError: the program takes something else, calls something that only TensorFlow has, or hides a constant of
        more than MOST_CONSTANT.
    """
    text = str(function.experimental_get_compiler_ir(*arguments)(stage="stablehlo"))
    text = "\n".join(line for line in _LOCATION.sub("", text).splitlines() if not line.startswith("#loc")) + "\n"
    if " loc(" in text:
        raise RuntimeError(f"a location of an unknown form: {text[text.index(' loc('):][:120]}")
    of_result = {int(result): int(number) for number, result in _UPDATE.findall(text)}
    text = _ATTRIBUTES.sub("", _COPY.sub(r"stablehlo.convert \1 : \2", _MODULE.sub("module {", text, count=1)))
    text = _TRUTHS.sub(_bytes_of_truths, text)
    if "mhlo." in text.replace("stablehlo.", ""):
        raise RuntimeError("expected StableHLO alone, received a program with operations or attributes of MHLO")
    found, wanted = parameters(text), [(tuple(rule["shape"]), rule["dtype"]) for rule in inputs]
    if found != wanted:
        apart = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        raise RuntimeError(f"expected a program of {len(wanted)} inputs, received {len(found)}; the first that differ, "
                           f"found and wanted: {apart}")
    if calls := set(re.findall(r"custom_call @?(\S+?)\(", text)):
        raise RuntimeError(f"expected a program that any compiler knows, received calls of {', '.join(sorted(calls))}")
    if (constant := largest_constant(text)) > MOST_CONSTANT:
        raise RuntimeError(f"expected constants of at most {MOST_CONSTANT} bytes, received one of {constant}")
    updated = [number for _, number in sorted(of_result.items())]
    if results(text)[1:] != [found[number] for number in updated]:
        raise RuntimeError("expected a program whose results after the first are new values of parameters, received "
                           f"one of {len(results(text))} results and {len(updated)} new values")
    return text, updated


def _bytes_of_truths(found: re.Match[str]) -> str:
    """Writes a constant of i1 as one of ui8 and a conversion: versions of MLIR differ in how they pack truth values."""
    name, digits, sides = found.groups()
    count = math.prod(int(side) for side in sides[:-1].split("x"))
    data = np.frombuffer(bytes.fromhex(digits), np.uint8)
    truths = data if len(data) == count else np.unpackbits(data, bitorder="little")[:count]
    digits = (truths != 0).astype(np.uint8).tobytes().hex().upper()
    return (f'{name}_ui8 = stablehlo.constant dense<"0x{digits}"> : tensor<{sides}ui8>\n'
            f"    {name} = stablehlo.convert {name}_ui8 : (tensor<{sides}ui8>) -> tensor<{sides}i1>")


def parameters(text: str) -> list[tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of each parameter of a program's `@main`."""
    return _types(_main(text)[0])


def results(text: str) -> list[tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of each result of a program's `@main`."""
    return _types(_main(text)[1])


def largest_constant(text: str) -> int:
    """Returns about how many bytes the largest constant of a program takes: in hex, two digits each; else its text."""
    hexadecimal = max((len(each) // 2 for each in re.findall(r'dense<"0x([0-9A-F]*)">', text)), default=0)
    return max([hexadecimal, *(len(each) for each in re.findall(r"dense<(\[.*\])>", text))])


def _main(text: str) -> tuple[str, str]:
    found = _MAIN.search(text)
    if not found:
        raise RuntimeError("expected a program with a function @main, received none")
    return found.group(1), found.group(2)


def _types(text: str) -> list[tuple[tuple[int, ...], str]]:
    return [(tuple(int(side) for side in shape.split("x") if side), _TYPES[dtype])
            for shape, dtype in _TENSOR.findall(text)]


def _entry(folder: pathlib.Path, name: str, text: str, **about: Any) -> dict[str, Any]:
    """Writes a program; returns what the manifest says of it."""
    file = f"{_slug(name)}.{about['images']}.{about['layout']}.mlir.gz"
    packed = gzip.compress(text.encode(), mtime=0)
    write_atomically(folder / file, packed)
    return {"name": name, "program": file, **about, "text_bytes": len(text), "constant_bytes": largest_constant(text)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _savez(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, allow_pickle=False, **arrays)
    write_atomically(path, held.getvalue())
