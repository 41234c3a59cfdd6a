"""The step: what XLA compiles, how many replicas share it and which precision it uses change nothing that matters."""

import itertools
import os
import pathlib
import subprocess
import sys
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell import augment
from bloodcell.data.pipeline import Pipeline
from bloodcell.errors import InputError
from bloodcell.train import averaging, losses, optimizers, step
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


FLAGS = {"clipped": {"optimizer": "adamw(weight_decay=0.01, clipnorm=0.05)"},
         "views and mixing": {"loss": "jsd(weight=4, smoothing=0.1)", "mix": "mixup(0.4)@0.7"}}


@pytest.fixture(scope="module")
def taken():
    """Returns what runs have come to, so that no test takes the same steps again."""
    return {}


@pytest.fixture
def outcome(taken, tiny, make_images):
    """Returns a function: how and in how many parts -> the sums of each step, and the variables after the last."""
    def of(flags, jit, *, parts=1, precision="float32"):
        key = flags, jit, parts, precision
        if key not in taken:
            model = tiny("plain")
            sums, _ = run_steps(model, one_device(jit, precision), make_images(20), accumulate=parts,
                                weights=np.array([1, 2, 0.5], np.float32), **FLAGS[flags])
            taken[key] = sums, [variable.numpy() for variable in model.variables]
        return taken[key]
    return of


@pytest.mark.parametrize("flags", FLAGS)
def test_jit_modes_agree(outcome, flags):
    sums, variables = outcome(flags, "off")
    assert sums[:, 1].tolist() == [8, 8, 4, 8, 8, 4]  # the third batch of each epoch is padded
    for jit in ("augment", "step"):
        own, compiled = outcome(flags, jit)
        np.testing.assert_allclose(own, sums, rtol=1e-4)
        for ours, plain in zip(compiled, variables, strict=True):
            np.testing.assert_allclose(ours, plain, atol=2e-4)


@pytest.mark.parametrize(("flags", "jit", "precision"), [
    ("clipped", "off", "float32"), ("views and mixing", "off", "float32"), ("clipped", "step", "float32"),
    ("clipped", "off", "mixed_float16")])
def test_a_batch_in_parts_takes_the_whole_batchs_step(outcome, flags, jit, precision):
    keras.config.set_dtype_policy(precision)
    whole_sums, whole_variables = outcome(flags, jit, precision=precision)
    sums, variables = outcome(flags, jit, precision=precision, parts=4)  # each third batch's last is padding alone
    loose = precision != "float32"
    np.testing.assert_allclose(sums, whole_sums, rtol=1e-2 if loose else 1e-4)
    for parted, whole in zip(variables, whole_variables, strict=True):
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
    ("mixed_bfloat16", {}), ("mixed_float16", {"loss": "jsd(weight=12)"})])
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


# ---- On two replicas: in a process of its own, whose CPU is two devices ----------------------------------------------


def copies_of(runtime, variables):
    """Returns each variable's values on the replicas."""
    return [[copy.numpy() for copy in runtime.strategy.experimental_local_results(variable.value)]
            for variable in variables]


def are_equal(copies):
    return all(np.array_equal(copy, each[0]) for each in copies for copy in each)


def take_steps(replicas, *, name="plain", precision="float32", **flags):
    from conftest import build_tiny, images_like
    runtime = resolve(strategy="auto", replicas=replicas, precision=precision, jit="augment", seed=0)
    assert runtime.replicas == runtime.strategy.num_replicas_in_sync == replicas
    with runtime.strategy.scope():
        model = build_tiny(name)
    sums, _ = run_steps(model, runtime, images_like(20), weights=np.array([0.5, 1, 2], np.float32), **flags)
    copies = copies_of(runtime, model.variables)
    assert {len(each) for each in copies} == {replicas}
    assert are_equal(copies)
    return runtime, model, sums, {str(index): each[0] for index, each in enumerate(copies)}


def steps_and_validation(replicas):
    from conftest import images_like
    loss = "jsd(weight=12)"
    runtime, model, sums, values = take_steps(replicas, optimizer="adamw(clipnorm=0.1)", loss=loss)
    check = step.eval_step(model, inputs=step.inputs(mirror_policy, runtime, 0, num_classes=3),
                           loss=losses.parse(loss), runtime=runtime)
    batches = Pipeline(images_like(20, seed=1), batch_size=8).in_order()
    checked = [check(batch, np.int64(0)).numpy()
               for batch in runtime.strategy.experimental_distribute_dataset(batches)]
    return {"sums": sums, "checked": checked, **values}


def float16_steps():
    _, _, sums, values = take_steps(2, name="tiny", precision="mixed_float16", optimizer="adamw(clipnorm=1.0)",
                                    loss="jsd(weight=12)", mix="mixup(1.0)")
    return {"sums": sums, **values}


