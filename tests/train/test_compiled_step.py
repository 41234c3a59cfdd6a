"""The step: what XLA compiles, how many replicas share it and which precision it uses change nothing that matters."""

import itertools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.train import losses, optimizers, step
from bloodcell.train.strategy import Runtime, resolve

REPO = pathlib.Path(__file__).resolve().parents[2]


def mirror_policy(images, ids, *, epoch, seed, dtype="float32"):
    """Mirrors every second image, another half each epoch; depends on nothing but its arguments."""
    turn = tf.equal((ids + tf.cast(epoch, tf.int64) + seed) % 2, 0)
    return tf.cast(tf.where(turn[:, None, None, None], tf.reverse(images, [2]), images), dtype)


def run_steps(model, runtime, images, *, count=6, optimizer="adamw(weight_decay=0.01)", weights=None, lr=0.01,
              loss="cross_entropy(smoothing=0.1)", mix="", accumulate=1):
    settings = optimizers.parse(optimizer)
    with runtime.strategy.scope():
        made = optimizers.build(settings, learning_rate=lr, variables=model.trainable_variables,
                                precision=runtime.precision)
    parsed = losses.parse(loss)
    inputs = step.inputs(mirror_policy, runtime, 5, num_classes=3, mixer=augment.parse_mix(mix), views=parsed.views)
    take = step.train_step(model, made, inputs=inputs, loss=parsed,
                           class_weights=np.ones(3, np.float32) if weights is None else weights,
                           runtime=runtime, clipnorm=settings.clipnorm, accumulate=accumulate)
    pipeline = Pipeline(images, batch_size=8)
    sums = []
    for epoch in itertools.count(1):
        for batch in runtime.strategy.experimental_distribute_dataset(pipeline.epoch(0, epoch)):
            sums.append(take(batch, tf.constant(epoch, tf.int64)).numpy())
            if len(sums) == count:
                return np.array(sums), made
    raise AssertionError


def one_device(jit="off", precision="float32"):
    return Runtime(tf.distribute.get_strategy(), 1, precision, jit, "CPU")


@pytest.mark.parametrize("flags", [{}, {"mix": "oneof(mixup(0.4), cutmix(1.0))"}, {"loss": "jsd(weight=12)"},
                                   {"loss": "jsd(weight=4, smoothing=0.1)", "mix": "mixup(1.0)@0.7"}])
def test_jit_modes_agree(tiny, make_images, flags):
    images = make_images(20)  # the third batch of each epoch is padded
    outcomes = {}
    for jit in ("off", "augment", "step"):
        model = tiny("plain")
        sums, _ = run_steps(model, one_device(jit), images, **flags)
        outcomes[jit] = sums, [variable.numpy() for variable in model.variables]
    assert outcomes["off"][0][:, 1].tolist() == [8, 8, 4, 8, 8, 4]
    for jit in ("augment", "step"):
        np.testing.assert_allclose(outcomes[jit][0], outcomes["off"][0], rtol=1e-4)
        for ours, plain in zip(outcomes[jit][1], outcomes["off"][1], strict=True):
            np.testing.assert_allclose(ours, plain, atol=2e-4)


@pytest.mark.parametrize(("jit", "precision", "flags"), [
    ("off", "float32", {}),
    ("off", "float32", {"loss": "jsd(weight=12)", "mix": "mixup(1.0)"}),
    ("step", "float32", {"optimizer": "adamw(weight_decay=0.01, clipnorm=0.05)"}),
    ("off", "mixed_float16", {}),
])
def test_a_batch_in_parts_takes_the_whole_batchs_step(tiny, make_images, jit, precision, flags):
    images = make_images(20)  # the last part of each third batch is padding alone
    keras.config.set_dtype_policy(precision)
    outcomes = []
    for parts in (1, 4):
        model = tiny("plain")
        sums, _ = run_steps(model, one_device(jit, precision), images, weights=np.array([1, 2, 0.5], np.float32),
                            accumulate=parts, **flags)
        outcomes.append((sums, [variable.numpy() for variable in model.variables]))
    loose = precision != "float32"
    np.testing.assert_allclose(outcomes[1][0], outcomes[0][0], rtol=1e-2 if loose else 1e-4)
    for parted, whole in zip(outcomes[1][1], outcomes[0][1], strict=True):
        np.testing.assert_allclose(parted, whole, atol=5e-3 if loose else 2e-4)


