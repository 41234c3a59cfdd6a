"""Freezing: the frozen part neither learns nor moves its statistics, and the table counts every parameter once."""

import functools
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import models
from bloodcell.errors import InputError
from bloodcell.models import freezing

SMALL, LITE = "mobilenet_v3_small", "efficientnet_lite0"
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
HEAD = {"dense_0/kernel", "dense_0/bias", "logits/kernel", "logits/bias"}
CONVOLUTIONS = {"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return models.build(SMALL, weights="none", head="dense(8)", image_size=32, num_classes=3, seed=0)


@pytest.fixture(scope="module")
def both() -> keras.Model:
    return models.build(f"concat({SMALL}, {LITE})", weights="none", head="dense(8)", image_size=32, num_classes=3,
                        seed=0)


def changed(model: keras.Model) -> set[str]:
    """Paths of the weights of which two training steps change any bit; the weights are put back."""
    before = model.get_weights()
    for size in (1e-3, 2e-3):  # unlike each other, lest the second undo the first
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(IMAGES, training=True) ** 2)
        for variable, gradient in zip(model.trainable_variables,
                                      tape.gradient(loss, [v.value for v in model.trainable_variables]), strict=True):
            variable.assign_sub(size * tf.math.sign(gradient))
    paths = {variable.path for variable, old in zip(model.weights, before, strict=True)
             if not np.array_equal(variable, old)}
    model.set_weights(before)
    return paths


def layers(model: keras.Model, part: str | None = None) -> list[keras.Layer]:
    backbone = model.get_layer("backbone")
    return [layer for layer in (backbone.get_layer(part) if part else backbone).layers
            if not isinstance(layer, keras.layers.InputLayer)]


def weights(members: list[keras.Layer]) -> set[str]:
    return {weight.path for layer in members for weight in layer.weights}


def test_head_leaves_the_backbone_as_it_is(model: keras.Model) -> None:
    freezing.apply(model, scope="head")
    assert changed(model) == HEAD
    backbone = model.get_layer("backbone")
    np.testing.assert_array_equal(backbone(IMAGES, training=True), backbone(IMAGES, training=False))


@pytest.mark.parametrize("percent", [0, 30, 80, 100])
def test_top_trains_the_last_percent_of_layers(model: keras.Model, percent: float) -> None:
    freezing.apply(model, scope="top", percent=percent)
    flags = [layer.trainable for layer in layers(model)]
    assert sum(flags) == round(len(flags) * percent / 100)
    assert flags == sorted(flags)
    if percent == 30:
        assert changed(model) == weights([layer for layer in layers(model) if layer.trainable]) | HEAD


def test_all_trains_everything_again(model: keras.Model) -> None:
    freezing.apply(model, scope="all", convs_only=True, freeze_bn=True)
    freezing.apply(model, scope="head")
    freezing.apply(model, scope="all")
    assert changed(model) == weights(layers(model)) | HEAD


@functools.cache
def application() -> keras.Model:
    with keras.StatelessScope(initialize_variables=False):  # no value is read
        return keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3))


def keras_users_choice(number: int) -> set[str]:
    """What somebody with a plain Keras application trains who freezes `base.layers[:number]`."""
    base = application()
    base.trainable = True
    for layer in base.layers[:number]:
        layer.trainable = False
    return {weight.path for weight in base.trainable_weights}


def test_layers_are_those_that_keras_users_count(model: keras.Model) -> None:
    freezing.apply(model, scope="from_layer", first=100)  # Keras counts the input too
    assert {weight.path for weight in model.trainable_weights} == keras_users_choice(101) | HEAD
    freezing.apply(model, scope="top", layers=50)
    assert {weight.path for weight in model.trainable_weights} == keras_users_choice(-50) | HEAD


def test_convs_only_trains_the_convolutions_of_the_chosen_layers(model: keras.Model) -> None:
    freezing.apply(model, scope="from_layer", first=60, convs_only=True)
    convolutions = [layer for layer in layers(model)[60:] if type(layer).__name__ in CONVOLUTIONS]
    assert {type(layer).__name__ for layer in convolutions} == {"Conv2D", "DepthwiseConv2D"}
    assert changed(model) == weights(convolutions) | HEAD  # neither scales nor statistics of batch normalisation


