"""Checks and times bloodcell's compiled programs where there is no TensorFlow: `python run_stablehlo.py [FOLDER]`.

One file that needs NumPy and JAX alone, and the folder that `python -m benchmarks export` wrote (it holds a copy of
this file, which is why FOLDER may be left out there). On a GPU: `pip install "jax[cuda12]"`, and, for the same work in
torchvision v2 and Kornia on the same GPU, `pip install torch torchvision kornia`; without them it says so and goes on.

Group by group it makes the inputs by rule, compiles the programs, checks their outputs against TensorFlow's, and times
them beside the peers, taking turns there and back. It ends with the goals: reached, missed or not measured. Exit status
1 where an output is wrong or a program fails; a missed goal is no failure.

- The check: of an augmentation, the checksum of every image, and of some images every pixel; it passes where 99.9% of
  these pixels are within one grey level (where a device rounds differently, the border of a mask may fall elsewhere).
  Of a training step, the loss, the norm of the gradients and those of all updated tensors, within the tolerance in the
  manifest.
- The clock: inputs lie on the device and outputs stay there; a run queues so many calls that they take `--seconds` and
  blocks on the last. PyTorch's runs are timed with CUDA events. Median and quartiles of `--samples` runs, fewer for
  what is slow. A step is called with the same weights every time.
- The limit: a program reads uint8 and writes float32 images, so five bytes a value must move; the device's bandwidth
  is that of adding 1 to a large float32 array in JAX.
- The peers keep what they like: torchvision uint8 images, Kornia float32, cast in the timed run. In one batch
  torchvision draws one set of parameters for all images; Kornia draws parameters for each image, but the ops of
  RandAugment once. Ours draws everything for each image. Single ops get our strength for all images.

Programs that suit the device are taken: on a CPU those that visit a cache's worth of images at a time, elsewhere those
with one wide launch. What belongs here: the
rules for inputs, checks, clocks and goals. What writes the programs is `export`, which takes the rules from here.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import gzip
import json
import math
import os
import pathlib
import platform
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WITHIN = 0.999  # of the pixels that are compared are within one grey level
V2S, RANDAUGMENT, AUGMIX = "v2s", "randaugment(2, 9)", "augmix(severity=3)"
STEP, PLAIN_STEP = "step, v2s policy", "step, no augmentation"
OVER_PEERS, IMAGES_PER_SECOND, OF_BANDWIDTH, OF_STEP = 10.0, 3e6, 0.5, 0.02  # the goals, all of them of a GPU
NOISE = 16  # grey levels

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs by rule
# ---------------------------------------------------------------------------------------------------------------------


def scrambled(numbers: np.ndarray, stream: int) -> np.ndarray:
    """Hashes uint32 numbers under a stream: PCG's output function (Jarzynski and Olano 2020, JCGT 9(3)), twice."""
    def once(x: np.ndarray) -> np.ndarray:
        state = x * np.uint32(747796405) + np.uint32(2891336453)
        word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
        return (word >> np.uint32(22)) ^ word

    return once(once(np.asarray([stream], np.uint32)) + np.asarray(numbers, np.uint32))


def uniform(shape: Sequence[int], *, stream: int, limit: float) -> np.ndarray:
    """Returns float32 between -limit and limit, 24 random bits each; equal on every machine, to the last bit."""
    bits = scrambled(np.arange(math.prod(shape), dtype=np.uint32), stream) >> np.uint32(8)
    whole = bits.astype(np.float32) - np.float32(2**23)  # exact: 24 bits
    return (whole * np.float32(limit * 2.0**-23)).reshape(shape)