def test_parts_normalise_and_drop_by_themselves_and_move_the_statistics_once_each(tiny, make_images):
    model, images = tiny(), make_images(8)
    before = model.get_layer("backbone").get_layer("norm").moving_mean.numpy()
    run_steps(model, one_device(), images, count=1, accumulate=4, lr=0.0)
    keras_model, expected = tiny(), before
    batch = next(iter(Pipeline(images, batch_size=8).epoch(0, 1)))
    shown = mirror_policy(batch["image"], batch["id"], epoch=1, seed=5)
    convolution = keras.Model(keras_model.get_layer("backbone").input,
                              keras_model.get_layer("backbone").get_layer("convolution").output)
    for part in range(4):
        mean = convolution(shown[2 * part:2 * part + 2]).numpy().mean(axis=(0, 1, 2))
        expected = expected * 0.99 + mean * 0.01
    np.testing.assert_allclose(model.get_layer("backbone").get_layer("norm").moving_mean.numpy(), expected, atol=1e-6)


def test_one_step_equals_the_gradient_written_by_hand(tiny, make_images):
    # In eager mode, class weights and padding included; Adam's first step is lr * sign(gradient).
    images, weights = make_images(5), np.array([0.5, 1.0, 2.0], np.float32)
    model = tiny("plain")
    before = [variable.numpy() for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        flipped = mirror_policy(tf.constant(images.images), tf.constant(images.ids), epoch=1, seed=5)
        log_p = tf.nn.log_softmax(model(flipped))
        target = tf.one_hot(images.labels, 3) * 0.9 + 0.1 / 3
        loss = tf.reduce_sum(-tf.reduce_sum(target * log_p, axis=1) * weights[images.labels]) / 5
    grads = [grad.numpy() for grad in tape.gradient(loss, [variable.value for variable in model.trainable_variables])]
    sums, _ = run_steps(model, one_device(), images, count=1, optimizer="adam(epsilon=1e-12)", weights=weights)
    assert sums[0, 0] / 5 == pytest.approx(float(loss), rel=1e-5)
    for variable, old, grad in zip(model.trainable_variables, before, grads, strict=True):
        clear = np.abs(grad) > 1e-5
        np.testing.assert_allclose((variable.numpy() - old)[clear], -0.01 * np.sign(grad)[clear], rtol=1e-2)


@pytest.mark.parametrize(("precision", "flags"), [
    ("mixed_bfloat16", {}), ("mixed_float16", {}),
    ("mixed_bfloat16", {"loss": "jsd(weight=12)"}), ("mixed_float16", {"loss": "jsd(weight=12)", "mix": "mixup@0.2"})])
def test_mixed_precision_learns_with_float32_variables_and_a_finite_loss(tiny, make_images, precision, flags):
    runtime = resolve(strategy="none", replicas=0, precision=precision, jit="off", seed=0)
    model = tiny()
    assert model.get_layer("backbone").get_layer("convolution").compute_dtype == precision.removeprefix("mixed_")
    sums, optimizer = run_steps(model, runtime, make_images(24), count=30, optimizer="adamw(clipnorm=1.0)", lr=0.02,
                                **flags)
    assert np.isfinite(sums).all()
    assert sums[-3:, 0].sum() < sums[:3, 0].sum()
    assert {variable.dtype for variable in model.weights} == {"float32"}
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")


def test_loss_scaling_skips_the_step_that_overflows(tiny, make_images):
    runtime = resolve(strategy="none", replicas=0, precision="mixed_float16", jit="off", seed=0)
    model = tiny("plain")
    before = [variable.numpy() for variable in model.variables]
    scale = 2.0**15
    sums, optimizer = run_steps(model, runtime, make_images(8), count=1, optimizer="adam(clipnorm=1.0)",
                                weights=np.full(3, 1e30, np.float32))
    assert np.isfinite(sums).all()
    assert float(optimizer.dynamic_scale.numpy()) == scale / 2
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_clipping_limits_the_norm_of_all_gradients_together():
    grads = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    clipped = step._clipped(grads, tf.linalg.global_norm(grads), 1.0)
    np.testing.assert_allclose(np.concatenate([np.ravel(grad) for grad in clipped]), [0.6, 0.0, 0.8], rtol=1e-6)
    assert step._clipped(grads, tf.linalg.global_norm(grads), 10.0)[0].numpy().tolist() == [3.0, 0.0]


REPLICAS = """
import sys
import numpy as np
from bloodcell.train import step, strategy
replicas, name, precision, jit, optimizer, loss, mix, out = int(sys.argv[1]), *sys.argv[2:]
runtime = strategy.resolve(strategy="auto", replicas=replicas, precision=precision, jit=jit, seed=0)
assert runtime.replicas == replicas and runtime.strategy.num_replicas_in_sync == replicas
sys.path.insert(0, "tests/train")
import conftest, test_compiled_step
with runtime.strategy.scope():
    model = conftest.build_tiny(name)
sums, _ = test_compiled_step.run_steps(model, runtime, conftest.images_like(20), optimizer=optimizer, loss=loss,
                                       mix=mix, weights=np.array([0.5, 1, 2], np.float32))
copies = [np.concatenate([np.ravel(value) for value in runtime.strategy.experimental_local_results(v.value)])
          for v in model.variables]
assert all(np.array_equal(*np.split(copy, 2)) for copy in copies) if replicas == 2 else True
inputs = step.inputs(test_compiled_step.mirror_policy, runtime, 0, num_classes=3)
check = step.eval_step(model, inputs=inputs, loss=test_compiled_step.losses.parse(loss), runtime=runtime)
batches = test_compiled_step.Pipeline(conftest.images_like(20, seed=1), batch_size=8).in_order()
checked = [check(batch, np.int64(0)).numpy() for batch in runtime.strategy.experimental_distribute_dataset(batches)]
np.savez(out, sums=sums, checked=checked, **{str(i): v.numpy() for i, v in enumerate(model.variables)})
"""


def run_replicas(tmp_path, replicas, *, name="plain", precision="float32", jit="augment", optimizer="adamw",
                 loss="cross_entropy(smoothing=0.1)", mix="", accumulate=1):
    out = tmp_path / f"{replicas}-{jit}.npz"
    done = subprocess.run([sys.executable, "-c", REPLICAS, str(replicas), name, precision, jit, optimizer, loss, mix,
                           str(out)], cwd=REPO,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPO)},
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as arrays:
        return dict(arrays)


