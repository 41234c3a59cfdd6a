"""The native op without TensorFlow: `bloodcell_apply` of source/plain.cc, and programs as plain lists and arrays.

Only NumPy and ctypes are imported, so that a process under a sanitizer stays small; `build` alone needs the package.
What belongs here: the call and its arrays. What to call it with is the tests' and the fuzzer's business.
"""

import ctypes
import pathlib
from collections.abc import Sequence

import numpy as np

# As in source/program.h and native/program.py.
CODES = ("warp", "tone", "mix", "filter", "mask", "blur", "streak", "mosaic", "elastic", "stain", "noise", "jpeg",
         "repeat", "mixture", "end")
WORDS, STYLES, FIELDS, STEPS = 9, 3, 4, 64
OUTPUTS = ("float32", "bfloat16", "float16", "uint8")
INSTRUCTION_SETS = ("generic", "avx2", "avx512")
_BUFFERS = (np.float32, np.uint16, np.float16, np.uint8)  # NumPy has no bfloat16
_TYPES = {np.dtype(np.bool_): 0, np.dtype(np.uint8): 1, np.dtype(np.int32): 2, np.dtype(np.float32): 3}
_OTHER = 4
_MESSAGE = 256


class Refused(Exception):
    """The engine's own words on why it did not run a program."""


class Program:
    """Steps and operands, as `bloodcell.augment.native.program.Program` holds them, of arrays instead of tensors.

    Attributes:
      words: of the steps, `WORDS` each.
      operands: arrays [rows, width] or [rows].
    """

    def __init__(self, words: Sequence[int] = (), operands: Sequence[np.ndarray] = ()) -> None:
        self.words = list(words)
        self.operands = list(operands)

    def step(self, code: str, *fields: np.ndarray, on: np.ndarray | None = None, style: Sequence[int] = ()) -> None:
        """Adds a step; every array becomes an operand of its own."""
        places = []
        for each in (on, *fields):
            places.append(-1 if each is None else len(self.operands))
            if each is not None:
                self.operands.append(each)
        places += [-1] * (FIELDS + 1 - len(places))
        self.words += [CODES.index(code), *style, *[0] * (STYLES - len(style)), *places]


def build(folder: pathlib.Path, *, flags: Sequence[str] = (), name: str = "plain") -> pathlib.Path:
    """Compiles the engine for `Library`; `flags` as for `bloodcell.augment.native.build.library`.

    Raises:
      bloodcell.augment.native.build.Failed: no compiler, or it refuses.
    """
    from bloodcell.augment.native import build as native_build
    path = folder / f"lib{name}.so"
    native_build.library(path, xla=False, flags=flags)
    return path


def levels(out: np.ndarray, output: str) -> np.ndarray:
    """Returns what `Library.apply` wrote as float32."""
    if output == "bfloat16":
        return (out.astype(np.uint32) << 16).view(np.float32)
    return out.astype(np.float32)


class Library:
    """The engine in this process."""

    def __init__(self, path: pathlib.Path) -> None:
        self._apply = ctypes.CDLL(str(path)).bloodcell_apply
        pointer, whole, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
        self._apply.argtypes = [pointer, wide, pointer, pointer, pointer, pointer, wide, pointer, wide, wide, wide,
                                pointer, whole, whole, ctypes.c_char_p, ctypes.c_char_p, wide]
        self._apply.restype = whole

    def apply(self, program: Program, images: np.ndarray, *, output: str = "uint8", threads: int = 1,
              instruction_set: str = "", shape: Sequence[int] | None = None,
              widths: Sequence[int] | None = None) -> np.ndarray:
        """Runs a program.

        Args:
          program: steps and operands; an array of another type than the engine's goes as `other`.
          images: uint8 [B, H, W, 3].
          output: one of `OUTPUTS`.
          threads: of which the caller is one.
          instruction_set: one of `INSTRUCTION_SETS`, or empty for the machine's best.
          shape: what to say that (B, H, W) are, where that is not the truth.
          widths: what to say that the operands' widths are, likewise.

        Returns:
          [B, H, W, 3]; bfloat16 as its bits, uint16.

        Raises:
          Refused: by the engine; nothing was written then.
        """
        images = np.ascontiguousarray(images, np.uint8)
        out = np.full(images.shape, 77, _BUFFERS[OUTPUTS.index(output)])
        untouched = out.tobytes() if out.size < 1 << 16 else b""
        held = [np.ascontiguousarray(each) for each in program.operands]
        words = np.array(program.words, np.int64)
        data = np.array([each.ctypes.data for each in held], np.uint64)
        types = np.array([_TYPES.get(each.dtype, _OTHER) for each in held], np.int32)
        rows = np.array([each.shape[0] for each in held], np.int64)
        wide = np.array([int(np.prod(each.shape[1:])) for each in held] if widths is None else widths, np.int64)
        message = ctypes.create_string_buffer(_MESSAGE)
        batch, height, width = images.shape[:3] if shape is None else shape
        wrong = self._apply(words.ctypes.data, len(words), data.ctypes.data, types.ctypes.data, rows.ctypes.data,
                            wide.ctypes.data, len(held), images.ctypes.data, batch, height, width, out.ctypes.data,
                            OUTPUTS.index(output), threads, instruction_set.encode(), message, _MESSAGE)
        if wrong:
            assert not untouched or out.tobytes() == untouched, "a refused program wrote to the result"
            raise Refused(message.value.decode())
        return out

    def instruction_sets(self) -> list[str]:
        """Returns those of `INSTRUCTION_SETS` that this machine has."""
        here = []
        for name in INSTRUCTION_SETS:
            try:
                self.apply(Program(), np.zeros([1, 1, 1, 3], np.uint8), instruction_set=name)
                here.append(name)
            except Refused:
                pass
        return here
