"""Which formats there are: what each writes, how what was written is run, and how near it must be to the original.

Bounds are of probabilities, on real images, and were chosen by measurement: float32 arithmetic in another order differs
by about 1e-6, 16-bit weights by some thousandths, 8-bit arithmetic by some hundredths and at times in the label.
"""

import dataclasses
import pathlib
from collections.abc import Callable

from bloodcell.export import codabench, keras_file, onnx_file, savedmodel, tflite
from bloodcell.export.checking import Bound, Runner
from bloodcell.export.deployed import Deployed

_FLOAT32 = Bound(difference=1e-4, agreement=0.99)  # the labels that may differ are ties within the difference
_FLOAT16 = Bound(difference=0.02, agreement=0.99)
_INT8 = Bound(difference=0.5, agreement=0.97)


@dataclasses.dataclass(frozen=True)
class Artefact:
    """One file, or folder, that a format consists of.

    Attributes:
      name: of the file.
      write: writes it, under that name in whatever folder.
      load: of a written one, what it computes.
      bound: how near that must be to the original.
      calibrated: whether it is made by looking at training images.
      packages: what must be installed beside what bloodcell needs.
      beside: a second file made of the written one, and how; None where there is none.
    """

    name: str
    write: Callable[[Deployed, pathlib.Path], None]
    load: Callable[[pathlib.Path], Runner]
    bound: Bound
    calibrated: bool = False
    packages: tuple[str, ...] = ()
    beside: tuple[str, Callable[[pathlib.Path, pathlib.Path], None]] | None = None


FORMATS: dict[str, tuple[Artefact, ...]] = {
    "savedmodel": (Artefact("saved_model", savedmodel.write, savedmodel.load, _FLOAT32),),
    "keras": (Artefact("model.keras", keras_file.write, keras_file.load, _FLOAT32),),
    "tflite": (Artefact("model_float16.tflite", tflite.write_float16, tflite.load, _FLOAT16),
               Artefact("model_int8.tflite", tflite.write_int8, tflite.load, _INT8, calibrated=True)),
    "onnx": (Artefact("model.onnx", onnx_file.write, onnx_file.load, _FLOAT32, packages=onnx_file.PACKAGES),),
    "codabench": (Artefact("codabench", codabench.write, codabench.load, _FLOAT32,
                           beside=("codabench.zip", codabench.zipped)),),
}