def test_two_replicas_give_the_weights_of_one_within_rounding_also_in_views(tmp_path):
    # Without dropout and batch norm: those draw and count over a replica's own rows. Clipping sees the whole batch.
    one, two = (run_replicas(tmp_path, replicas, optimizer="adamw(clipnorm=0.1)", loss="jsd(weight=12)")
                for replicas in (1, 2))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=2e-4, err_msg=name)


def test_two_replicas_run_float16_with_everything_that_is_a_replicas_own_and_stay_equal(tmp_path):
    # Dropout, batch norm and partners in mixing differ between replicas; gradients, clipping and loss scale do not.
    two = run_replicas(tmp_path, 2, name="tiny", precision="mixed_float16", optimizer="adamw(clipnorm=1.0)",
                       loss="jsd(weight=12)", mix="oneof(mixup(0.2), cutmix(1.0))")
    assert np.isfinite(two["sums"]).all()


def test_auto_on_a_cpu_is_one_replica_in_float32_with_compiled_augmentation():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    runtime = resolve(strategy="auto", replicas=0, precision="auto", jit="auto", seed=0)
    assert (runtime.replicas, runtime.precision, runtime.jit, runtime.distributed) == (1, "float32", "augment", False)


@pytest.mark.parametrize(("flags", "line"), [
    ({"strategy": "none", "replicas": 2}, "'mirrored' or 'auto'"),
    ({"strategy": "auto", "replicas": -1}, "0 (all visible devices)"),
    ({"strategy": "auto", "replicas": 60}, "received 60"),
])
def test_replicas_that_cannot_be_had_are_one_line(flags, line):
    tf.config.list_logical_devices()  # TensorFlow has started: devices cannot be split any more
    with pytest.raises(InputError) as error:
        resolve(precision="float32", jit="off", seed=0, **flags)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