def test_freeze_bn_keeps_scales_and_statistics_to_the_bit(model: keras.Model) -> None:
    freezing.apply(model, scope="top", percent=60, freeze_bn=True)
    chosen = [layer for layer in layers(model)[len(layers(model)) * 2 // 5:]]
    norms = {path for path in weights(chosen) if re.search(r"/(gamma|beta|moving_mean|moving_variance)$", path)}
    assert norms
    assert changed(model) == weights(chosen) - norms | HEAD


def test_the_heads_batch_normalisation_always_trains() -> None:
    small = models.build("cnn", weights="none", head="dense(8) | batch_norm", image_size=32, num_classes=3, seed=0)
    freezing.apply(small, scope="all", convs_only=True, freeze_bn=True)
    freezing.apply(small, scope="head", freeze_bn=True)
    norm = {f"batch_norm_1/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert changed(small) == HEAD | norm


def test_each_part_of_a_concat_is_counted_by_itself(both: keras.Model) -> None:
    freezing.apply(both, scope="top", layers=40, freeze_bn=True)
    for part in (SMALL, LITE):
        chosen = layers(both, part)[-40:]
        assert [layer for layer in layers(both, part) if layer.trainable] == [
            layer for layer in chosen if "BatchNormalization" not in type(layer).__name__]
    trained = {path for part in (SMALL, LITE) for path in weights(layers(both, part)[-40:])
               if path.endswith(("/kernel", "/bias"))}
    assert changed(both) == trained | HEAD
    freezing.apply(both, scope="top", percent=50)
    for part, count in ((SMALL, 78), (LITE, 71)):  # of 156 and of 141 layers
        assert [layer.trainable for layer in layers(both, part)] == [False] * (len(layers(both, part)) - count) + [
            True] * count


def test_the_table_counts_every_parameter_once(model: keras.Model, both: keras.Model) -> None:
    for network, parts in ((model, ["backbone"]), (both, [SMALL, LITE])):
        frozen, trained = ([f"{part}, {word}" for part in parts] for word in ("frozen", "trained"))
        mixed = [row for pair in zip(frozen, trained, strict=True) for row in pair]
        for scope, expected in (("head", frozen), ("all", trained), ("top", mixed)):
            freezing.apply(network, scope=scope, percent=50)
            rows = freezing.table(network)
            assert [row[0] for row in rows] == [*expected, "head"]
            assert sum(row[2] for row in rows) == sum(math.prod(v.shape) for v in network.trainable_weights)
            assert sum(row[2] + row[3] for row in rows) == network.count_params()
    freezing.apply(both, scope="head")
    # Layers as published, with the rescaling; parameters as published, without the classes; 576 + 1280 features.
    assert freezing.table(both) == [(f"{SMALL}, frozen", 156, 0, 939_120), (f"{LITE}, frozen", 141, 0, 3_413_024),
                                    ("head", 2, 1856 * 8 + 8 + 8 * 3 + 3, 0)]


SMALL_STARTS = {"conv": 1, "expanded_conv_depthwise": 2, "expanded_conv_1_depthwise": 3, "expanded_conv_3_depthwise": 4,
                "expanded_conv_8_depthwise": 5}  # the strided layers of the paper's table, and what they begin
LITE_STARTS = {"stem_conv": 1, "block1_depthwise_conv": 2, "block3_depthwise_conv": 3, "block5_depthwise_conv": 4,
               "block11_depthwise_conv": 5}


def by_hand(members: list[keras.Layer], starts: dict[str, int], decay: float) -> dict[str, float]:
    factors: dict[str, float] = {}
    group = 0
    for layer in members:
        group = starts.get(layer.name, group)
        factors |= {weight.path: decay ** (6 - group) for weight in layer.trainable_weights}
    return factors


@pytest.mark.parametrize("side", [32, 96])  # at 32 the last feature map is 1x1, as squeeze-and-excitation is everywhere
def test_a_resolution_learns_slower_than_the_one_after_it(both: keras.Model, side: int) -> None:
    network = both
    if side != 32:
        with keras.StatelessScope(initialize_variables=False):  # no value is read
            network = models.build(f"concat({SMALL}, {LITE})", weights="none", head="dense(8)", image_size=side,
                                   num_classes=3, seed=0)
    for options in ({"scope": "all"}, {"scope": "top", "percent": 70, "freeze_bn": True}):
        freezing.apply(network, **options)
        expected = dict.fromkeys(HEAD, 1.0)
        for part, starts in ((SMALL, SMALL_STARTS), (LITE, LITE_STARTS)):
            expected |= by_hand(layers(network, part), starts, 0.8)
        assert freezing.learning_rate_factors(network, 0.8) == pytest.approx(expected)
        assert len(expected) == len(network.trainable_variables)


def toy() -> keras.Model:
    """Padding, squeeze-and-excitation, a model inside the model, and a way up: 16, 8, 4 and 8 pixels."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="whole")(image)
    x = keras.layers.ZeroPadding2D(3)(x)
    x = skip = keras.layers.Conv2D(4, 8, 2, name="half")(x)
    excited = keras.layers.Conv2D(4, 1, name="excite")(keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="half_too")(keras.layers.Multiply()([x, excited]))
    x = keras.Sequential([keras.layers.BatchNormalization(name="norm"), keras.layers.Conv2D(8, 2, 2, name="inner")],
                         name="quarter")(x)
    x = keras.layers.Conv2DTranspose(4, 2, 2, name="up")(x)
    x = keras.layers.SeparableConv2D(4, 1, name="last")(keras.layers.Concatenate()([x, skip]))
    backbone = keras.Model(image, x, name="backbone")
    entry = keras.Input(backbone.output.shape[1:])
    head = keras.Model(entry, keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(entry)), name="head")
    outer = keras.Input((16, 16, 3))
    return keras.Model(outer, head(backbone(outer)))


def test_groups_by_hand_on_the_way_down_and_up() -> None:
    network = toy()
    powers = {"whole": 4, "half": 3, "excite": 3, "half_too": 3, "norm": 2, "inner": 2, "up": 1, "last": 1, "logits": 0}
    freezing.apply(network, scope="all")
    factors = freezing.learning_rate_factors(network, 0.5)
    assert factors == {
        variable.path: 0.5 ** powers[variable.path.split("/")[-2]] for variable in network.trainable_variables}


def test_layers_inside_a_layer_are_frozen_with_it_and_by_their_kind() -> None:
    network = toy()

    def trained() -> set[str]:
        return {variable.path.split("/")[-2] for variable in network.trainable_variables} - {"logits"}

    freezing.apply(network, scope="top", layers=4)  # the model inside, and what follows it
    assert trained() == {"norm", "inner", "up", "last"}
    freezing.apply(network, scope="top", layers=4, convs_only=True)
    assert trained() == {"inner", "up", "last"}
    freezing.apply(network, scope="all", freeze_bn=True)
    assert trained() == {"whole", "half", "excite", "half_too", "inner", "up", "last"}
    freezing.apply(network, scope="top", layers=3)
    assert trained() == {"up", "last"}
    freezing.apply(network, scope="all")
    assert "norm" in trained()


@pytest.mark.parametrize(("options", "message"), [
    ({"scope": "tpo"}, "did you mean 'top'"),
    ({"scope": "top", "percent": -1}, r"expected 0\.\.100"),
    ({"scope": "top", "percent": 101}, r"expected 0\.\.100"),
    ({"scope": "top", "percent": float("nan")}, r"expected 0\.\.100"),
    ({"scope": "top", "layers": 0}, rf"top\(layers\) expected 1\.\.156 for {SMALL}, received 0"),
    ({"scope": "top", "layers": 150}, rf"top\(layers\) expected 1\.\.141 for {LITE}, received 150"),
    ({"scope": "from_layer", "first": 141}, rf"from_layer\(first\) expected 0\.\.140 for {LITE}, received 141"),
    ({"scope": "from_layer"}, rf"expected 0\.\.155 for {SMALL}, received None"),
])
def test_a_mistake_is_one_line_and_changes_nothing(both: keras.Model, options: dict, message: str) -> None:
    freezing.apply(both, scope="top", percent=50)
    before = freezing.table(both)
    with pytest.raises(InputError, match=message) as caught:
        freezing.apply(both, **options)
    assert "\n" not in str(caught.value)
    assert freezing.table(both) == before


def test_a_lone_backbone_is_called_so(model: keras.Model) -> None:
    with pytest.raises(InputError, match=r"expected 0\.\.155 for the backbone, received 156"):
        freezing.apply(model, scope="from_layer", first=156)