def cells(count: int, side: int) -> np.ndarray:
    """Draws pictures of one cell each, uint8 [count, side, side, 3]: plasma, a disc with a darker disc in it, noise.

    Whole numbers alone, so that pixels are equal everywhere; a picture depends on its index and the side, not on count.
    """
    row, column = np.arange(side, dtype=np.int32)[:, np.newaxis], np.arange(side, dtype=np.int32)
    images = np.empty([count, side, side, 3], np.uint8)
    for index in range(count):
        draw = scrambled(np.arange(16 * index, 16 * index + 16, dtype=np.uint32), 1).astype(np.int64)
        spread = side // 8 + 1
        y, x = (int(side // 2 + word % (2 * spread) - spread) for word in draw[:2])
        radius = int(side // 4 + draw[2] % (side // 6 + 1))
        distance = (row - y) ** 2 + (column - x) ** 2
        within = int(radius // 2 + draw[3] % (radius // 4 + 1))
        colours = [np.array([base + int(word % 32) for base, word in zip(bases, draw[at:at + 3], strict=True)])
                   for bases, at in (((208, 192, 184), 4), ((168, 136, 176), 7), ((88, 48, 128), 10))]
        picture = np.where((distance < radius**2)[..., np.newaxis], colours[1], colours[0])
        picture = np.where((distance < within**2)[..., np.newaxis], colours[2], picture)
        words = scrambled(np.arange(side * side, dtype=np.uint32) + np.uint32(index * side * side % 2**32), 2)
        words = words.reshape(side, side, 1) >> np.array([0, 8, 16], np.uint32)
        images[index] = picture + (words % NOISE).astype(np.int64)
    return images


def made(rule: Mapping[str, Any]) -> np.ndarray:
    """Returns a program's input.

    Args:
      rule: `shape`, `dtype`, and `rule`, one of `cells`; `count`, 0, 1, 2, ... modulo `modulo` (0: none); `fill`, all
        of `value`; `values`, those in `value`; `uniform`, of `stream` and `limit`.

    Raises:
      ValueError: another rule.
    """
    shape, dtype = tuple(rule["shape"]), np.dtype(rule["dtype"])
    if rule["rule"] == "cells":
        return cells(shape[0], shape[1])
    if rule["rule"] == "count":
        numbers = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
        return numbers % rule["modulo"] if rule["modulo"] else numbers
    if rule["rule"] == "fill":
        return np.full(shape, rule["value"], dtype)
    if rule["rule"] == "values":
        return np.array(rule["value"], dtype).reshape(shape)
    if rule["rule"] == "uniform":
        return uniform(shape, stream=rule["stream"], limit=rule["limit"])
    raise ValueError(f"expected rule cells, count, fill, values or uniform, received {rule['rule']!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How outputs compare with TensorFlow's: whether they pass, figures for the JSON, and words for the table."""

    passes: bool
    figures: dict[str, float]
    words: str


def checksums(images: np.ndarray) -> np.ndarray:
    """Returns a CRC-32 of each image, uint32 [B], from uint8 [B, H, W, 3]."""
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)


def check_images(found: np.ndarray, expected: Mapping[str, np.ndarray]) -> Agreement:
    """Compares grey levels.

    Args:
      found: float [B, H, W, 3].
      expected: `checksums` of the first B images or more, and of those at `index` all `pixels` (uint8).
    """
    whole = bool(np.isfinite(found).all())
    levels = np.clip(np.rint(np.nan_to_num(found)), 0, 255).astype(np.uint8)
    equal = float((checksums(levels) == expected["checksums"][:len(levels)]).mean())
    index = expected["index"][expected["index"] < len(levels)]
    apart = np.abs(levels[index].astype(np.int32) - expected["pixels"][:len(index)])
    within = float((apart <= 1).mean())
    figures = {"images_equal": equal, "pixels_equal": float((apart == 0).mean()), "pixels_within_one": within}
    words = "all equal" if equal == 1 else f"{equal:.1%} of images equal, {within:.3%} of pixels within 1"
    return Agreement(whole and within >= WITHIN, figures, words)


def norms(tensors: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the Euclidean norm of each tensor, float64 [n]."""
    return np.array([np.linalg.norm(np.asarray(tensor, np.float64).ravel()) for tensor in tensors])


def check_step(outputs: Sequence[np.ndarray], expected: Mapping[str, np.ndarray],
               tolerance: Mapping[str, float]) -> Agreement:
    """Compares a training step.

    Args:
      outputs: the step's float32 [5] (loss summed over the images, images, how many are right, norm of all gradients,
        skipped), then the updated variables.
      expected: the step's `result`, and `norms` and `names` of the variables.
      tolerance: relative, of `loss`, `gradient` (its norm), `moments` (the median over the optimizer's running means,
        which after one step are the gradients) and `weights` (the largest over all trained tensors).
    """
    result, wanted = np.asarray(outputs[0], np.float64), np.asarray(expected["result"], np.float64)
    names = [str(name) for name in expected["names"]]
    apart = np.abs(norms(outputs[1:]) - expected["norms"]) / np.maximum(expected["norms"], 1e-6)
    moments = np.array([name.endswith("_momentum") for name in names])
    weights = np.array(["adam" not in name and expected["norms"][at] > 1e-2 for at, name in enumerate(names)])
    figures = {"loss": float(abs(result[0] - wanted[0]) / abs(wanted[0])),
               "gradient": float(abs(result[3] - wanted[3]) / abs(wanted[3])),
               "moments": float(np.median(apart[moments])), "weights": float(np.max(apart[weights]))}
    passes = all(figures[name] <= tolerance[name] for name in tolerance)  # false for NaN, too
    return Agreement(passes, {name: value if math.isfinite(value) else -1.0 for name, value in figures.items()},
                     ", ".join(f"{name} {value:.0e}" for name, value in figures.items()))


# ---------------------------------------------------------------------------------------------------------------------
# Clocks
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Contestant:
    """One implementation of one case: `run(times)` does the work so many times and returns the seconds it took."""

    case: str
    implementation: str
    images: int
    run: Callable[[int], float]
    about: Row = dataclasses.field(default_factory=dict)


def blocked(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Callable[[int], float]:
    """Returns a `run` that queues calls and waits for the last one's result."""
    def run(times: int) -> float:
        began = time.perf_counter()
        last = None
        for _ in range(times):
            last = call()
        wait(last)
        return time.perf_counter() - began

    return run


def race(contestants: Sequence[Contestant], *, samples: int, seconds: float, baseline: str = "") -> list[Row]:
    """Times contestants in turns, A B C and C B A.

    Args:
      contestants: who takes part.
      samples: runs of each; fewer (but one) of who takes longer than `seconds` for one call.
      seconds: of a run, about.
      baseline: a case, by whose rate those of the others are divided, turn by turn (`part_of_baseline`).
    """
    times, counts = [], []
    for each in contestants:
        once = each.run(1)  # a warm-up, too
        some = max(1, min(8, int(seconds / once)))
        once = max(each.run(some) / some, 1e-6)
        times.append(max(1, round(seconds / once)))
        counts.append(max(1, min(samples, int(2 * samples * seconds / once))))
    rates: list[dict[int, float]] = [{} for _ in contestants]
    for turn in range(max(counts, default=0)):
        for at, each in list(enumerate(contestants))[::-1 if turn % 2 else 1]:
            if turn < counts[at]:
                rates[at][turn] = times[at] * each.images / each.run(times[at])
    base = next((own for each, own in zip(contestants, rates, strict=True) if each.case == baseline), None)
    rows = []
    for each, own in zip(contestants, rates, strict=True):
        row = {"suite": "stablehlo", "case": each.case, "implementation": each.implementation, "images": each.images,
               "images_per_second": quartiles(list(own.values()), 3), "samples": len(own), **each.about}
        if base is not None and own is not base:
            row["part_of_baseline"] = quartiles([own[turn] / base[turn] for turn in own if turn in base], 4)
        rows.append(row)
    return rows


def quartiles(values: Sequence[float], digits: int) -> dict[str, float]:
    """Returns `median`, `q1` and `q3`, rounded."""
    q1, median, q3 = (round(float(value), digits) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "q1": q1, "q3": q3}


# ---------------------------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------------------------


def load(text: str, device: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Compiles StableHLO for a device; returns a call from arrays on it to a list of arrays on it.

    JAX has no public way to run somebody else's program, and its private ones differ: a module since 0.7, its bytes
    before, and one method for both steps until 0.5.

    Raises:
      RuntimeError: none of the ways that are known works, with each one's reason.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    client, options = device.client, xla_client.CompileOptions()
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        ways: tuple[Callable[[], Any], ...] = (
            lambda: client.compile_and_load(module, xla_client.DeviceList((device,)), options),
            lambda: client.compile_and_load(mlir.module_to_bytecode(module), xla_client.DeviceList((device,)), options),
            lambda: client.compile(mlir.module_to_bytecode(module), options))
        reasons = []
        for way in ways:
            try:
                return functools.partial(_execute, way())
            except (AttributeError, TypeError) as error:  # of another version; XLA's own errors are no answer to that
                reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    raise RuntimeError("this JAX offers no way that is known here: " + "; ".join(reasons))


def _execute(program: Any, inputs: Sequence[Any]) -> list[Any]:
    if hasattr(program, "execute"):
        return list(program.execute(list(inputs)))
    return [shards[0] for shards in program.execute_sharded(list(inputs)).disassemble_into_single_device_arrays()]


class Programs:
    """The programs of a folder on one device; inputs that are alike lie there once."""

    def __init__(self, folder: pathlib.Path, device: Any) -> None:
        self._folder, self._device = folder, device
        self._inputs: dict[str, Any] = {}

    def compile(self, entry: Mapping[str, Any]) -> tuple[Callable[[], list[Any]], Row]:
        """Returns a call of a program with its inputs, and its row's `compile_seconds`.

        Raises:
          Exception: whatever JAX says where it cannot parse, compile or run it.
        """
        text = gzip.decompress((self._folder / entry["program"]).read_bytes()).decode()
        began = time.perf_counter()
        program = load(text, self._device)
        about: Row = {"compile_seconds": round(time.perf_counter() - began, 3)}
        inputs = [self._placed(rule) for rule in entry["inputs"]]
        return lambda: program(inputs), about

    def check(self, entry: Mapping[str, Any], outputs: Sequence[Any]) -> Agreement:
        """Compares a program's outputs with those that lie in the folder."""
        with np.load(self._folder / entry["expected"], allow_pickle=False) as file:
            expected = dict(file)
        if entry["kind"] == "step":
            return check_step([np.asarray(each) for each in outputs], expected, entry["tolerance"])
        return check_images(np.asarray(outputs[0]), expected)

    def _placed(self, rule: Mapping[str, Any]) -> Any:
        import jax
        name = json.dumps(rule, sort_keys=True)
        if name not in self._inputs:
            self._inputs[name] = jax.device_put(made(rule), self._device)
        return self._inputs[name]


def bandwidth(device: Any) -> float:
    """Returns the bytes per second that a device reads and writes while it adds 1 to a large float32 array."""
    import jax
    size = 2**28 if device.platform != "cpu" else 2**26  # values, hence 1 GiB or 256 MiB
    array = jax.device_put(np.zeros(size, np.float32), device)
    add = jax.jit(lambda x: x + 1)
    run = blocked(lambda: add(array), jax.block_until_ready)
    run(3)
    return 8 * size / min(run(10) / 10 for _ in range(5))


# ---------------------------------------------------------------------------------------------------------------------
# Peers
# ---------------------------------------------------------------------------------------------------------------------


class Torch:
    """The same work in torchvision v2 and Kornia, on the device that JAX works on: the first GPU, or the CPU.

    `missing` says, for each that takes no part, why; `failed`, for each case.
    """

    def __init__(self, kind: str) -> None:
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._cases: dict[str, Callable[[float, int], dict[str, Callable[[], Callable[[Any], Any]]]]] = {}
        try:
            import torch
        except ImportError:
            self.missing["torchvision, kornia"] = "PyTorch is not installed"
            return
        if kind != "cpu" and not torch.cuda.is_available():
            self.missing["torchvision, kornia"] = f"PyTorch {torch.__version__} sees no GPU"
            return
        self._torch, self._device = torch, torch.device("cpu" if kind == "cpu" else "cuda:0")
        self._images: tuple[tuple[int, int], Any] = ((0, 0), None)
        self.versions["torch"] = torch.__version__
        for name, cases in (("torchvision", torchvision_cases), ("kornia", kornia_cases)):
            try:
                self.versions[name] = __import__(name).__version__
                self._cases[name] = cases
            except (ImportError, RuntimeError) as error:  # RuntimeError: built for another PyTorch
                self.missing[name] = f"{name} cannot be imported: {str(error).splitlines()[0]}"

    def contestants(self, entries: Sequence[Mapping[str, Any]]) -> list[Contestant]:
        """Returns the peers of each augmentation that work, on the same pictures."""
        found = []
        for entry in (each for each in entries if each["kind"] != "step" and self._cases):
            images = self._pictures(*entry["inputs"][0]["shape"][:2])
            for name, cases in self._cases.items():
                make = cases(entry.get("strength", 0.0), images.shape[-1]).get(entry["name"])
                if make is None:
                    continue
                try:
                    work = make()
                    with self._torch.no_grad():
                        work(images)
                except Exception as error:  # another version's arguments: the other cases are worth having
                    self.failed[f"{name}, {entry['name']}"] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
                    continue
                found.append(Contestant(entry["name"], name, entry["images"], self._timed(work, images)))
        return found

    def _pictures(self, count: int, side: int) -> Any:
        if self._images[0] != (count, side):
            pixels = np.ascontiguousarray(cells(count, side).transpose(0, 3, 1, 2))
            self._images = ((count, side), self._torch.from_numpy(pixels).to(self._device))
        return self._images[1]

    def _timed(self, work: Callable[[Any], Any], images: Any) -> Callable[[int], float]:
        torch = self._torch

        def run(times: int) -> float:
            with torch.no_grad():
                if self._device.type == "cpu":
                    return blocked(lambda: work(images), lambda last: last)(times)
                began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                began.record()
                for _ in range(times):
                    work(images)
                ended.record()
                ended.synchronize()
                return float(began.elapsed_time(ended)) / 1000

        return run


def torchvision_cases(by: float, side: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """Returns what makes torchvision's version of each case, on uint8 [B, 3, side, side]; `by`: an op's strength."""
    import torch
    from torchvision.transforms import InterpolationMode, v2
    from torchvision.transforms.v2 import functional as f
    bilinear, hole = InterpolationMode.BILINEAR, round(by * side)
    return {
        V2S: lambda: v2.Compose([
            v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomRotation(180, bilinear),
            v2.RandomAffine(0, scale=(0.8, 1.2), interpolation=bilinear),
            v2.RandomChoice([v2.AugMix(severity=3), v2.RandAugment(3, 4)]),
            v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
            v2.RandomChoice([v2.RandomChannelPermutation(), v2.ColorJitter(0.3), v2.ColorJitter(hue=0.3)])]),
        RANDAUGMENT: lambda: v2.RandAugment(2, 9),
        AUGMIX: lambda: v2.AugMix(severity=3),
        "rotate": lambda: lambda x: f.rotate(x, by, bilinear),
        "brightness": lambda: lambda x: f.adjust_brightness(x, 1 + by),
        "hue": lambda: lambda x: f.adjust_hue(x, by),
        "sharpness": lambda: lambda x: f.adjust_sharpness(x, 1 + by),
        "cutout": lambda: lambda x: f.erase(x, (side - hole) // 2, (side - hole) // 2, hole, hole,
                                            x.new_zeros([1, 1, 1])),
        "blur": lambda: lambda x: f.gaussian_blur(x, [2 * math.ceil(3 * by) + 1] * 2, [by, by]),
        "elastic": lambda: v2.ElasticTransform(alpha=by * side / 2, sigma=5.0),
        "noise": lambda: lambda x: f.gaussian_noise(f.to_dtype(x, torch.float32, scale=True), sigma=by / 255),
    }


def kornia_cases(by: float, side: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """Returns what makes Kornia's version of each case, from uint8 [B, 3, side, side] to float32 in 0..1."""
    import kornia
    import torch
    from kornia import augmentation as k
    from kornia.augmentation.auto import RandAugment

    def of(work: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        """Gives work float images and, for each, the strength."""
        return lambda x: work(x.to(torch.float32) / 255, torch.full([x.shape[0]], by, device=x.device))

    def drawn(module: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: module(x.to(torch.float32) / 255)

    return {
        V2S: lambda: drawn(k.ImageSequential(
            k.RandomHorizontalFlip(), k.RandomVerticalFlip(), k.RandomRotation(180.0, p=1.0),
            k.RandomAffine(0.0, scale=(0.8, 1.2), p=1.0), RandAugment(3, 12),  # of 30, where others have 10
            k.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), p=1.0),
            k.ImageSequential(k.RandomChannelShuffle(p=1.0), k.RandomBrightness((0.7, 1.3), p=1.0),
                              k.ColorJiggle(hue=0.3, p=1.0), random_apply=1))),
        RANDAUGMENT: lambda: drawn(RandAugment(2, 27)),
        "rotate": lambda: of(kornia.geometry.transform.rotate),
        "brightness": lambda: of(lambda x, each: kornia.enhance.adjust_brightness_accumulative(x, 1 + each)),
        "hue": lambda: of(lambda x, each: kornia.enhance.adjust_hue(x, 2 * math.pi * each)),
        "sharpness": lambda: of(lambda x, each: kornia.enhance.sharpness(x, 1 + each)),
        "cutout": lambda: drawn(k.RandomErasing(scale=(by * by, by * by), ratio=(1.0, 1.0), p=1.0)),
        "blur": lambda: of(lambda x, each: kornia.filters.gaussian_blur2d(
            x, 2 * math.ceil(3 * by) + 1, torch.stack([each, each], dim=1))),
        "motion_blur": lambda: of(lambda x, each: kornia.filters.motion_blur(
            x, 2 * int(by / 2) + 1, each, torch.zeros_like(each))),
        "elastic": lambda: drawn(k.RandomElasticTransform(sigma=(5.0, 5.0), alpha=(by / side, by / side), p=1.0)),
        "noise": lambda: drawn(k.RandomGaussianNoise(std=by / 255, p=1.0)),
        "jpeg": lambda: drawn(k.RandomJPEG((by, by), p=1.0)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Goals and what people read
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal, whether it is reached (None: not measured), and the figures."""

    goal: str
    reached: bool | None
    figures: str

    def word(self) -> str:
        """Returns `reached`, `MISSED` or `not measured`."""
        return {True: "reached", False: "MISSED", None: "not measured"}[self.reached]


def goals(rows: Sequence[Row], kind: str) -> list[Goal]:
    """Judges the goals, which are a GPU's, each by the largest batch that was timed.

    Args:
      rows: what was timed; `of_bandwidth` where the programs' bytes are known.
      kind: JAX's name of the platform.
    """
    of: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["images"]):
        if "images_per_second" in row:
            of[row["case"], row["implementation"]] = row
    judged = []

    def rate(case: str, implementation: str) -> float:
        return float(of[case, implementation]["images_per_second"]["median"])

    def judge(goal: str, needed: Sequence[tuple[str, str]], value: Callable[[], tuple[bool, str]]) -> None:
        lacking = [f"{case} in {name}" for case, name in needed if (case, name) not in of]
        if lacking:
            judged.append(Goal(goal, None, f"no row of {', '.join(lacking)}"))
        elif kind in ("cpu", "tpu"):
            judged.append(Goal(goal, None, f"a goal for GPUs; on this {kind.upper()}: {value()[1]}"))
        else:
            judged.append(Goal(goal, *value()))

    for peer, title in (("torchvision", "torchvision v2"), ("kornia", "Kornia")):
        def times(peer: str = peer) -> tuple[bool, str]:
            ratio = rate(V2S, "xla") / rate(V2S, peer)
            return ratio >= OVER_PEERS, f"{rate(V2S, 'xla'):,.0f} against {rate(V2S, peer):,.0f} images/s: {ratio:.1f}x"
        judge(f"v2s policy at least {OVER_PEERS:g}x {title}'s", [(V2S, "xla"), (V2S, peer)], times)
    judge(f"RandAugment(2) at least {IMAGES_PER_SECOND / 1e6:g} million images/s", [(RANDAUGMENT, "xla")],
          lambda: (rate(RANDAUGMENT, "xla") >= IMAGES_PER_SECOND, f"{rate(RANDAUGMENT, 'xla'):,.0f} images/s"))
    ops = [case for (case, name), row in of.items() if name == "xla" and row.get("kind") == "op"]

    def parts() -> tuple[bool, str]:
        found = {case: float(of[case, "xla"]["of_bandwidth"]) for case in ops}
        return (min(found.values()) >= OF_BANDWIDTH, ", ".join(f"{case} {part:.0%}" for case, part in found.items()))

    judge(f"every primitive at least {OF_BANDWIDTH:.0%} of the bandwidth limit",
          [(case, "xla") for case in ops] or [("a primitive", "xla")], parts)
    for precision in ("float32", "mixed_bfloat16"):
        def cost(precision: str = precision) -> tuple[bool, str]:
            part = of[f"{STEP}, {precision}", "xla"]["part_of_baseline"]
            return (1 - part["median"] <= OF_STEP,
                    f"{1 - part['median']:.1%} (quartiles {1 - part['q3']:.1%} to {1 - part['q1']:.1%})")
        judge(f"augmentation at most {OF_STEP:.0%} of the V2-S step, {precision}",
              [(f"{name}, {precision}", "xla") for name in (STEP, PLAIN_STEP)], cost)
    return judged


def line(row: Row) -> str:
    """Returns a row of the table."""
    name = f"{row['case']} @{row['images']}"
    if "failed" in row:
        return f"{name:<44}{row['implementation']:<13}FAILED: {row['failed']}"
    rate = row["images_per_second"]
    bound = f"{row['of_bandwidth']:.1%}" if "of_bandwidth" in row else ""
    seconds = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
    equal = "" if "equals" not in row else row["equals"]["words"] + ("" if row["equals"]["passes"] else "  WRONG")
    return (f"{name:<44}{row['implementation']:<13}{rate['median']:>13,.1f}{rate['q1']:>13,.1f}{rate['q3']:>13,.1f}"
            f"{row['samples']:>4}{seconds:>10}{bound:>9}  {equal}").rstrip()


HEAD = (f"{'case @batch':<44}{'by':<13}{'images/s':>13}{'q1':>13}{'q3':>13}{'n':>4}{'compile s':>10}{'of limit':>9}"
        "  equals TensorFlow's")


def chosen(programs: Sequence[Mapping[str, Any]], *, kind: str, layout: str = "auto", only: str = ""
           ) -> list[list[Mapping[str, Any]]]:
    """Returns the programs to run in groups, whose members are compiled and raced together, in the manifest's order.

    Args:
      programs: of the manifest.
      kind: JAX's name of the platform.
      layout: `chunks`, `wide`, or `auto`: chunks on a CPU, with the smaller batches alone; wide elsewhere.
      only: a regular expression; those in whose `case @batch` it occurs.
    """
    wanted = layout if layout != "auto" else "chunks" if kind == "cpu" else "wide"
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in programs:
        if entry["layout"] in (wanted, "any") and re.search(only, f"{entry['name']} @{entry['images']}"):
            groups.setdefault(entry["group"], []).append(entry)
    return sorted(groups.values(), key=lambda group: kind == "cpu" and group[0]["kind"] == "step")  # slow there: last


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=pathlib.Path(__file__).parent,
                        help="holds manifest.json (default: this file's folder)")
    parser.add_argument("--json", type=pathlib.Path, help="also write rows, goals, versions and hardware to this file")
    parser.add_argument("--samples", type=int, default=9, help="timed runs of each, at most (default 9)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a timed run, about (default 0.3)")
    parser.add_argument("--minutes", type=float, default=6.0,
                        help="begin no further group of programs after so long (default 6)")
    parser.add_argument("--only", type=pattern, default="", help="only programs in whose `case @batch` this occurs")
    parser.add_argument("--layout", choices=("auto", "chunks", "wide"), default="auto",
                        help="a cache's worth of images at a time, or one wide launch (default auto: as the device "
                             "likes it)")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 1) // 2)),
                        help="programs that are compiled at once")
    parser.add_argument("--no-peers", action="store_true", help="without torchvision and Kornia")
    args = parser.parse_args(argv)
    for name in ("samples", "seconds", "minutes", "jobs"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name}: expected more than 0, received {getattr(args, name)}")
    return args


def manifest_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what `python -m benchmarks export` wrote about a folder's programs.

    Raises:
      SystemExit: there is none, or it is cut off or another program's; the message says which.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if manifest["programs"]:
            return {"tensorflow": manifest["tensorflow"], **manifest}
        found = "one without programs"
    except OSError as error:
        found = str(error.strerror)
    except (ValueError, KeyError, TypeError):
        found = "another file or a part of one"
    sys.exit(f"error: {path}: expected a manifest of programs, received {found}; try python -m benchmarks export")


def pattern(text: str) -> str:
    """Returns a regular expression of the command line.

    Raises:
      ArgumentTypeError: it is none.
    """
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, received {text!r}: {error}") from None
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the programs of a folder; returns 1 where one fails or is wrong."""
    args = arguments(argv)
    manifest = manifest_of(args.folder)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory of the same GPU
    try:
        import jax
    except ImportError as error:
        sys.exit(f"error: expected JAX, received {error}; try pip install jax, on a GPU pip install 'jax[cuda12]'")
    jax.config.update("jax_enable_x64", True)  # sample ids are int64
    began = time.monotonic()
    device = jax.devices()[0]
    moved = bandwidth(device)
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; copies {moved / 1e9:,.1f} GB/s; programs "
          f"of TensorFlow {manifest['tensorflow']}")
    torch = None if args.no_peers else Torch("cpu" if device.platform == "cpu" else "gpu")
    for peer, why in (torch.missing if torch else {"torchvision, kornia": "--no-peers"}).items():
        print(f"{peer}: not timed; {why}")
    print(HEAD)
    rows: list[Row] = []
    left = []
    programs = Programs(args.folder, device)
    for group in chosen(manifest["programs"], kind=device.platform, layout=args.layout, only=args.only):
        if time.monotonic() - began > 60 * args.minutes:
            left += [f"{entry['name']} @{entry['images']}" for entry in group]
            continue
        found = _raced(group, programs, torch, args)
        for row in found:
            if "bytes_per_image" in row and "images_per_second" in row:
                row["of_bandwidth"] = round(row["images_per_second"]["median"] * row["bytes_per_image"] / moved, 4)
            print(line(row), flush=True)
        rows += found
    for case, why in (torch.failed if torch else {}).items():
        print(f"{case}: not timed; {why}")
    if left:
        print(f"not run, {args.minutes:g} minutes being over (--minutes): {', '.join(left)}")
    judged = goals(rows, device.platform)
    for goal in judged:
        print(f"{goal.word():<13}{goal.goal}: {goal.figures}")
    if args.json:
        about = {"device": device.device_kind, "platform": device.platform, "host": platform.platform(),
                 "cores": os.cpu_count(), "copy_bytes_per_second": round(moved), "versions": {
                     "jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version(),
                     "tensorflow": manifest["tensorflow"], **(torch.versions if torch else {})},
                 "missing": {**torch.missing, **torch.failed} if torch else {}, "not_run": left, "rows": rows,
                 "goals": [{"goal": each.goal, "verdict": each.word(), "figures": each.figures} for each in judged]}
        args.json.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")
    return 1 if any("failed" in row or not row.get("equals", {"passes": True})["passes"] for row in rows) else 0


def _raced(group: Sequence[Mapping[str, Any]], programs: Programs, torch: Torch | None,
           args: argparse.Namespace) -> list[Row]:
    """Compiles, checks and races a group; a program that fails has a row that says so."""
    import jax
    failed: list[Row] = []
    contestants = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        compiled = [pool.submit(programs.compile, entry) for entry in group]
    for entry, future in zip(group, compiled, strict=True):
        known = {"kind": entry["kind"], "layout": entry["layout"]}
        try:
            call, about = future.result()
            agreement = programs.check(entry, call())
        except Exception as error:  # whatever it is, the other programs' figures are worth having
            failed.append({"suite": "stablehlo", "case": entry["name"], "implementation": "xla",
                           "images": entry["images"], **known,
                           "failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]})
            continue
        about |= {**known, "equals": dataclasses.asdict(agreement)}
        if entry["bytes_per_image"]:
            about["bytes_per_image"] = entry["bytes_per_image"]
        run = blocked(call, jax.block_until_ready)
        contestants.append(Contestant(entry["name"], "xla", entry["images"], run, about))
    if torch:
        contestants += torch.contestants(group)
    return failed + race(contestants, samples=args.samples, seconds=args.seconds,
                         baseline=next((entry["baseline"] for entry in group if entry.get("baseline")), ""))


if __name__ == "__main__":
    sys.exit(main())
