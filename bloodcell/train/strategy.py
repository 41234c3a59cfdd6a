"""Devices, precision and compilation: what `auto` means on this machine. Nothing here knows about models or data."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.client import device_lib  # TensorFlow's public interface does not say how large a GPU is

from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.train import cluster
from bloodcell.train.cluster import Cluster

BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA's first generation with bfloat16 matrix units (Ampere)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How this process computes.

    Attributes:
      strategy: places variables and runs the step on every replica.
      replicas: in sync, over all workers together; the global batch is divided among them.
      precision: Keras's dtype policy: `float32`, `mixed_bfloat16` or `mixed_float16`.
      jit: `off`, `augment` (XLA compiles the augmentation) or `step` (augmentation, forward and backward).
      devices: the devices, for people.
      workers: processes that train together, each with the same number of replicas.
      worker: the index of this one.
      device_memory: bytes of the accelerator with the least of it; None without one.
      backend: who augments while training, `xla` or `native`; see `augment.native.backend`.
    """

    strategy: tf.distribute.Strategy
    replicas: int
    precision: str
    jit: str
    devices: str
    workers: int = 1
    worker: int = 0
    device_memory: int | None = None
    backend: str = "xla"

    @property
    def distributed(self) -> bool:
        """Whether variables are mirrored: then the optimizer stays outside the compiled program."""
        return isinstance(self.strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy,
                                          tf.distribute.TPUStrategy))

    @property
    def chief(self) -> bool:
        """Whether this process writes the run's folder and speaks; each run has one that does."""
        return self.worker == 0

    def distribute(self, batches: tf.data.Dataset, resident: Any = None) -> Iterable[Any]:
        """Hands batches to the replicas, each its part of the rows.

        Args:
          batches: elements are dicts of tensors of one static first dimension: the global batch, or, where there are
            several workers, the rows of this one (`Pipeline.of_worker`), as many batches on each.
          resident: of a pipeline; each batch gets it as "set".

        Returns:
          What the step takes, batch by batch; it can be iterated again.
        """
        parts: Iterable[Any]
        if self.workers == 1:
            parts = self.strategy.experimental_distribute_dataset(batches)
        else:
            parts = _OfWorker(self.strategy, batches, self.replicas // self.workers)
        return parts if resident is None else _WithSet(parts, resident)

    def keeps(self, images: ImageSet, cache: str) -> bool:
        """Returns whether a set lies on the devices while it is trained on: as `--cache` says, `auto` by their memory.

        Auto keeps a set that takes less than a fourth of the memory of each GPU; on a CPU it would be where it is.
        """
        if not isinstance(images.images, np.ndarray) or cache not in ("auto", "device"):
            return False
        return cache == "device" or images.images.nbytes < (self.device_memory or 0) / 4

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Raises InputError where workers differ in a fact; see `cluster.check_agreement`."""
        if self.workers > 1:
            cluster.check_agreement(self.strategy, facts)


@dataclasses.dataclass(frozen=True)
class _WithSet:
    """Batches, each with the whole set beside it."""

    batches: Iterable[Any]
    resident: Any

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield {**batch, "set": self.resident}


class _OfWorker:
    """A worker's batches among its replicas.

    Unlike `experimental_distribute_dataset`'s, whose iterator asks all workers before every batch whether any has one,
    and by whose sharding each reads, and decodes, all rows.
    """

    def __init__(self, strategy: tf.distribute.Strategy, batches: tf.data.Dataset, replicas: int):
        self._strategy, self._batches, self._replicas = strategy, batches, replicas

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            parts = {name: tf.split(value, self._replicas) for name, value in batch.items()}

            def of_replica(context: tf.distribute.experimental.ValueContext,
                           parts: dict[str, list[tf.Tensor]] = parts) -> dict[str, tf.Tensor]:
                place = context.replica_id_in_sync_group % self._replicas
                return {name: values[place] for name, values in parts.items()}

            yield self._strategy.experimental_distribute_values_from_function(of_replica)


def resolve(*, strategy: str, replicas: int, precision: str, jit: str, seed: int, training: bool = False) -> Runtime:
    """Chooses devices, dtype policy and compilation, and seeds Keras, NumPy and Python.

    Call it before TensorFlow touches a device: GPU memory growth and logical CPU devices cannot change later.

    Args:
      strategy: `auto` (several workers where `TF_CONFIG` names them, mirrored where there are several replicas),
        `mirrored`, `multiworker`, `tpu`, or `none` (one device).
      replicas: 0 for every visible GPU; more than 1 without a GPU makes that many logical CPU devices. Of several
        workers, the replicas of all together, as many on each, and one on each without a GPU.
      precision: `auto` or a dtype policy. Auto is `mixed_bfloat16` where all GPUs have compute capability 8.0 or
        more and on TPUs, `mixed_float16` on lesser GPUs, `float32` on the CPU.
      jit: `auto`, `off`, `augment` or `step`. Auto is `step` on GPUs; on the CPU it is `augment`, because XLA's CPU
        convolutions are about ten times slower than TensorFlow's own. A TPU compiles everything by itself: `off`.
      seed: for weights and dropout.
      training: whether other workers may take part; without it `auto` is about this process alone.

    Raises:
      InputError: more replicas than devices, replicas under `strategy=none`, a `TF_CONFIG` that cannot be used, or
        no TPU where one is asked for.
    """
    if replicas < 0:
        raise InputError(f"replicas: expected 0 (all visible devices) or more, received {replicas}")
    if strategy == "tpu":
        return _on_tpu(replicas, precision, seed)
    if strategy == "multiworker" and not training:
        raise InputError("strategy: expected 'auto', 'mirrored' or 'none' outside of training, received "
                         "'multiworker', try --strategy=none")
    members = cluster.from_environment() if training and strategy in ("auto", "multiworker") else None
    if strategy == "multiworker" and members is None:
        raise InputError(f"strategy: expected {cluster.VARIABLE} to name two workers or more for 'multiworker', "
                         f"received {os.environ.get(cluster.VARIABLE, '')!r}, try {cluster.VARIABLE}={cluster.EXAMPLE}")
    gpus = tf.config.list_physical_devices("GPU")
    count = _replicas_of_worker(replicas, len(members.workers), gpus) if members else replicas or max(len(gpus), 1)
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
        names = ["CPU:0"] if members else _cpu_devices(count)
        devices = "CPU" if count == 1 else f"CPU as {count} logical devices"

    if precision == "auto":
        precision = _best_precision(gpus[:count])
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    if jit == "auto":
        jit = "step" if gpus else "augment"

    workers, worker = (len(members.workers), members.index) if members else (1, 0)
    chosen: tf.distribute.Strategy
    if members:
        if gpus:
            tf.config.set_visible_devices(gpus[:count], "GPU")  # the strategy takes all that it sees
        chosen, devices = _join(members), f"{workers} workers x {devices}"
    elif count > 1 or strategy == "mirrored":
        reduction = None if gpus else tf.distribute.ReductionToOneDevice()  # NCCL needs GPUs
        with cluster.out_of_sight():
            chosen = tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)
    else:
        chosen = tf.distribute.get_strategy()  # TensorFlow's default: one device, nothing in between
    memory = _memory(count) if gpus else None  # asked last: it starts the devices
    return Runtime(chosen, count * workers, precision, jit, devices, workers, worker, memory)


def _replicas_of_worker(replicas: int, workers: int, gpus: list[tf.config.PhysicalDevice]) -> int:
    count = replicas // workers if replicas else max(len(gpus), 1)
    if count * workers != (replicas or count * workers) or (not gpus and count > 1):
        expected = f"0, or a multiple of the {workers} workers" if gpus else f"0 or {workers}, one CPU for each worker"
        raise InputError(f"replicas: expected {expected}, received {replicas}")
    return count


def _join(members: Cluster) -> tf.distribute.Strategy:
    """Waits for the other workers, and starts with them."""
    own = members.workers[members.index]
    others = ", ".join(address for address in members.workers if address != own)
    print(f"worker {members.index} of {len(members.workers)} at {own}: waiting for {others}", flush=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{cluster.VARIABLE}: expected a free port of this machine at {own} and the others at {others}"
                         f", received: {reason}; try other ports, and start all workers again") from None


def _on_tpu(replicas: int, precision: str, seed: int) -> Runtime:
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        chosen = tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:  # OSError: no such name in the network
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(": ")[0]
        raise InputError(f"strategy: expected a TPU under the name {name!r} (TPU_NAME) for 'tpu', received: {reason}; "
                         "try --strategy=auto") from None
    count = chosen.num_replicas_in_sync
    if replicas not in (0, count):
        raise InputError(f"replicas: expected 0 or {count} (the TPU's cores), received {replicas}")
    precision = "mixed_bfloat16" if precision == "auto" else precision
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    return Runtime(chosen, count, precision, "off", f"{count} x TPU core")


def _memory(count: int) -> int | None:
    """Returns the bytes that TensorFlow may take of the GPU with the least memory, of the first `count`."""
    found = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    return min(found[:count], default=None)


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
