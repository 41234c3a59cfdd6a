"""The native op on what no policy draws: broken programs, hostile numbers, odd sizes; under sanitizers, on threads."""

import dataclasses
import hashlib
import pathlib
import sys

import numpy as np
import pytest

from bloodcell import augment
from bloodcell.augment.native import build, program

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import fuzz_native
import native_plain
from fuzz_native import Case, Writer
from native_plain import CODES, OUTPUTS, STYLES, WORDS, Library, Program, Refused, levels

pytestmark = pytest.mark.native
PLAIN = CODES[:CODES.index("repeat")]
V2S = ("flip | rotate(180) | zoom(0.2) | oneof(augmix(severity=3), randaugment(n=3, m=4)) "
       "| oneof(gridmask, cutout(0.5)) | oneof(channel_shuffle, channel_shift(0.3), hue(0.3))")
POLICIES = (V2S, "trivialaugment", "flip | augmix(severity=10)", "randaugment(2, 9) | jpeg(10)",
            "motion_blur(20) | blur(2) | pixelate(0.2) | elastic | stain(1) | noise(16) | equalize")
MOST_SIDE = 1 << 14  # as kMostSide in policy.h


# ---------------------------------------------------------------------------------------------------------------------
# The engine as it is built for use, and under sanitizers
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sanitized:
    """The engine under a sanitizer, in a process for each call."""

    path: pathlib.Path
    sanitize: str
    folder: pathlib.Path

    def fuzz(self, *flags: str) -> str:
        """Runs `fuzz_native`; returns what it printed, fails on a finding."""
        return fuzz_native.start(self.path, self.sanitize, *flags)

    def run(self, cases: dict[str, Case]) -> dict[str, str]:
        """Runs cases; returns a hash of each one's levels."""
        files = [self.folder / f"{name}.npz" for name in cases]
        for file, case in zip(files, cases.values(), strict=True):
            fuzz_native.save(file, case)
        lines = self.fuzz("--cases=0", "--replay", *map(str, files)).splitlines()[:len(files)]
        for file in files:
            file.unlink()
        return dict(line.split() for line in lines)


def _built(folder: pathlib.Path, name: str, flags: tuple[str, ...]) -> pathlib.Path:
    try:
        return native_plain.build(folder, flags=flags, name=name)
    except build.Failed as error:
        if "no compiler" in str(error):
            pytest.skip(str(error))
        raise


def _sanitized(sanitize: str, folder: pathlib.Path) -> Sanitized:
    try:
        fuzz_native.environment(sanitize)
        made = Sanitized(_built(folder, "sanitized", fuzz_native.FLAGS[sanitize]), sanitize, folder)
        fuzz_native.probe(made.path, sanitize)
    except fuzz_native.Unavailable as error:
        pytest.skip(str(error))
    return made


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """As it is built for use, in this process."""
    return Library(_built(tmp_path_factory.mktemp("engine"), "plain", ()))


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """Under the sanitizers of addresses and of undefined behaviour."""
    return _sanitized("address,undefined", tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="session")
def races(tmp_path_factory):
    """Under the sanitizer of threads."""
    return _sanitized("thread", tmp_path_factory.mktemp("races"))


def single(code: str, shape: tuple[int, int, int], *, seed: int = 0, hostile: float = 0) -> Case:
    """Returns a step on every image of [B, H, W]."""
    random = np.random.default_rng([seed, CODES.index(code)])
    writer = Writer(random, shape, hostile)
    writer.step(code)
    writer.program.operands[0][:] = True
    return Case(writer.program, fuzz_native.images_for(random, shape))


@pytest.fixture(scope="session")
def policies():
    """Whole policies as Python writes them."""
    cases = {}
    for number, text in enumerate(POLICIES):
        policy = augment.parse(text)
        images = np.random.default_rng(number).integers(0, 256, [5, 35, 29, 3], dtype=np.uint8)
        draws = policy.draw(np.arange(5), epoch=0, seed=number)
        written = program.write(policy._stages, draws, (35, 29))
        cases[f"policy{number}"] = Case(Program(written.words, [each.numpy() for each in written.operands]), images)
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# Memory, arithmetic and races
# ---------------------------------------------------------------------------------------------------------------------


def test_random_programs_are_clean_in_memory_and_arithmetic(memory):
    assert memory.fuzz("--cases=150", "--seed=9")


def test_random_programs_have_no_race(races):
    assert races.fuzz("--cases=40", "--seed=9")


