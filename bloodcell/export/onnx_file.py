"""ONNX, for ONNX Runtime and what reads its files; needs the extra `onnx`."""

import logging
import pathlib
from typing import Any

import numpy as np

from bloodcell.errors import InputError
from bloodcell.export.checking import Runner, threads
from bloodcell.export.deployed import Deployed

PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
OPSET = 17


def write(deployed: Deployed, path: pathlib.Path) -> None:
    """Writes the file; the batch size stays open.

    Raises:
      InputError: views that draw, or a network that cannot be converted.
    """
    import onnx  # an extra, as are these
    import tf2onnx

    deployed.check_exact()
    _, function = deployed.function()
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    try:
        model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET,
                                                 custom_rewriter=[_without_scalars, _without_erfc])
        onnx.checker.check_model(model)  # tf2onnx leaves an operation that it does not know as it is
        if len(model.graph.input) != 1:  # and takes for an input what it cannot place
            raise ValueError(f"{model.graph.input[1].name} is no constant")
    except Exception as error:  # the converter's errors have no class in common
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError("--format=onnx expected a network that tf2onnx converts, received one that it refuses "
                         f"({reason[:200]}); try another format") from error
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString())


def _without_scalars(graph: Any, ops: Any) -> Any:
    """Gives every number that is added to a tensor the shape [1].

    On one without a shape behind a convolution tf2onnx 1.17 stumbles, and leaves all transpositions in.
    """
    for node in list(ops):
        if node.type in ("Add", "AddV2", "BiasAdd") and len(node.input) == 2:
            for index, entry in enumerate(node.inputs):
                if entry is not None and entry.is_const() and not entry.get_tensor_value(as_list=False).shape:
                    value = entry.get_tensor_value(as_list=False).reshape(1)
                    made = graph.make_const(f"{entry.name}_of_{node.name}_{index}", value)
                    graph.replace_input(node, node.input[index], made.output[0], index)
    return graph.get_nodes()


def _without_erfc(graph: Any, ops: Any) -> Any:
    """Writes 1 - erf(x) for erfc(x), of which TensorFlow makes GELU, and which ONNX does not have."""
    for node in list(ops):
        if node.type == "Erfc":
            shape, dtype = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
            one = graph.make_const(f"{node.name}_one", np.ones(1, np.float32))
            erf = graph.make_node("Erf", [node.input[0]], shapes=[shape], dtypes=[dtype])
            made = graph.make_node("Sub", [one.output[0], erf.output[0]], shapes=[shape], dtypes=[dtype])
            graph.replace_all_inputs(node.output[0], made.output[0])
            graph.remove_node(node.name)
    return graph.get_nodes()


def load(path: pathlib.Path) -> Runner:
    """Returns what the file computes, on all cores."""
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {entry: images})[0]
        return found

    return run