def optimizers_steps():
    from test_optimizers import SPECS
    rng = np.random.default_rng(0)
    first = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,))]
    shares = [[rng.normal(size=(2, *value.shape)).astype(np.float32) for value in first] for _ in range(8)]
    for text in SPECS.values():
        ends = []
        for replicas in (2, 1):
            runtime = resolve(strategy="auto", replicas=replicas, precision="float32", jit="off", seed=0)
            with runtime.strategy.scope():
                variables = [keras.Variable(value, name=name)
                             for name, value in zip(("kernel", "bias"), first, strict=True)]
                factors = {variable.path: part for variable, part in zip(variables, (0.5, 0.25), strict=True)}
                optimizer = optimizers.build(optimizers.parse(text), learning_rate=0.0625, variables=variables,
                                             precision="float32", factors=factors)

            def replica(*both, optimizer=optimizer, variables=variables, replicas=replicas):
                here = tf.distribute.get_replica_context().replica_id_in_sync_group
                optimizer.apply([tf.gather(each, here) if replicas == 2 else tf.reduce_sum(each, 0) for each in both],
                                variables)

            take = tf.function(lambda *both, run=runtime.strategy.run, replica=replica: run(replica, args=both),
                               autograph=False)
            for both in shares:
                take(*map(tf.constant, both))
            copies = copies_of(runtime, [*variables, *optimizer.variables])
            assert {len(each) for each in copies} == {replicas}
            assert are_equal(copies), text
            ends.append([each[0] for each in copies])
        for mirrored, alone in zip(*ends, strict=True):
            np.testing.assert_allclose(mirrored, alone, rtol=1e-5, atol=1e-6, err_msg=text)


def averages():
    from conftest import build_tiny
    runtime = resolve(strategy="auto", replicas=2, precision="float32", jit="off", seed=0)
    for text in ("ema(0.8)", "swa(0.5)"):
        settings = averaging.parse(text)
        assert settings is not None
        with runtime.strategy.scope():
            model = build_tiny()
            average = averaging.Average(settings, model, 6)
        floats = [variable for variable in model.variables if variable.dtype == "float32"]
        first, seen = [variable.numpy() for variable in floats], []
        for number in range(1, 7):
            rng = np.random.default_rng(number)
            for variable in floats:
                variable.assign(rng.normal(size=variable.shape))
                if "moving" in variable.name:  # gathered by each replica from its own rows
                    for copy in runtime.strategy.experimental_local_results(variable.value):
                        copy.assign(rng.normal(size=variable.shape))
            seen.append([np.mean(each, axis=0) for each in copies_of(runtime, floats)])
            average.after_step(number)
            average.after_epoch(number)
        for index, (mean, copies) in enumerate(zip(average.variables[1:], copies_of(runtime, average.variables[1:]),
                                                   strict=True)):
            assert np.array_equal(*copies), mean.path
            expected = first[index]
            for count, values in enumerate(seen):
                now = min(0.8, (1 + count) / (10 + count))
                expected = now * expected + (1 - now) * values[index]
            if text == "swa(0.5)":
                expected = np.mean([values[index] for values in seen[2:]], axis=0)
            np.testing.assert_allclose(copies[0], expected, rtol=1e-5, atol=1e-6, err_msg=mean.path)
        raw = copies_of(runtime, floats)
        assert any(not np.array_equal(*copies) for copies in raw)
        with average.swapped():
            for copies, mean in zip(copies_of(runtime, floats), average.variables[1:], strict=True):
                assert all(np.array_equal(copy, mean.numpy()) for copy in copies)
        for copies, before in zip(copies_of(runtime, floats), raw, strict=True):
            assert all(map(np.array_equal, copies, before))


JOBS = {"two": lambda: steps_and_validation(2), "one": lambda: steps_and_validation(1), "float16": float16_steps,
        "optimizers": optimizers_steps, "averages": averages}


def work(folder):
    """Does all jobs, one after the other: TensorFlow starts once. Each leaves its arrays, or what went wrong."""
    for name, job in JOBS.items():
        try:
            np.savez(f"{folder}/{name}.npz", **(job() or {}))
        except Exception:
            pathlib.Path(folder, f"{name}.txt").write_text(traceback.format_exc())


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Returns a function: a job -> its arrays; the job has failed where it left none."""
    folder = tmp_path_factory.mktemp("replicas")
    done = subprocess.run([sys.executable, "-c", "import sys, test_compiled_step as this; this.work(sys.argv[1])",
                           str(folder)], cwd=REPO, capture_output=True, text=True, timeout=280, check=False,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3",
                               "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests/train")])})
    assert done.returncode == 0, done.stderr[-3000:]

    def of(job):
        failure = folder / f"{job}.txt"
        assert not failure.exists(), failure.read_text()
        with np.load(folder / f"{job}.npz") as arrays:
            return dict(arrays)
    return of


def test_two_replicas_give_the_weights_of_one_within_rounding_also_in_views(replicas):
    # Without dropout and batch norm: those draw and count over a replica's own rows. Clipping sees the whole batch.
    one, two = replicas("one"), replicas("two")
    assert one.keys() == two.keys() > {"sums", "checked"}
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=2e-4, err_msg=name)


def test_two_replicas_run_float16_with_everything_that_is_a_replicas_own_and_stay_equal(replicas):
    # Dropout, batch norm and partners in mixing differ between replicas; gradients, clipping and loss scale do not.
    assert np.isfinite(replicas("float16")["sums"]).all()


def test_two_replicas_take_every_optimizers_steps_as_one_and_keep_equal_state(replicas):
    replicas("optimizers")


def test_replicas_share_one_mean_and_get_back_their_own_statistics(replicas):
    replicas("averages")


# ---- What a machine gives --------------------------------------------------------------------------------------------


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