def test_whole_policies_are_clean_and_the_same_from_any_build(memory, races, engine, policies):
    here = {name: hashlib.sha256(engine.apply(case.program, case.images)).hexdigest()
            for name, case in policies.items()}
    assert memory.run(policies) == here
    assert races.run(policies) == here


def test_images_of_one_pixel_one_row_and_one_column_are_clean(memory):
    shapes = [(2, 1, 1), (1, 1, 130), (1, 130, 1), (1, 2, 2), (1, 3, 8), (0, 5, 5)]
    assert memory.run({f"{code}-{'x'.join(map(str, shape))}-{hostile}": single(code, shape, hostile=hostile)
                       for code in PLAIN for shape in shapes for hostile in (0, 1)})


def test_the_longest_row_and_the_longest_column_are_clean(memory):
    assert memory.run({f"{code}-{shape[1]}": single(code, shape) for code in ("warp", "mosaic", "jpeg")
                       for shape in [(1, 1, MOST_SIDE), (1, MOST_SIDE, 1)]})


def test_an_image_of_4096_squared_is_clean(memory):
    shape = (1, 4096, 4096)
    writer = Writer(np.random.default_rng(0), shape, 0)
    for code in ("warp", "tone", "mosaic"):
        writer.step(code)
    for word in range(1 + STYLES, len(writer.program.words), WORDS):
        writer.program.operands[writer.program.words[word]][:] = True
    slopes = np.add.outer(np.arange(4096), np.arange(4096))[np.newaxis, ..., np.newaxis] >> 5
    assert memory.run({"large": Case(writer.program, np.broadcast_to(slopes, [*shape, 3]).astype(np.uint8))})


def test_a_gaussian_longer_than_the_image_reads_its_mirror_images_only(memory):
    cases = {}
    for reach in (20, 256):
        case = single("elastic", (1, 7, 5))
        case.program.operands[3] = np.full([1, 2 * reach + 1], 1 / (2 * reach + 1), np.float32)
        cases[f"reach{reach}"] = case
    assert memory.run(cases)


def test_no_memory_is_said_and_not_run_into(memory, monkeypatch):
    monkeypatch.setenv("MOST_MEGABYTES", "1")
    with pytest.raises(AssertionError, match="no memory for an image's buffers"):
        memory.run({"blur": single("blur", (3, 300, 300))})


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def test_threads_and_vectors_change_nothing(engine, policies):
    sets = engine.instruction_sets()
    for name, case in policies.items():
        for output in OUTPUTS:
            alone = engine.apply(case.program, case.images, output=output)
            for threads in (-1, 0, 2, 3, 8, 1000):
                out = engine.apply(case.program, case.images, output=output, threads=threads)
                assert out.tobytes() == alone.tobytes(), (name, output, threads)
            for fusing in sets[1:]:
                out = engine.apply(case.program, case.images, output=output, instruction_set=fusing)
                assert out.tobytes() == alone.tobytes(), (name, output, fusing)


# Where an edge cuts through a pixel, rounding decides on which side it lies.
EDGES = {"warp": 0.01, "mask": 0.01, "elastic": 0.01}


@pytest.mark.parametrize("code", PLAIN)
def test_without_fused_sums_a_step_is_within_one_grey_level(engine, code):
    for seed in range(6):
        case = single(code, (3, 37, 41), seed=seed)
        fused, apart = (engine.apply(case.program, case.images, instruction_set=name).astype(int)
                        for name in ("", "generic"))
        assert np.mean(np.abs(fused - apart) > 1) <= EDGES.get(code, 0)


@pytest.mark.parametrize("code", PLAIN)
def test_hostile_numbers_leave_whole_grey_levels(engine, code):
    for seed in range(8):
        case = single(code, (3, 21, 18), seed=seed, hostile=0.6)
        least = engine.apply(case.program, case.images)
        for output in OUTPUTS:
            out = levels(engine.apply(case.program, case.images, output=output), output)
            np.testing.assert_array_equal(out, least.astype(np.float32))


