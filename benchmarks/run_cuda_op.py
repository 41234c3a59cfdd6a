"""Times the native op's CUDA kernel on a machine without TensorFlow: `python run_cuda_op.py run PROGRAMS.npz`.

Neither this file's `run` nor the kernel has ever run on a GPU: there is no figure of either. Checked is what can be
without one: NVRTC compiles the kernel for compute capabilities 8.0 and 9.0, and the same source built as host C++ gives
the host engine's levels, also for programs as they are packed here (tests/augment/test_native_cuda.py).

`python -m benchmarks.run_cuda_op write PROGRAMS.npz`, where TensorFlow and bloodcell are, writes policies as programs,
with images and the levels that XLA computes of them. Then on a machine with a GPU this file, the kernel's sources
(bloodcell/augment/native/source), the .npz, NumPy and `pip install "nvidia-cuda-nvrtc-cu12>=12.5.82"` are enough. It
prints, for each program, number of threads and place of the images, images per second: the median of 9 runs of many
launches each, timed with CUDA events, operands and images in the GPU's memory. Exit status 1 where a level is further
than one from XLA's.

What belongs here: the driver's and NVRTC's C interfaces through ctypes. `cuda.cc` does the same inside XLA.
"""

import argparse
import ctypes
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

POLICIES = {
    "rotate": "rotate(180)", "equalize": "equalize", "hue": "hue(0.3)", "blur": "blur(2)", "jpeg": "jpeg(50)",
    "trivialaugment": "trivialaugment", "randaugment": "randaugment(2, 9)", "augmix": "augmix(severity=3)",
    "v2s": "flip | rotate(180) | zoom(0.2) | oneof(augmix(severity=3), randaugment(n=3, m=4)) | "
           "oneof(gridmask, cutout(0.5)) | oneof(channel_shuffle, channel_shift(0.3), hue(0.3))"}
SOURCES = ("device.cu", "launch.h", "program.h", "engine.h")
_STEPS, _FIELDS, _STYLES = 64, 4, 3  # as program.h
_WORDS = 2 + _STYLES + _FIELDS
_PLANES, _MIXTURE = (5, 6, 8, 11), 13  # blur, streak, elastic and jpeg; AugMix
_RADIUS, _TAPS = 12, 25 * 25
_FLOAT32, _UINT8 = 0, 3  # Output of program.h; a training step takes float32


class Failed(Exception):
    """The driver or the compiler refused; the message says what."""


# ---------------------------------------------------------------------------------------------------------------------
# The kernel's parameters, as program.h and launch.h have them
# ---------------------------------------------------------------------------------------------------------------------


class Step(ctypes.Structure):
    """A step; `on` and `field` are addresses on the device."""

    _fields_ = [("code", ctypes.c_int), ("style", ctypes.c_int * _STYLES), ("on", ctypes.c_void_p),
                ("field", ctypes.c_void_p * _FIELDS), ("shared", ctypes.c_uint), ("width", ctypes.c_uint * _FIELDS)]


class Program(ctypes.Structure):
    """A program for images of one size."""

    _fields_ = [("count", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int),
                ("batch", ctypes.c_longlong), ("steps", Step * _STEPS)]


class Launch(ctypes.Structure):
    """Memory of a block: words of global and bytes of shared memory; whether it holds the images; room for AugMix."""

    _fields_ = [("words", ctypes.c_longlong), ("shared", ctypes.c_longlong), ("resident", ctypes.c_int),
                ("mixed", ctypes.c_int)]


class Shared(ctypes.Structure):
    """What a block prepares once for all pixels; only its size matters here."""

    _fields_ = [("histogram", ctypes.c_uint * 768), ("luma", ctypes.c_ulonglong), ("curve", ctypes.c_ubyte * 768),
                ("weight", ctypes.c_float * _TAPS), ("tap_y", ctypes.c_byte * _TAPS), ("tap_x", ctypes.c_byte * _TAPS),
                ("taps", ctypes.c_int), ("radius", ctypes.c_int), ("separable", ctypes.c_int)]


