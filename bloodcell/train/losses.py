"""Losses per example, from float32 logits. Weighting and averaging over the batch belong to `step`."""

from collections.abc import Callable

import tensorflow as tf

from bloodcell import spec

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "cross_entropy": (spec.Param("smoothing", float, 0.0, 0.0, 0.99, "probability given away to all classes"),),
}


def parse(text: str) -> Loss:
    """Returns `loss(labels, logits)`: int64 [B], float32 [B, C] -> float32 [B], in nats; raises InputError.

    `cross_entropy(smoothing=s)` aims at `1 - s + s / C` for the label and `s / C` elsewhere (Szegedy et al. 2016).
    """
    term = spec.only_term(spec.parse(text, what="loss"), what="loss")
    smoothing = spec.bind(term, spec.lookup(term, PARAMS, what="loss"), what="loss")["smoothing"]

    def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1]
        target = tf.one_hot(labels, classes, on_value=1.0 - smoothing + smoothing / classes,
                            off_value=smoothing / classes)
        return tf.nn.softmax_cross_entropy_with_logits(target, logits)

    return cross_entropy
