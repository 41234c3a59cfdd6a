"""Fuzzes the native op: `python tests/augment/fuzz_native.py --seconds=60 --sanitize=address,undefined`, or `thread`.

Valid programs of every kind of step on images of odd sizes, with parameters that are NaN, infinite, huge or negative,
must give whole grey levels, the same ones for any number of threads and with either vector instruction set. Broken ones
must be refused with a word on why. Every array is of exactly the size that the program says, so that a sanitizer sees
what reads or writes past one. A case is all that its seed and number say: `--seed=S --first=N --cases=1` repeats it.

The engine runs in a process without TensorFlow, into which the sanitizers' runtimes are preloaded.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import native_plain
from native_plain import CODES, OUTPUTS, STEPS, STYLES, WORDS, Library, Program, Refused, levels

# -O1 keeps lines and variables as they are written; g++ itself does not fuse or vectorise there.
FLAGS = {"address,undefined": ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
                               "-fsanitize=address,undefined,float-cast-overflow"),
         "thread": ("-O1", "-g1", "-fsanitize=thread"), "": ()}
_RUNTIMES = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",), "": ()}

_SIDES = (1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 48, 63, 64, 65, 96, 97, 129)
_FLOATS = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e30, -1e9, 2.0**31, -2.0**31, 2.0**24, 1e-45, -0.0, 0.0, 1.0,
           -1.0, 255.5)
_WHOLE = (-2**31, -2**31 + 1, -1000, -1, 0, 1, 2, 49, 50, 99, 100, 255, 2**16, 2**24 + 1, 2**30, 2**31 - 1)
_LARGE = 1 << 24  # values; a larger batch runs once
_SIDE = 13  # of a quadrant: the engine's radius and one


@dataclasses.dataclass
class Case:
    """A program and what it runs on; images are uint8 [B, H, W, 3]."""

    program: Program
    images: np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------


class Writer:
    """Writes random steps for images of one batch; `hostile` is the share of numbers that no op would draw."""

    def __init__(self, random: np.random.Generator, shape: Sequence[int], hostile: float) -> None:
        self.random, self.hostile = random, hostile
        self.batch, self.height, self.width = shape
        self.program = Program()

    def _rows(self, repeats: int) -> int:
        return 1 if self.random.random() < 0.3 else self.batch * repeats

    def floats(self, repeats: int, plain: Callable[[int], np.ndarray]) -> np.ndarray:
        """Returns float32 [rows, width], of which `plain` gives as many rows as asked for."""
        values = np.asarray(plain(self._rows(repeats)), np.float32)
        odd = self.random.random(values.shape) < self.hostile
        values[odd] = self.random.choice(np.array(_FLOATS, np.float32), int(odd.sum()))
        return values

    def whole(self, repeats: int, width: int, low: int, high: int) -> np.ndarray:
        """Returns int32 [rows, width]."""
        values = self.random.integers(low, high, [self._rows(repeats), width], dtype=np.int32)
        odd = self.random.random(values.shape) < self.hostile
        values[odd] = self.random.choice(np.array(_WHOLE, np.int32), int(odd.sum()))
        return values

    def near(self, *values: float, by: float) -> Callable[[int], np.ndarray]:
        """Returns what draws rows around one."""
        return lambda rows: np.array(values) + self.random.normal(0, by, [rows, len(values)])

    def quadrants(self, rows: int) -> np.ndarray:
        """Returns kernels' quadrants [rows, 169]: separable or not, of any radius."""
        random, made = self.random, np.zeros([rows, _SIDE, _SIDE])
        for row in range(rows):
            reach = random.integers(1, _SIDE + 1)
            bell = np.exp(-0.5 * (np.arange(reach) / random.uniform(0.3, 6)) ** 2)
            part = np.outer(bell, bell) if random.random() < 0.5 else random.random([reach, reach])
            total = part[0, 0] + 2 * part[0, 1:].sum() + 2 * part[1:, 0].sum() + 4 * part[1:, 1:].sum()
            made[row, :reach, :reach] = part / total
        return made.reshape(rows, _SIDE**2)

    def step(self, code: str, repeats: int = 1) -> None:
        """Adds a step; inside a repeat there are `repeats` rows for each image."""
        random, batch = self.random, self.batch
        style: list[int] = []
        fields: tuple[np.ndarray, ...]
        if code in ("warp", "elastic"):
            style = [int(random.integers(3)), int(random.integers(256)), int(random.integers(2))]
        if code == "warp":
            fields = (self.floats(repeats, lambda rows: np.eye(3).reshape(1, 9)
                                  + random.normal(0, 1, [rows, 9]) * [.5, .5, 9, .5, .5, 9, .01, .01, .1]),)
        elif code == "tone":
            curve = random.integers(0, 256, [self._rows(repeats), random.choice([256, 768])], dtype=np.uint8)
            fields = (curve, self.whole(repeats, 1, 0, 4), self.floats(repeats, self.near(1, by=1)))
        elif code == "mix":
            fields = (self.floats(repeats, self.near(1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, by=0.5)),)
        elif code == "stain":
            logs = np.log(np.maximum(np.arange(256), 0.5))[np.newaxis]
            fields = (self.floats(repeats, self.near(1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, by=0.2)),
                      self.floats(repeats, lambda rows: np.repeat(logs, rows, axis=0)))
        elif code == "filter":
            fields = (self.floats(repeats, self.near(1, by=1)),)
        elif code == "mask":
            fields = (self.floats(repeats, self.near(0.7, 0.7, 3, 5, 9, 4, 4, 128, by=2)),)
        elif code == "blur":
            fields = (self.floats(repeats, self.quadrants),)
        elif code == "streak":
            fields = (self.floats(repeats, self.quadrants), self.floats(repeats, self.quadrants))
        elif code == "mosaic":
            fields = (self.whole(repeats, 1, 1, self.height + 2), self.whole(repeats, 1, 1, self.width + 2))
        elif code == "elastic":
            reach = int(random.choice([0, 1, 2, 5, 16, 40, 150], p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.07, 0.03]))
            bell = np.exp(-8 * (np.arange(-reach, reach + 1) / (reach + 1)) ** 2)
            fields = (self.keys(repeats), self.floats(repeats, self.near(3, by=3)),
                      self.floats(repeats, lambda rows: np.repeat(bell[np.newaxis] / bell.sum(), rows, axis=0)),
                      self.floats(repeats, self.near(5, by=1)))
        elif code == "noise":
            fields = (self.keys(repeats), self.floats(repeats, self.near(10, by=20)))
        else:
            assert code == "jpeg", code
            fields = (self.whole(repeats, 1, 1, 101), self.tables(repeats))
        self.program.step(code, *fields, on=random.random([batch * repeats]) < 0.8, style=style)

    def keys(self, repeats: int) -> np.ndarray:
        return self.random.integers(-2**31, 2**31, [self._rows(repeats), 2], dtype=np.int32)

    def tables(self, repeats: int) -> np.ndarray:
        """Returns a cosine transform of 13 bits and quantisation steps; or any numbers whatever, at a hostile share."""
        k, x = np.mgrid[:8, :8]
        cosines = np.where(k, np.sqrt(2), 1) * np.cos((2 * x + 1) * k * np.pi / 16) * 2**13
        table = np.concatenate([np.rint(cosines).ravel(), self.random.integers(1, 122, 128)]).astype(np.int32)
        tables = np.repeat(table[np.newaxis], self._rows(repeats), axis=0)
        odd = self.random.random(tables.shape) < self.hostile * (self.random.random() < 0.5)
        tables[odd] = self.random.choice(np.array(_WHOLE, np.int32), int(odd.sum()))
        return tables

    def opening(self, code: str) -> int:
        """Adds the beginning of a repeat or a mixture; returns how many rows its steps have for an image."""
        random, count = self.random, int(self.random.integers(1, 5))
        if code == "repeat":
            self.program.step("repeat", style=[count])
            return count
        passes = int(random.integers(1, 4))
        weights = self.floats(1, lambda rows: random.dirichlet([1.0] * count, rows))
        self.program.step("mixture", weights, self.floats(1, self.near(0.5, by=0.3)),
                          self.whole(1, count, 0, passes + 1), on=random.random([self.batch]) < 0.9,
                          style=[count, passes])
        return count * passes


