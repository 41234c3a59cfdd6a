"""Published weights are those that Keras itself would fetch; without a network the answer is one line, in seconds."""

import importlib
import socket
import time
from pathlib import Path
from typing import Any

import keras
import pytest

from bloodcell.models import backbones, published

NETWORKS = {"mobilenet": "MobileNet", "mobilenet_v2": "MobileNetV2", "mobilenet_v3_small": "MobileNetV3Small",
            "mobilenet_v3_large": "MobileNetV3Large", "efficientnet_b0": "EfficientNetB0",
            "efficientnet_v2_b0": "EfficientNetV2B0", "densenet121": "DenseNet121", "inception_v3": "InceptionV3",
            "resnet50": "ResNet50", "vgg16": "VGG16", "vgg19": "VGG19", "convnext_tiny": "ConvNeXtTiny"}
# Built only to be asked, these would take long: Keras's table of digests, and the sibling above whose address is like.
LARGER = {"efficientnet_v2_s": ("efficientnet_v2", "-s", "b0"), "efficientnet_v2_m": ("efficientnet_v2", "-m", "b0"),
          "efficientnet_v2_l": ("efficientnet_v2", "-l", "b0"),
          **{f"convnext_{size}": ("convnext", f"convnext_{size}", "tiny")
             for size in ("small", "base", "large", "xlarge")}}


@pytest.mark.parametrize("name", list(LARGER))
def test_the_files_of_larger_networks_are_in_the_tables_of_keras(name: str) -> None:
    module, key, sibling = LARGER[name]
    size, entry = name.rpartition("_")[2], backbones.BACKBONES[name].imagenet
    smaller = backbones.BACKBONES[f"{name.removesuffix(size)}{sibling}"].imagenet
    assert isinstance(entry, published.KerasFile)
    assert isinstance(smaller, published.KerasFile)
    assert entry.digest == importlib.import_module(f"keras.src.applications.{module}").WEIGHTS_HASHES[key][1]
    assert entry.path == smaller.path.replace(f"{sibling}_notop", f"{size}_notop")


def test_every_published_network_is_compared() -> None:
    assert {*NETWORKS, *LARGER} == {name for name, entry in backbones.BACKBONES.items() if entry.download}


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.filterwarnings("ignore:`input_shape` is undefined")  # Keras: the weights are those of 224 pixels
def test_the_files_fetched_are_those_that_keras_itself_fetches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        """Stops Keras where it would download."""

    def get_file(fname: str, origin: str, *, cache_subdir: str, file_hash: str | None = None) -> None:
        asked.append((fname, origin, cache_subdir, file_hash))
        raise Asked

    asked: list[tuple[Any, ...]] = []
    source = importlib.import_module("keras.src.utils.file_utils")
    monkeypatch.setattr(source, "get_file", get_file)
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    side = backbones.BACKBONES[name].minimum
    with pytest.raises(Asked), keras.StatelessScope(initialize_variables=False):
        getattr(keras.applications, NETWORKS[name])(include_top=False, weights="imagenet", input_shape=(side, side, 3))
    with pytest.raises(published.MissingWeights):
        backbones.BACKBONES[name].fetch()
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_dead_or_silent_network_is_one_line_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(published, "_TIMEOUT", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(published, "_STORE", f"http://127.0.0.1:{server.getsockname()[1]}/")
        for listening in (False, True):  # refused at first; then taken, and never answered
            if listening:
                server.listen()
            started = time.monotonic()
            with pytest.raises(published.MissingWeights, match="--weights=none") as caught:
                published.KerasFile("mobilenet_v3/bloodcell_test_without_network.h5", "0" * 32).fetch()
            assert time.monotonic() - started < 5
            assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_a_file_is_at_hand_where_keras_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    file = published.KerasFile("somewhere/bloodcell_test_at_hand.h5", None)
    assert file.at_hand() == "none"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / file.name).write_bytes(b"")
    assert file.at_hand() == "cached"
    package = published.PackageFile("some-package", lambda: None)
    assert package.at_hand() == "none"
    assert published.PackageFile("some-package", lambda: tmp_path).at_hand() == "installed"
