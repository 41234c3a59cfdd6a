"""A policy as a Keras layer, for models and pipelines that are built of layers.

What belongs here: giving a policy what a layer does not have, sample ids and an epoch. All else is the policy's.
"""

from typing import Any

import keras
import tensorflow as tf

from bloodcell.augment import pixels

_KEYS = ("image", "id", "epoch")


@keras.saving.register_keras_serializable(package="bloodcell")
class Layer(keras.layers.Layer):
    """Augments images while training, and only casts them otherwise.

        model = keras.Sequential([augment.Layer("flip | rotate(180)@0.5"), backbone])

    A policy is a pure function of (seed, epoch, sample id). A layer sees images alone, so it numbers them: a counter, a
    variable that is not trained and is saved with the model, gives every image that it augments an id of its own. What
    is lost to `augment.parse(...)`: an image's parameters depend on how many images came before it, so on order, batch
    size and number of replicas, and, in a `tf.data` map with parallel calls, on their timing. Fed a dictionary of
    `image`, `id` and `epoch` it counts nothing, and gives what the policy gives.

    It compiles (`jit_compile=True`), runs under `MirroredStrategy` (replicas draw apart), and in a `tf.data` map over
    batches when called with `training=True`. Nothing flows back through it: put it before what learns.

    Args:
      policy: the spec, as for `augment.parse`.
      seed: of the draws, 0 or more.
      **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Raises:
      InputError: text that is no policy.
    """

    def __init__(self, policy: str, *, seed: int = 0, **kwargs: Any) -> None:
        from bloodcell import augment  # here: the package itself imports this file

        super().__init__(**kwargs)
        self._policy = augment.parse(policy, what="policy")
        self.seed = seed
        # int64: an int32 variable would keep XLA from compiling the program it is in.
        self.images_seen = self.add_weight(name="images_seen", shape=(), dtype="int64", initializer="zeros",
                                           trainable=False, aggregation="only_first_replica")
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Augments a batch.

        Args:
          inputs: images [B, H, W, 3] in grey levels 0..255, uint8 or float; or {"image": such images, "id": int64 [B],
            "epoch": int64 [B] or scalar}. While training, floats are rounded to whole levels and clipped to 0..255
            first, as the ops work on those; otherwise they are left as they are.
          training: whether to augment.

        Returns:
          [B, H, W, 3] in the layer's compute dtype, grey levels 0..255.
        """
        keyed = isinstance(inputs, dict)
        if keyed and set(inputs) != set(_KEYS):
            raise ValueError(f"expected images or a dictionary of {', '.join(_KEYS)}, received the keys "
                             f"{', '.join(map(str, inputs)) or 'of nothing'}")
        images = tf.convert_to_tensor(inputs["image"] if keyed else inputs)
        if not training:
            return tf.cast(images, self.compute_dtype)
        if images.dtype != tf.uint8:
            images = tf.cast(pixels.to_levels(tf.cast(images, tf.float32) + 0.5), tf.uint8)
        ids, epoch = (inputs["id"], inputs["epoch"]) if keyed else self._numbered(tf.shape(images)[0])
        return self._policy(images, ids, epoch=epoch, seed=self.seed, dtype=self.compute_dtype)

    def _numbered(self, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns new ids int64 [count], and as an epoch the replica's number, so that replicas differ."""
        count = tf.cast(count, tf.int64)
        first = tf.identity(self.images_seen.value)
        self.images_seen.assign(first + count)
        replica = tf.distribute.get_replica_context()
        number = 0 if replica is None else replica.replica_id_in_sync_group
        return first + tf.range(count, dtype=tf.int64), tf.cast(number, tf.int64)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the images' shape."""
        return input_shape["image"] if isinstance(input_shape, dict) else input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs: the policy as text, and the seed."""
        return {**super().get_config(), "policy": str(self._policy), "seed": self.seed}