def pack(words: Sequence[int], shapes: Sequence[tuple[int, ...]], places: Sequence[int],
         images: tuple[int, int, int]) -> Program:
    """Returns a program as the kernel takes it.

    Args:
      words: the steps, as `bloodcell.augment.native.program` writes them.
      shapes: of the operands.
      places: their addresses.
      images: (B, H, W).
    """
    batch, height, width = images
    program = Program(len(words) // _WORDS, height, width, batch)
    for number in range(program.count):
        word = words[number * _WORDS:(number + 1) * _WORDS]
        step = program.steps[number]
        step.code, step.style[:] = word[0], word[1:1 + _STYLES]
        on, *fields = word[1 + _STYLES:]
        if on >= 0:
            step.on = places[on]
            step.shared |= (shapes[on][0] == 1) << 31
        for field, operand in enumerate(fields):
            if operand >= 0:
                step.field[field] = places[operand]
                step.width[field] = int(np.prod(shapes[operand][1:]))
                step.shared |= (shapes[operand][0] == 1) << field
    return program


def launch(program: Program, most_shared: int) -> Launch:
    """Returns what memory a block of the kernel gets; most_shared: bytes of shared memory that one may have."""
    codes = {program.steps[number].code for number in range(program.count)}
    height, width = program.height, program.width
    area, images = height * width, 2 * ((height + 1) * width + 1)
    both = ctypes.sizeof(Shared) + 4 * images
    resident, mixed = both <= most_shared, _MIXTURE in codes
    words = (0 if resident else images) + (4 * area if mixed else 0)
    if codes & set(_PLANES):
        bordered = (height + 2 * _RADIUS) * (width + 2 * _RADIUS) * 3 + 3 * area
        words += max(bordered, 2 * -(-height // 16) * -(-width // 16) * 256)
    return Launch(-(-words // 64) * 64, both if resident else ctypes.sizeof(Shared), resident, mixed)


# ---------------------------------------------------------------------------------------------------------------------
# NVRTC
# ---------------------------------------------------------------------------------------------------------------------


def nvrtc(path: str = "") -> ctypes.CDLL:
    """Opens the compiler: at `path`, or where pip put it, or where the system has it.

    Raises:
      Failed: it is nowhere.
    """
    installed = [str(file) for place in sys.path
                 for file in sorted(pathlib.Path(place, "nvidia", "cuda_nvrtc", "lib").glob("libnvrtc.so.*"))]
    for name in [path] if path else [*installed, "libnvrtc.so.12", "libnvrtc.so.13"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    raise Failed("no NVRTC; pip install nvidia-cuda-nvrtc-cu12 brings it")


def compiled(compiler: ctypes.CDLL, source: pathlib.Path, architecture: str) -> tuple[bytes, str]:
    """Compiles the kernel, with the options of cuda.cc.

    Args:
      compiler: NVRTC.
      source: the folder of `SOURCES`.
      architecture: `sm_90` for machine code, `compute_90` for PTX.

    Returns:
      The code, and what the compiler had to say.

    Raises:
      Failed: it refuses; the message is what it says.
    """
    texts = [(source / name).read_bytes() for name in SOURCES]
    headers = (ctypes.c_char_p * 3)(*texts[1:])
    names = (ctypes.c_char_p * 3)(*(name.encode() for name in SOURCES[1:]))
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--fmad=false"]
    program = ctypes.c_void_p()
    if compiler.nvrtcCreateProgram(ctypes.byref(program), texts[0], b"device.cu", 3, headers, names):
        raise Failed("NVRTC takes no source")

    def got(kind: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(compiler, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        held = ctypes.create_string_buffer(size.value)
        getattr(compiler, f"nvrtcGet{kind}")(program, held)
        return held.raw

    wrong = compiler.nvrtcCompileProgram(program, len(options),
                                         (ctypes.c_char_p * 3)(*(option.encode() for option in options)))
    said = got("ProgramLog").rstrip(b"\0").decode().strip()
    code = b"" if wrong else got("CUBIN" if architecture.startswith("sm_") else "PTX")
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    if wrong:
        raise Failed(f"NVRTC refuses device.cu: {said}")
    return code, said


# ---------------------------------------------------------------------------------------------------------------------
# The GPU
# ---------------------------------------------------------------------------------------------------------------------


class Gpu:
    """The first GPU, through the driver's C interface, and the kernel on it.

    Attributes:
      name: as the driver says. capability: 90 for 9.0. multiprocessors: their number. most_shared: bytes of shared
        memory that a block may have.
    """

    def __init__(self, source: pathlib.Path, nvrtc_path: str, driver: str = "libcuda.so.1") -> None:
        try:
            self._driver = ctypes.CDLL(driver)
        except OSError as error:
            raise Failed(f"no CUDA driver ({error})") from None
        context, module, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._do("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(200)
        self._do("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        major, minor, self.multiprocessors, self.most_shared = (self._attribute(each, device)
                                                                for each in (75, 76, 16, 97))
        self.capability = 10 * major + minor
        code, _ = compiled(nvrtc(nvrtc_path), source, f"sm_{self.capability}")
        self._do("cuModuleLoadData", ctypes.byref(module), code)
        self._kernel = ctypes.c_void_p()
        self._do("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"bloodcell_policy")
        self._do("cuFuncSetAttribute", self._kernel, 8, self.most_shared)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._do("cuEventCreate", ctypes.byref(event), 0)

    def _do(self, function: str, *arguments: Any) -> None:
        result = getattr(self._driver, function)(*arguments)
        if result:
            word = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(word))
            raise Failed(f"{function}: {(word.value or b'unknown error').decode()} (CUDA {result})")

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def memory(self, size: int) -> int:
        """Returns the address of `size` bytes, which stay."""
        place = ctypes.c_ulonglong()
        self._do("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(max(size, 1)))
        return place.value

    def put(self, array: np.ndarray) -> int:
        """Copies an array to the GPU; returns where it is."""
        array = np.ascontiguousarray(array)
        place = self.memory(array.nbytes)
        self._do("cuMemcpyHtoD_v2", ctypes.c_ulonglong(place), ctypes.c_void_p(array.ctypes.data),
                 ctypes.c_size_t(array.nbytes))
        return place

    def get(self, place: int, array: np.ndarray) -> None:
        """Copies what is at `place` into an array."""
        self._do("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_ulonglong(place),
                 ctypes.c_size_t(array.nbytes))

    def free(self, place: int) -> None:
        """Gives memory back."""
        self._do("cuMemFree_v2", ctypes.c_ulonglong(place))

    def blocks(self, how: Launch, threads: int, batch: int) -> int:
        """Returns how many blocks to launch: as many as run at once, and no more than there are images."""
        resident = ctypes.c_int()
        self._do("cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(resident), self._kernel, threads,
                 ctypes.c_size_t(how.shared))
        if not resident.value:
            raise Failed(f"no room for a block of {threads} threads and {how.shared} bytes of shared memory")
        return min(batch, resident.value * self.multiprocessors)

    def start(self, parameters: Sequence[Any], how: Launch, blocks: int, threads: int) -> None:
        """Launches the kernel with its parameters as ctypes' objects; it runs on."""
        places = (ctypes.c_void_p * len(parameters))(*map(ctypes.addressof, parameters))
        self._do("cuLaunchKernel", self._kernel, blocks, 1, 1, threads, 1, 1, int(how.shared), None, places, None)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Returns what work on the GPU takes, between two events."""
        taken = ctypes.c_float()
        self._do("cuEventRecord", self._events[0], None)
        work()
        self._do("cuEventRecord", self._events[1], None)
        self._do("cuEventSynchronize", self._events[1])
        self._do("cuEventElapsedTime", ctypes.byref(taken), *self._events)
        return taken.value


def run(programs: pathlib.Path, gpu: Gpu, threads: Sequence[int]) -> bool:
    """Checks and times every program of a file; returns whether all levels were right."""
    print(f"{gpu.name}, compute capability {gpu.capability / 10}, {gpu.multiprocessors} multiprocessors")
    worst = 0
    with np.load(programs) as held:
        images = held["images"]
        for name in map(str, held["names"]):
            operands = [held[f"{name}/operand{number}"] for number in range(int(held[f"{name}/operands"]))]
            places = [gpu.put(each) for each in (*operands, images)]
            program = pack(held[f"{name}/words"].tolist(), [each.shape for each in operands], places, images.shape[:3])
            for wide in threads:
                for most in (gpu.most_shared, 0):
                    how = launch(program, most)
                    if bool(most) == bool(how.resident):
                        rate, apart = _timed(gpu, program, how, wide, places[-1],
                                             expected=held[f"{name}/expected"])
                        worst = max(worst, int(apart.max()))
                        print(f"{name:15} {wide:4} threads, images in {'shared' if most else 'global'} memory: "
                              f"{rate:12,.0f} images/s; levels off {np.mean(apart > 0):.1e}, most {apart.max()}")
            for place in places:
                gpu.free(place)
    return worst <= 1


def _timed(gpu: Gpu, program: Program, how: Launch, threads: int, images: int, *,
           expected: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns images per second, and how far each level is from the expected one."""
    blocks = gpu.blocks(how, threads, program.batch)
    out, scratch = gpu.memory(4 * expected.size), gpu.memory(4 * how.words * blocks)

    def go(kind: int, times: int = 1) -> None:
        parameters = [program, how, ctypes.c_ulonglong(images), ctypes.c_ulonglong(out), ctypes.c_int(kind),
                      ctypes.c_ulonglong(scratch)]
        for _ in range(times):
            gpu.start(parameters, how, blocks, threads)

    shown = np.zeros_like(expected)
    go(_UINT8)
    gpu.get(out, shown)
    many = max(1, round(100 / max(gpu.milliseconds(lambda: go(_FLOAT32, 3)) / 3, 1e-3)))
    taken = statistics.median(gpu.milliseconds(lambda: go(_FLOAT32, many)) / many for _ in range(9))
    gpu.free(out)
    gpu.free(scratch)
    return 1e3 * program.batch / taken, np.abs(shown.astype(int) - expected)


# ---------------------------------------------------------------------------------------------------------------------
# Programs to take along
# ---------------------------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, policies: Mapping[str, str], batch: int, side: int = 96) -> None:
    """Writes policies as programs, with images and XLA's levels; needs TensorFlow and bloodcell.

    Args:
      path: the .npz to write: `names`, `images` uint8 [B, H, W, 3], and of each name `words`, the number of `operands`,
        `operand0` on, and `expected` uint8 [B, H, W, 3].
      policies: their texts by name.
      batch: images.
      side: their height and width, in pixels.
    """
    from bloodcell.data import demo
    images = np.resize(demo.render(min(batch, 64), seed=0, size=side)[0], (batch, side, side, 3))
    held: dict[str, Any] = {"names": np.array(list(policies)), "images": images}
    for name, text in policies.items():
        words, operands, expected = _written(text, images)
        held |= {f"{name}/words": np.array(words, np.int64), f"{name}/operands": np.array(len(operands)),
                 f"{name}/expected": expected}
        held |= {f"{name}/operand{number}": each for number, each in enumerate(operands)}
    np.savez_compressed(path, **held)


def _written(text: str, images: np.ndarray) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """Returns a policy's steps and operands for images, and the levels that XLA computes."""
    import tensorflow as tf

    from bloodcell import augment
    from bloodcell.augment.native import program
    policy = augment.parse(text)
    words: list[int] = []

    @tf.function(jit_compile=True, autograph=False)
    def both() -> tuple[tf.Tensor, list[tf.Tensor]]:
        draws = policy.draw(tf.range(len(images), dtype=tf.int64), epoch=0, seed=0)
        written = program.write(policy._stages, draws, (images.shape[1], images.shape[2]))
        words[:] = written.words
        return policy.apply(tf.constant(images), draws, dtype="uint8"), written.operands

    expected, operands = both()
    return words, [each.numpy() for each in operands], expected.numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Writes programs, or checks and times them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "run"])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=1024, help="images that `write` takes")
    beside = pathlib.Path(__file__).resolve().parents[1] / "bloodcell" / "augment" / "native" / "source"
    parser.add_argument("--source", type=pathlib.Path, default=beside, help="the folder of device.cu")
    parser.add_argument("--nvrtc", default="", help="path of libnvrtc.so.12, where it is not found")
    parser.add_argument("--threads", type=int, nargs="+", default=[128, 256, 512, 1024], help="of a block, to try")
    given = parser.parse_args(argv)
    if given.what == "write":
        write(given.programs, POLICIES, given.batch)
        return
    try:
        good = run(given.programs, Gpu(given.source, given.nvrtc), given.threads)
    except (Failed, OSError) as error:
        sys.exit(f"error: {error}")
    if not good:
        sys.exit("error: levels further than one from XLA's")


if __name__ == "__main__":
    main()
