"""Devices, precision and compilation: what `auto` means on this machine. Nothing here knows about models or data."""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from bloodcell.errors import InputError

BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA's first generation with bfloat16 matrix units (Ampere)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How this process computes.

    Attributes:
      strategy: places variables and runs the step on every replica.
      replicas: in sync; the global batch is divided among them.
      precision: Keras's dtype policy: `float32`, `mixed_bfloat16` or `mixed_float16`.
      jit: `off`, `augment` (XLA compiles the augmentation) or `step` (augmentation, forward and backward).
      devices: the devices, for people.
    """

    strategy: tf.distribute.Strategy
    replicas: int
    precision: str
    jit: str
    devices: str

    @property
    def distributed(self) -> bool:
        """Whether a mirrored strategy is at work: then the optimizer stays outside the compiled program."""
        return isinstance(self.strategy, tf.distribute.MirroredStrategy)


def resolve(*, strategy: str, replicas: int, precision: str, jit: str, seed: int) -> Runtime:
    """Chooses devices, dtype policy and compilation, and seeds Keras, NumPy and Python.

    Call it before TensorFlow touches a device: GPU memory growth and logical CPU devices cannot change later.

    Args:
      strategy: `auto` (mirrored where there are several replicas), `mirrored`, or `none` (one device).
      replicas: 0 for every visible GPU; more than 1 without a GPU makes that many logical CPU devices.
      precision: `auto` or a dtype policy. Auto is `mixed_bfloat16` where all GPUs have compute capability 8.0 or
        more, `mixed_float16` on lesser GPUs, `float32` on the CPU.
      jit: `auto`, `off`, `augment` or `step`. Auto is `step` on GPUs; on the CPU it is `augment`, because XLA's CPU
        convolutions are about ten times slower than TensorFlow's own.
      seed: for weights and dropout.

    Raises:
      InputError: more replicas than devices, or replicas under `strategy=none`.
    """
    if replicas < 0:
        raise InputError(f"replicas: expected 0 (all visible devices) or more, received {replicas}")
    gpus = tf.config.list_physical_devices("GPU")
    count = replicas or max(len(gpus), 1)
    if strategy == "none":
        if replicas > 1:
            raise InputError(f"strategy: expected 'mirrored' or 'auto' for {replicas} replicas, received 'none'")
        count = 1
    if gpus and count > len(gpus):
        raise InputError(f"replicas: expected at most {len(gpus)} (the visible GPUs), received {count}")

    if gpus:
        _grow_memory(gpus)
        names = [f"GPU:{index}" for index in range(count)]
        devices = _gpu_names(gpus[:count])
    else:
        names = _cpu_devices(count)
        devices = "CPU" if count == 1 else f"CPU as {count} logical devices"

    if precision == "auto":
        precision = _best_precision(gpus[:count])
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    if jit == "auto":
        jit = "step" if gpus else "augment"

    if count > 1 or strategy == "mirrored":
        reduction = None if gpus else tf.distribute.ReductionToOneDevice()  # NCCL needs GPUs
        chosen = tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)
    else:
        chosen = tf.distribute.get_strategy()  # TensorFlow's default: one device, nothing in between
    return Runtime(chosen, count, precision, jit, devices)


def _grow_memory(gpus: list[tf.config.PhysicalDevice]) -> None:
    for gpu in gpus:
        if not tf.config.experimental.get_memory_growth(gpu):
            try:
                tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:  # already initialised by the caller, who then chose how memory is taken
                return


def _cpu_devices(count: int) -> list[str]:
    """Splits the CPU into logical devices; they share its cores, so this is for tests of replication."""
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        with contextlib.suppress(RuntimeError):  # TensorFlow has started: fine where the devices are there already
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        made = len(tf.config.list_logical_devices("CPU"))
        if made < count:
            raise InputError(f"replicas: expected at most {made} logical CPU devices in this process, received "
                             f"{count}; try a fresh process, they must be made before TensorFlow starts")
    return [f"CPU:{index}" for index in range(count)]


def _gpu_names(gpus: list[tf.config.PhysicalDevice]) -> str:
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _best_precision(gpus: list[tf.config.PhysicalDevice]) -> str:
    if not gpus:
        return "float32"
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    return "mixed_bfloat16" if min(capabilities) >= BFLOAT16_CAPABILITY else "mixed_float16"