@pytest.mark.parametrize("nearest", [0, 1])
@pytest.mark.parametrize("fill", ["constant", "edge", "reflect"])
def test_maps_of_whole_numbers_move_pixels(engine, fill, nearest):
    """Flips, quarter turns and moves beside numpy's indexing, also far out; other maps than one to one among them."""
    count, height, width, value = 96, 5, 8, 9
    rng = np.random.default_rng(0)
    images = rng.integers(10, 256, (count, height, width, 3), dtype=np.uint8)
    across, down, shift = (rng.integers(-most, most + 1, (count, 2)) for most in (1, 1, 9))
    shift[::8] = rng.integers(-2**20, 2**20 + 1, shift[::8].shape)
    matrices = np.concatenate([np.stack([across, down, shift], axis=2).reshape(count, 6), [[0, 0, 1]] * count], axis=1)
    warp = Program()
    warp.step("warp", matrices.astype(np.float32), on=np.ones([count], np.bool_),
              style=(["constant", "edge", "reflect"].index(fill), value, nearest))
    y, x = np.mgrid[:height, :width]
    expected = np.empty_like(images)
    for image, matrix, result in zip(images, matrices, expected, strict=True):
        at_x, at_y = (matrix[row] * x + matrix[row + 1] * y + matrix[row + 2] for row in (0, 3))
        seen = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        if fill == "reflect":  # the border's pixel is met twice
            at_x, at_y = (np.minimum(at % (2 * side), 2 * side - 1 - at % (2 * side))
                          for at, side in ((at_x, width), (at_y, height)))
        result[:] = image[np.clip(at_y, 0, height - 1), np.clip(at_x, 0, width - 1)]
        if fill == "constant":
            result[~seen] = value
    for name in engine.instruction_sets():
        np.testing.assert_array_equal(engine.apply(warp, images, instruction_set=name), expected)


def test_the_mean_of_the_longest_row_is_no_more_than_its_brightest_level(engine):
    mosaic = Program()
    mosaic.step("mosaic", np.array([1], np.int32), np.array([1], np.int32), on=np.array([True]))
    white = np.full([1, 1, MOST_SIDE - 1, 3], 255, np.uint8)
    np.testing.assert_array_equal(engine.apply(mosaic, white), white)


# ---------------------------------------------------------------------------------------------------------------------
# Programs that are refused
# ---------------------------------------------------------------------------------------------------------------------

ON = np.array([True, False])
WARP = np.eye(3, dtype=np.float32).reshape(1, 9)
IMAGES = np.zeros([2, 4, 4, 3], np.uint8)


def _with(code: str, *fields: np.ndarray, on: np.ndarray | None = ON, style: tuple[int, ...] = ()) -> Program:
    made = Program()
    made.step(code, *fields, on=on, style=style)
    return made


def _joined(*codes: str) -> Program:
    made = Program()
    for code in codes:
        if code == "repeat":
            made.step(code, style=[2])
        elif code == "mixture":
            weights, depth = np.ones([1, 2], np.float32), np.ones([1, 2], np.int32)
            made.step(code, weights, np.ones([1], np.float32), depth, on=ON, style=[2, 1])
        elif code == "end":
            made.step(code)
        else:
            made.step(code, np.ones([1], np.float32), on=np.array([True]))
    return made


def _changed(place: int, value: int) -> Program:
    made = _with("warp", WARP)
    made.words[place] = value
    return made


KEY, ONE, GAUSSIAN = np.ones([1, 2], np.int32), np.ones([1], np.float32), np.ones([1, 9], np.float32)
MIXED = (np.ones([1, 2], np.float32), ONE, np.ones([1, 2], np.int32))
TYPE, STYLE, MISSING = "of another type or shape", "a style is out of range", "an operand is missing"