def images_for(random: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Returns uint8 [B, H, W, 3]: noise, or one colour."""
    if random.random() < 0.3:
        return np.full([*shape, 3], random.integers(0, 256, 3), np.uint8)
    return random.integers(0, 256, [*shape, 3], dtype=np.uint8)


def draw(random: np.random.Generator) -> Case:
    """Draws a valid program, of up to 64 steps, and a batch of up to 5 images."""
    shape = (int(random.integers(0, 6)), int(random.choice(_SIDES)), int(random.choice(_SIDES)))
    writer = Writer(random, shape, float(random.choice([0, 0.02, 0.3, 1])))
    wanted = int(random.choice([1, 2, 4, 8, STEPS], p=[0.4, 0.3, 0.2, 0.09, 0.01]))
    plain = CODES[:CODES.index("repeat")]
    while (left := wanted - len(writer.program.words) // WORDS) > 0:
        if left > 2 and random.random() < 0.4:
            repeats = writer.opening(str(random.choice(["repeat", "mixture"])))
            for code in random.choice(plain, random.integers(0, min(4, left - 1))):
                writer.step(str(code), repeats)
            writer.program.step("end")
        else:
            writer.step(str(random.choice(plain)))
    return Case(writer.program, images_for(random, shape))


def spoil(random: np.random.Generator, case: Case) -> None:
    """Changes words and operands at random; what comes of it may still be a program."""
    program = case.program
    for _ in range(random.integers(1, 4)):
        way = random.integers(5)
        if way == 0 and program.words:
            place = int(random.integers(len(program.words)))
            if place % WORDS:
                program.words[place] = int(random.choice([-2**63, -2**31, -1, 0, 1, 2, 3, 255, 256, 1024, 2**32 + 1,
                                                          2**63 - 1]))
            else:
                program.words[place] = int(random.integers(-1, len(CODES) + 1))
        elif way == 1:
            del program.words[random.integers(len(program.words) + 1):]
        elif way == 2 and program.operands:
            place = int(random.integers(len(program.operands)))
            program.operands[place] = program.operands[place][..., 1:]
        elif way == 3 and program.operands:
            place = int(random.integers(len(program.operands)))
            held = np.nan_to_num(program.operands[place], nan=0, posinf=1, neginf=0).clip(0, 1)
            program.operands[place] = held.astype(random.choice(["?", "u1", "i4", "f4", "f8"]))
        elif program.words:
            start = int(random.integers(len(program.words) // WORDS + 1)) * WORDS
            program.words[start:start] = [int(random.integers(len(CODES))), *[1] * STYLES, *[0] * (WORDS - STYLES - 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------------------------------


def check(library: Library, case: Case, random: np.random.Generator, sets: Sequence[str]) -> bytes:
    """Runs a program in every way; returns what the best instruction set wrote.

    Raises:
      Refused: by the engine.
      AssertionError: a number that is no grey level, or one that depends on threads or on the vectors' length.
    """
    large = case.images.size > _LARGE
    output, sets = ("uint8", sets[-1:]) if large else (str(random.choice(OUTPUTS)), sets)
    results = {}
    for name in sets:
        out = library.apply(case.program, case.images, output=output, threads=int(random.integers(-1, 9)),
                            instruction_set=name)
        shown = out if large else levels(out, output)
        assert large or ((shown == np.floor(shown)) & (shown >= 0) & (shown <= 255)).all(), f"{name}: no grey levels"
        results[name] = shown.astype(np.uint8).tobytes()
    if not large:
        again = library.apply(case.program, case.images, threads=1, instruction_set=sets[-1]).tobytes()
        assert again == results[sets[-1]], f"{sets[-1]}: {output} from threads, other levels than uint8 from one"
    if "avx512" in results and "avx2" in results:
        assert results["avx2"] == results["avx512"], "another result from vectors of 512 bits"
    return results[sets[-1]]


def fuzz(library: Library, seed: int, numbers: Sequence[int], seconds: float, trail: int) -> tuple[int, int, str]:
    """Runs cases until one fails or time is up; writes each one's number to the file `trail` before it runs.

    Returns:
      Cases run, programs refused, and a hash of all results.
    """
    sets = library.instruction_sets()
    ran = refused = 0
    digest, end = hashlib.sha256(), time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > end:
            break
        if trail >= 0:
            os.pwrite(trail, f"{number:<20}".encode(), 0)
        random = np.random.default_rng([seed, number])
        case = draw(random)
        spoiled = random.random() < 0.25
        if spoiled:
            spoil(random, case)
        try:
            digest.update(check(library, case, random, sets))
        except Refused:
            if not spoiled:
                raise
            refused += 1
        ran += 1
    return ran, refused, digest.hexdigest()


def save(path: pathlib.Path, case: Case) -> None:
    """Writes a case for `--replay`."""
    held: dict[str, Any] = {f"operand{number:03}": each for number, each in enumerate(case.program.operands)}
    np.savez_compressed(path, words=np.array(case.program.words, np.int64), images=case.images, **held)


def restore(path: pathlib.Path) -> Case:
    """Returns what `save` wrote."""
    with np.load(path) as held:
        names = sorted(name for name in held.files if name.startswith("operand"))
        return Case(Program(held["words"].tolist(), [held[name] for name in names]), held["images"])


class Unavailable(Exception):
    """A sanitizer that cannot be used here; the message says why."""


def environment(sanitize: str) -> dict[str, str]:
    """Returns the environment of a process that loads a library built with `FLAGS[sanitize]`.

    Raises:
      Unavailable: no runtime beside the compiler.
    """
    preloaded = []
    for name in _RUNTIMES[sanitize]:
        compiler = os.environ.get("CXX", "g++")
        try:
            found = subprocess.run([*compiler.split(), f"-print-file-name={name}"], capture_output=True, text=True,
                                   check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            raise Unavailable(f"{compiler} is not installed") from None
        if not os.path.isabs(found):
            raise Unavailable(f"{compiler} comes without {name}")
        preloaded.append(found)
    # Python's own leaks are not ours; memory is filled, so that what was never written shows up as another result.
    address = "detect_leaks=0:allocator_may_return_null=1:max_malloc_fill_size=1073741824"
    return {**os.environ, "LD_PRELOAD": " ".join(preloaded), "OPENBLAS_NUM_THREADS": "1",
            "ASAN_OPTIONS": f"{address}:malloc_fill_byte={os.environ.get('FILL_BYTE', '190')}"
                            f":max_allocation_size_mb={os.environ.get('MOST_MEGABYTES', '4096')}",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1", "TSAN_OPTIONS": "halt_on_error=1"}


def _process(library: pathlib.Path, sanitize: str, flags: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, __file__, f"--library={library}", *flags], text=True, capture_output=True,
                          check=False, env=environment(sanitize))


def probe(library: pathlib.Path, sanitize: str) -> None:
    """Loads a library in a process of its own.

    Raises:
      Unavailable: the sanitizer's runtime is missing, or does not start here.
    """
    tried = _process(library, sanitize, ["--cases=0"])
    if tried.returncode:
        raise Unavailable(f"{sanitize}: {(tried.stderr.strip().splitlines() or ['no word'])[-1]}")


def start(library: pathlib.Path, sanitize: str, *flags: str) -> str:
    """Runs this file on a library in a process of its own; returns what it printed.

    Raises:
      Unavailable: the sanitizer's runtime is missing.
      AssertionError: a finding; the message holds the case and the report.
    """
    with tempfile.NamedTemporaryFile() as trail:
        done = _process(library, sanitize, [*flags, f"--trail={trail.name}"])
        place = pathlib.Path(trail.name).read_text().strip()
    assert not done.returncode, f"--first={place} --cases=1 {' '.join(flags)}\n{done.stdout}{done.stderr[-6000:]}"
    return done.stdout


def main(argv: Sequence[str] | None = None) -> None:
    """Builds and starts a process; that one, which `--library` tells, runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after these")
    parser.add_argument("--cases", type=int, help="stop after these; default without end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--sanitize", default="", choices=sorted(FLAGS))
    parser.add_argument("--library", type=pathlib.Path, help="built already, with this sanitizer; runs it here")
    parser.add_argument("--replay", type=pathlib.Path, nargs="*", default=(), help="files of cases to run first")
    parser.add_argument("--trail", type=pathlib.Path, help="file for the number of the case that runs")
    given = parser.parse_args(argv)
    if given.library is None:
        with tempfile.TemporaryDirectory() as folder:
            sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
            library = native_plain.build(pathlib.Path(folder), flags=FLAGS[given.sanitize])
            try:
                probe(library, given.sanitize)
                print(start(library, given.sanitize, *(sys.argv[1:] if argv is None else argv)), end="")
            except (AssertionError, Unavailable) as wrong:
                sys.exit(str(wrong))
        return
    engine = Library(given.library)
    trail = os.open(given.trail, os.O_WRONLY) if given.trail else -1
    for path in given.replay:
        random = np.random.default_rng(0)
        print(path.stem, hashlib.sha256(check(engine, restore(path), random, engine.instruction_sets())).hexdigest())
    end = sys.maxsize if given.cases is None else given.first + given.cases
    ran, refused, digest = fuzz(engine, given.seed, range(given.first, end), given.seconds, trail)
    print(f"{ran} cases, {refused} of them refused; results {digest[:16]}")


if __name__ == "__main__":
    main()
