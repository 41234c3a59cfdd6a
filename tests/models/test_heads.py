"""A head is what its spec says: each operation against the same numbers by NumPy, or the same layers by hand."""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.models import heads

MAPS = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype("float32")
FEATURES = keras.Input((3, 3, 5))


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


VECTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda maps: maps.mean((1, 2)),
    "pool('avg')": lambda maps: maps.mean((1, 2)),
    "pool('max')": lambda maps: maps.max((1, 2)),
    "pool('avg_max')": lambda maps: np.concatenate([maps.mean((1, 2)), maps.max((1, 2))], axis=1),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
}


@pytest.mark.parametrize("text", VECTORS)
def test_the_first_operation_makes_the_vector_that_the_logits_see(text: str) -> None:
    head = heads.build(text, FEATURES, 6)
    kernel, bias = head.get_layer("logits").get_weights()
    np.testing.assert_allclose(head(MAPS), VECTORS[text](MAPS) @ kernel + bias, atol=1e-5)


def test_a_head_equals_the_same_layers_by_hand() -> None:
    head = heads.build("pool('avg_max') | dense(7, 'linear') | batch_norm | activation('swish') | dense(6) | "
                       "dropout(0.4) | dense(5, activation='tanh')", FEATURES, 3)
    entry = keras.Input((3, 3, 5))
    x = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(entry),
                                    keras.layers.GlobalMaxPooling2D()(entry)])
    x = keras.layers.BatchNormalization()(keras.layers.Dense(7)(x))
    x = keras.layers.Dense(6, activation="relu")(keras.layers.Activation("swish")(x))
    x = keras.layers.Dense(5, activation="tanh")(keras.layers.Dropout(0.4)(x))
    plain = keras.Model(entry, keras.layers.Dense(3)(x))
    random = np.random.default_rng(1)
    # Small, or the last activation is 1 whatever the dropout leaves.
    plain.set_weights([random.uniform(0.05, 0.15, weight.shape) for weight in plain.get_weights()])
    head.set_weights(plain.get_weights())
    np.testing.assert_allclose(head(MAPS, training=False), plain(MAPS, training=False), rtol=1e-5)
    assert head.get_layer("dropout_4").rate == 0.4
    drawn = np.stack([head(MAPS, training=True) for _ in range(2)])
    assert not np.array_equal(drawn[0], drawn[1])  # the dropout


def test_a_head_that_names_no_pooling_is_the_one_that_names_the_average() -> None:
    silent, named = (heads.build(text, FEATURES, 3) for text in ("dense(4) | dropout(0.1)",
                                                                 "pool('avg') | dense(4) | dropout(0.1)"))
    assert [layer.name for layer in silent.layers] == [layer.name for layer in named.layers]
    assert [weight.path for weight in silent.weights] == [weight.path for weight in named.weights]


def test_pooled_features_go_into_the_spec_as_they_are() -> None:
    head = heads.build("dense(4, 'linear') | activation('relu')", keras.Input((5,)), 3)
    assert [type(layer).__name__ for layer in head.layers] == ["InputLayer", "Dense", "Activation", "Dense"]
    (kernel, bias), (out, shift) = (head.get_layer(name).get_weights() for name in ("dense_0", "logits"))
    vectors = MAPS[:, 0, 0]
    np.testing.assert_allclose(head(vectors), np.maximum(vectors @ kernel + bias, 0) @ out + shift, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("text", VECTORS)
def test_vectors_and_logits_are_float32_in_any_precision(text: str, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    half = policy.removeprefix("mixed_")
    entry = keras.Input((3, 3, 5), dtype=half)
    head = heads.build(text, entry, 6)
    maps = tf.cast(MAPS, half)
    kernel, bias = head.get_layer("logits").get_weights()
    exact = VECTORS[text](tf.cast(maps, "float32").numpy())
    logits = head(maps)
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, exact @ kernel + bias, atol=1e-5)  # a 16-bit vector is off by 1e-3


MISTAKES = {
    "pool after dense": ("dense(8) | pool('max')", r"pool as the first operation.*'pool\('max'\)' as number 2"),
    "flatten after dropout": ("dropout(0.1) | flatten", "flatten as the first operation"),
    "pool twice": ("pool('max') | pool('avg')", "number 2"),
    "flatten after pool": ("pool('max') | flatten", "number 2"),
    "unknown pool": ("pool('median')", "expected 'avg' or 'max' or 'avg_max'"),
    "pool of nothing": ("pool", "expected kind='avg' or"),
    "flatten of something": ("flatten(2)", "it takes none"),
    "activation of nothing": ("activation", "expected activation='relu' or"),
    "unknown activation": ("activation('exec')", "expected 'relu' or"),
    "unknown operation": ("pol('max')", "did you mean 'pool'"),
    "no units": ("dense", "expected units="),
    "gate": ("pool('max')@0.5", "expected no '@p'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(InputError, match=message) as caught:
        heads.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["pool('max')", "flatten | dense(8)"])
def test_pooling_of_pooled_features_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected no pool or flatten for a concat") as caught:
        heads.parse(text, pooled=True)
    assert "\n" not in str(caught.value)


def test_a_layer_beyond_reason_is_one_line() -> None:
    large = keras.Input((64, 64, 1280))
    for text in ("flatten | dense(16384)", "flatten"):
        with pytest.raises(InputError, match=r"received [\d,]+ units on 5,242,880 values") as caught:
            heads.build(text, large, 100)
        assert "\n" not in str(caught.value)