BROKEN = {
    "a word short": (Program(_with("warp", WARP).words[:-1], [ON, WARP]), "ends within a step"),
    "a word long": (Program([*_with("warp", WARP).words, 0], [ON, WARP]), "ends within a step"),
    "65 steps": (_joined(*["filter"] * 65), "at most 64 steps"),
    "code -1": (_changed(0, -1), "unknown code -1"),
    "code 15": (_changed(0, len(CODES)), "unknown code 15"),
    "code 2**32": (_changed(0, 2**32), "unknown code"),
    "code least": (_changed(0, -2**63), "unknown code"),
    "fill 3": (_changed(1, 3), STYLE),
    "fill -1": (_changed(1, -1), STYLE),
    "fill 2**32": (_changed(1, 2**32), STYLE),
    "value 256": (_changed(2, 256), STYLE),
    "value -2**63": (_changed(2, -2**63), STYLE),
    "nearest 2": (_changed(3, 2), STYLE),
    "no passes": (_with("repeat", on=None, style=(0,)), STYLE),
    "2**32 + 1 passes": (_with("repeat", on=None, style=(2**32 + 1,)), STYLE),
    "1025 passes": (_with("repeat", on=None, style=(1025,)), STYLE),
    "no chains": (_with("mixture", *MIXED, style=(0, 1)), STYLE),
    "no layers": (_with("mixture", *MIXED, style=(2, 0)), STYLE),
    "65 chains": (_with("mixture", *MIXED, style=(65, 1)), STYLE),
    "chains without weights": (_with("mixture", *MIXED, style=(3, 1)), TYPE),
    "operand -1": (_changed(5, -1), MISSING),
    "operand 2": (_changed(5, 2), MISSING),
    "operand 2**32": (_changed(5, 2**32), MISSING),
    "nothing says when": (_changed(4, -1), MISSING),
    "on as numbers": (_with("warp", WARP, on=np.ones([2], np.uint8)), TYPE),
    "on for others": (_with("warp", WARP, on=np.ones([3], np.bool_)), TYPE),
    "doubles": (_with("warp", WARP.astype(np.float64)), TYPE),
    "whole numbers": (_with("warp", WARP.astype(np.int32)), TYPE),
    "eight of nine": (_with("warp", WARP[:, 1:]), TYPE),
    "ten of nine": (_with("warp", np.ones([1, 10], np.float32)), TYPE),
    "three rows for two images": (_with("warp", np.repeat(WARP, 3, axis=0)), TYPE),
    "no rows": (_with("warp", WARP[:0]), TYPE),
    "even Gaussian": (_with("elastic", KEY, ONE, GAUSSIAN[:, 1:], ONE), TYPE),
    "endless Gaussian": (_with("elastic", KEY, ONE, np.ones([1, 515], np.float32), ONE), TYPE),
    "no Gaussian": (_with("elastic", KEY, ONE, GAUSSIAN[:, :0], ONE), TYPE),
    "rows of one pass": (Program([*_joined("repeat").words, *[CODES.index("filter"), 0, 0, 0, 0, 1, -1, -1, -1]],
                                 [ON, ONE]), TYPE),
    "stray end": (_joined("filter", "end"), "an end without its beginning"),
    "second end": (_joined("repeat", "filter", "end", "end"), "an end without its beginning"),
    "repeat in a repeat": (_joined("repeat", "repeat", "end", "end"), "a repeat inside a repeat"),
    "mixture in a repeat": (_joined("repeat", "mixture", "end", "end"), "a repeat inside a repeat"),
    "repeat in a mixture": (_joined("mixture", "repeat", "end", "end"), "a repeat inside a repeat"),
    "open repeat": (_joined("filter", "repeat", "filter"), "a repeat has no end"),
    "open mixture": (_joined("mixture"), "a repeat has no end"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_refused(engine, name):
    broken, why = BROKEN[name]
    with pytest.raises(Refused, match=why):
        engine.apply(broken, IMAGES)


@pytest.mark.parametrize("shape", [
    (-1, 4, 4), (2, -4, 4), (2, 4, -4), (2, -4, -4), (2, 0, 4), (2, 4, 0), (-2**63, 4, 4), (2, -2**63, 4),
    (1, 2**32, 2**32), (1, 2**31, 2**33), (1, 2**63 - 1, 2**63 - 1), (1, 1, 2**32 + 1), (1, 1, 2**28),
    (1, 2**24 + 4, 1), (1, 1, MOST_SIDE + 1), (1, MOST_SIDE + 1, 1), (2**62, 4, 4), (2**63 - 1, MOST_SIDE, MOST_SIDE)])
def test_sizes_that_no_index_holds_are_refused(engine, shape):
    with pytest.raises(Refused, match="expected"):
        engine.apply(Program(), IMAGES, shape=shape)


@pytest.mark.parametrize("width", [-1, -3, 2**32 + 9, -2**63 + 1, 2**63 - 1])
def test_widths_that_no_kernel_has_are_refused(engine, width):
    elastic = _with("elastic", KEY, ONE, GAUSSIAN, ONE)
    with pytest.raises(Refused, match=TYPE):
        engine.apply(elastic, IMAGES, widths=[1, 2, 1, width, 1])


def test_an_empty_program_returns_its_images(engine):
    images = np.random.default_rng(0).integers(0, 256, [3, 5, 7, 3], dtype=np.uint8)
    for output in OUTPUTS:
        np.testing.assert_array_equal(levels(engine.apply(Program(), images, output=output), output), images)


def test_an_unknown_instruction_set_is_refused(engine):
    with pytest.raises(Refused, match="no instruction set sse9"):
        engine.apply(Program(), IMAGES, instruction_set="sse9")
