"""Packed pixels, and work done only for the samples that need it.

Between primitives an image is int32 [H, W] with red, green and blue in bits 0-7, 8-15 and 16-23. One gather then
fetches a whole pixel, and a stage reads and writes a third of what float32 channels would take.

XLA fuses an elementwise producer into every consumer and computes it again for each. What a loop carries or a branch
returns is always materialised, so these are also what keeps a stage from being computed three times.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

CHUNK = 16  # images a trip, at most
CHUNK_VALUES = CHUNK * 96 * 96  # of larger images fewer: about 0.6 MB, which stays in a core's second-level cache
WIDE: bool | None = None  # whether all images are computed at once, active or not; None: where there is a GPU


def pack(images: tf.Tensor) -> tf.Tensor:
    """Packs uint8 [B, H, W, 3] into int32 [B, H, W]."""
    images = tf.cast(images, tf.int32)
    return join([images[..., channel] for channel in range(3)])


def unpack(packed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Unpacks int32 [B, H, W] into [B, H, W, 3] grey levels of `dtype`."""
    shifted = tf.bitwise.right_shift(packed[..., tf.newaxis], tf.constant([0, 8, 16]))
    return tf.cast(tf.bitwise.bitwise_and(shifted, 255), dtype)


def channels(packed: tf.Tensor) -> list[tf.Tensor]:
    """Returns red, green and blue, each int32 in 0..255 of the packed shape."""
    return [tf.bitwise.bitwise_and(tf.bitwise.right_shift(packed, 8 * channel), 255) for channel in range(3)]


def join(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Packs red, green and blue (int32 in 0..255)."""
    red, green, blue = parts
    return tf.bitwise.bitwise_or(
        red, tf.bitwise.bitwise_or(tf.bitwise.left_shift(green, 8), tf.bitwise.left_shift(blue, 16)))


def to_levels(x: tf.Tensor) -> tf.Tensor:
    """Truncates float grey levels to int32 and clips to 0..255, as Pillow's `blend` does; add 0.5 first to round."""
    return tf.cast(tf.clip_by_value(x, 0.0, 255.0), tf.int32)


def rounded(product: tf.Tensor) -> tf.Tensor:
    """Returns a product as it is, rounded before anything is added to it.

    XLA's backends fuse a product and a sum into one operation, which rounds once. An op that promises another
    program's result to the last level must round twice, as that does; a choice that the compiler cannot foresee (a
    number unlike itself is none) stands in the fusion's way.
    """
    return tf.where(tf.equal(product, product), product, tf.zeros_like(product))


def update_where(rows: tf.Tensor, active: tf.Tensor, compute: Callable[..., tf.Tensor],
                 inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Replaces the rows of the active samples.

    On a CPU that costs in proportion to how many there are. They are ordered first and visited in chunks of static
    shape by a loop whose trip count is dynamic. No row is replaced twice, so what the loop carries may be read and
    written in place: an input that is `rows` itself is not held a second time.

    On a GPU, which is bound by the memory and wants one wide launch, ordering samples would move every row three times
    more. There all rows are computed, if any of them is active, and the others keep what they were.

    Args:
      rows: [B, ...], what to update.
      active: bool [B].
      compute: called with the chunk's rows of each input; returns the chunk's new rows, each from its own inputs only.
      inputs: tensors [B, ...].

    Returns:
      `rows` with `compute`'s result where active, unchanged elsewhere.
    """
    if rows.shape[0] == 0:
        return rows
    known = rows.shape[0] is not None
    if known and _wide():
        chosen = tf.reshape(active, [-1] + [1] * (rows.shape.rank - 1))
        return tf.cond(tf.reduce_any(active), lambda: tf.where(chosen, compute(*inputs), rows), lambda: rows)
    chunk = _chunk_size(rows.shape[0], [rows, *inputs])
    all_rows = rows if known else _at_least(rows, chunk)
    given = [(tensor is rows, tensor if known else _at_least(tensor, chunk)) for tensor in inputs]
    active = active if known else tf.concat([active, tf.zeros([tf.shape(all_rows)[0] - tf.shape(rows)[0]], tf.bool)], 0)
    batch = rows.shape[0] if known else tf.shape(all_rows)[0]
    position = tf.range(batch, dtype=tf.int32)
    order = tf.sort(tf.where(active, position, position + batch)) % tf.maximum(batch, 1)
    count = tf.reduce_sum(tf.cast(active, tf.int32))

    def trip(start: tf.Tensor, updated: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = tf.minimum(start, batch - chunk)  # where the last chunk still fits; what is before `start` is done
        index = tf.slice(order, [first], [chunk])
        place = first + tf.range(chunk)
        needed = tf.reshape((place >= start) & (place < count), [chunk] + [1] * (rows.shape.rank - 1))
        before = tf.gather(updated, index)
        new = compute(*(before if is_rows else tf.gather(tensor, index) for is_rows, tensor in given))
        new = tf.where(needed, new, before)
        return start + chunk, tf.tensor_scatter_nd_update(updated, index[:, tf.newaxis], new)

    _, updated = tf.while_loop(lambda start, _: start < count, trip, (tf.constant(0), all_rows))
    return updated if known else updated[:tf.shape(rows)[0]]


def _wide() -> bool:
    return bool(tf.config.list_logical_devices("GPU")) if WIDE is None else WIDE


def _at_least(rows: tf.Tensor, least: int) -> tf.Tensor:
    """Repeats the first of [B, ...] after the last, up to `least` rows where there are any."""
    return tf.concat([rows, tf.repeat(rows[:1], tf.maximum(least - tf.shape(rows)[0], 0), axis=0)], axis=0)


def _chunk_size(batch: int | None, tensors: Sequence[tf.Tensor]) -> int:
    # A chunk should stay in cache, whatever the size of the images. There should be two trips at least: XLA dissolves a
    # loop that it knows to make one, and with it what the loop keeps. A trip takes two images at least: what becomes of
    # a single one XLA:CPU writes straight into the batch, in a fusion that it does not divide among the cores.
    largest = max(math.prod(tensor.shape[1:]) for tensor in tensors)
    most = CHUNK if batch is None else min(batch // 2, CHUNK)
    fitting = max(min(max(CHUNK_VALUES // max(largest, 1), 2), most), 1)
    return 2 ** (fitting.bit_length() - 1)  # divides the usual batches, so that no trip goes half empty
