"""A concat is its backbones side by side: the features are theirs, and each has layers and weights of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.models import backbones, concat
from bloodcell.train import checkpoints

SMALL, LITE, CNN = "mobilenet_v3_small", "efficientnet_lite0", "cnn"
BOTH, TWICE = f"concat({SMALL}, {CNN})", f"concat({CNN}, {CNN})"  # the quickest to build
WIDTHS = {SMALL: 576, CNN: 256}  # channels of the last feature maps
SIDE = 48  # pixels; last feature maps of 2x2 and 3x3, so that pooling is more than a reshape
IMAGES = np.random.default_rng(0).uniform(0, 255, (3, SIDE, SIDE, 3)).astype("float32")


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def build(name: str = BOTH, *, weights: str = "none", head: str = "", image_size: int = SIDE, seed: int = 0
          ) -> keras.Model:
    return models.build(name, weights=weights, head=head, image_size=image_size, num_classes=3, seed=seed)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build(head="dense(4, 'linear')")


@pytest.fixture(scope="module")
def twice() -> keras.Model:
    return build(TWICE, head="dense(4, 'linear')")


def alone(part: keras.Model, name: str) -> np.ndarray:
    """The pooled output of a network of Keras's own layers with a part's weights."""
    plain = backbones.BACKBONES[name].build(SIDE)
    plain.set_weights(part.get_weights())
    return plain(IMAGES, training=False).numpy().mean((1, 2))


def test_features_are_those_of_the_single_backbones_one_after_the_other(model: keras.Model) -> None:
    backbone = model.get_layer("backbone")
    expected = np.concatenate([alone(backbone.get_layer(name), name) for name in (SMALL, CNN)], axis=1)
    features = backbone(IMAGES, training=False)
    assert features.dtype == tf.float32
    assert features.shape == (3, WIDTHS[SMALL] + WIDTHS[CNN])
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())
    (kernel, bias), (out, shift) = (model.get_layer("head").get_layer(name).get_weights()
                                    for name in ("dense_0", "logits"))
    logits = (expected @ kernel + bias) @ out + shift
    np.testing.assert_allclose(model(IMAGES, training=False), logits, atol=1e-5 * np.abs(logits).max())


def test_mixed_precision_is_that_of_the_single_backbones() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone, single = build(TWICE).get_layer("backbone"), build(CNN).get_layer("backbone")
    features = backbone(IMAGES, training=False)
    assert features.dtype == tf.float32
    start = 0
    for part in concat.parts(backbone):
        single.set_weights(part.get_weights())
        maps = single(IMAGES, training=False)
        assert maps.dtype == tf.bfloat16
        expected = tf.cast(maps, tf.float32).numpy().mean((1, 2))
        here = features[:, start:start + WIDTHS[CNN]]
        np.testing.assert_allclose(here, expected, rtol=1e-5, atol=1e-6)  # a mean in bfloat16 is good to 4e-3
        start += WIDTHS[CNN]


def test_variables_have_paths_of_their_own_even_of_one_backbone_twice(twice: keras.Model) -> None:
    backbone = twice.get_layer("backbone")
    assert [part.name for part in concat.parts(backbone)] == [CNN, f"{CNN}_2"]
    paths = [variable.path for variable in twice.variables]
    assert len(set(paths)) == len(paths)
    first, second = (backbone.get_layer(name).get_weights() for name in (CNN, f"{CNN}_2"))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))  # drawn one after the other


def test_each_part_gets_its_weights_in_order(model: keras.Model, tmp_path: Path) -> None:
    files, trained = [str(tmp_path / f"{seed}.weights.h5") for seed in (1, 2)], []
    for seed, path in enumerate(files, 1):
        single = build(CNN, seed=seed).get_layer("backbone")
        single.save_weights(path)
        trained.append(single.get_weights())
    given = build(TWICE, weights=f"{files[1]}, {files[0]}").get_layer("backbone")
    equal = [[all(np.array_equal(*pair) for pair in zip(weights, part.get_weights(), strict=True))
              for weights in trained] for part in concat.parts(given)]
    assert equal == [[False, True], [True, False]]
    other = str(tmp_path / "other.weights.h5")
    model.get_layer("backbone").get_layer(SMALL).save_weights(other)
    with pytest.raises(InputError, match=r"expected .*weights.*received") as caught:
        build(TWICE, weights=f"{other}, none")
    assert "\n" not in str(caught.value)


def test_one_word_gives_all_parts_their_weights() -> None:
    assert concat.split_weights("imagenet", 3) == ("imagenet",) * 3
    assert concat.split_weights("none", 2) == ("none", "none")
    assert concat.split_weights("none , a.h5", 2) == ("none", "a.h5")
    assert concat.split_weights("with, comma.h5", 1) == ("with, comma.h5",)


def test_a_run_is_read_again_from_its_spec(twice: keras.Model, tmp_path: Path) -> None:
    checkpoints.save_model_file(tmp_path, name=TWICE, head="dense(4, 'linear')", image_size=SIDE, class_names="abc")
    checkpoints.Checkpoints(tmp_path).save("best", {}, twice)
    again, about = checkpoints.load_model(str(tmp_path))
    assert about["name"] == TWICE
    assert checkpoints.weights_sha256(again) == checkpoints.weights_sha256(twice)
    np.testing.assert_array_equal(again(IMAGES, training=False), twice(IMAGES, training=False))


def test_a_single_backbone_is_a_concat_of_one_that_pools_by_itself() -> None:
    assert concat.parse(SMALL) == (SMALL,)
    assert concat.parse(f" concat( {SMALL},{LITE} , {SMALL})") == (SMALL, LITE, SMALL)
    assert BOTH not in models.names()
    backbone = build(CNN).get_layer("backbone")
    assert concat.parts(backbone) == (backbone,)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown part": ({"name": f"concat({SMALL}, efficientnet_lit0)"}, "did you mean 'efficientnet_lite0'"),
    "unknown name": ({"name": f"conct({SMALL}, {LITE})"}, "did you mean 'concat'"),
    "unknown plain name": ({"name": "mobilenet_v3_smal"}, "did you mean 'mobilenet_v3_small'"),
    "no parts": ({"name": "concat"}, "at least 2 backbones, received nothing"),
    "no parts in parentheses": ({"name": "concat()"}, "at least 2 backbones, received nothing"),
    "one part": ({"name": f"concat({SMALL})"}, "at least 2 backbones"),
    "a part by keyword": ({"name": f"concat({SMALL}, other={LITE})"}, "at least 2 backbones"),
    "a chain of parts": ({"name": f"concat({SMALL} | {LITE}, {LITE})"}, "with commas between them"),
    "a quoted part": ({"name": f"concat('{SMALL}', {LITE})"}, "with commas between them"),
    "a part with arguments": ({"name": f"concat({SMALL}(2), {LITE})"}, "with commas between them"),
    "a gated part": ({"name": f"concat({SMALL}@0.5, {LITE})"}, "with commas between them"),
    "a concat in a concat": ({"name": f"concat({SMALL}, {BOTH})"}, "with commas between them"),
    "a chain": ({"name": f"{SMALL} | concat({SMALL}, {LITE})"}, "expected one term"),
    "a gate": ({"name": f"{BOTH}@0.5"}, "expected no '@p'"),
    "a backbone with arguments": ({"name": f"{SMALL}(3)"}, "expected no arguments"),
    "no spec": ({"name": f"concat({SMALL}, {LITE}"}, "cannot be read"),
    "image too small for one part": ({"name": f"concat({SMALL}, inception_v3)"},
                                     r"expected 75\.\.1024 pixels for inception_v3"),
    "a pooling head": ({"head": "pool('max')"}, "expected no pool or flatten for a concat"),
    "one file for two": ({"weights": "a.h5"}, "expected imagenet, none, or 2 of these"),
    "three for two": ({"weights": "none, none, none"}, "received 3"),
    "no such file": ({"weights": "none, nowhere.h5"}, "received 'nowhere.h5'.*no such file"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str) -> None:
    wrong, message = MISTAKES[case]
    flags: dict[str, Any] = {"name": BOTH, "weights": "none", "head": "", "image_size": SIDE} | wrong
    for check in (models.validate, build):
        with pytest.raises(InputError, match=message) as caught:
            check(**flags)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_reported_after_every_other_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo goes on from random weights where these are missing, and must not meet another mistake then."""
    def fetch(_: backbones.Backbone) -> Path:
        raise models.MissingWeights("--weights: missing")

    monkeypatch.setattr(backbones.Backbone, "fetch", fetch)
    with pytest.raises(models.MissingWeights):
        models.validate(BOTH, "imagenet", "dense(3)", SIDE)
    for head, weights in (("dence(3)", "imagenet"), ("", "imagenet, nowhere.h5")):
        with pytest.raises(InputError) as caught:
            models.validate(BOTH, weights, head, SIDE)
        assert not isinstance(caught.value, models.MissingWeights)
