"""Losses per image, from float32 logits. Weighting and averaging over the batch belong to `step`."""

import dataclasses

import tensorflow as tf

from bloodcell import spec

_SMOOTHING = spec.Param("smoothing", float, 0.0, 0.0, 0.99, "probability given away to all classes")

PARAMS: dict[str, tuple[spec.Param, ...]] = {
    "cross_entropy": (_SMOOTHING,),
    "jsd": (spec.Param("weight", float, 12.0, 0.0, 1000.0, "times the divergence in nats"), _SMOOTHING),
}
LEAST_PROBABILITY = 1e-7  # of the views' mixture, before its logarithm


@dataclasses.dataclass(frozen=True)
class Loss:
    """A checked loss spec; call it for the training loss.

    Attributes:
      views: how many views of each image the network is shown in a step: 1, or 3 (the image itself, then two that the
        policy drew independently of each other).
      smoothing: s in 0..1; every target becomes (1 - s) * target + s / C (Szegedy et al. 2016, for soft targets too).
      weight: of the divergence between the views.
    """

    views: int
    smoothing: float
    weight: float = 0.0

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each image, in nats.

        Args:
          targets: float32 [B, C], rows that sum to 1.
          logits: float32 [views * B, C], all images of the first view first.

        Returns:
          float32 [B]: the first view's cross-entropy, and `weight` times the divergence where there are three.
        """
        if self.views == 1:
            return self.cross_entropy(targets, logits)
        by_view = tf.reshape(logits, [self.views, -1, logits.shape[-1]])
        return self.cross_entropy(targets, by_view[0]) + self.weight * divergence(by_view)

    def cross_entropy(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross-entropy of each image with smoothed targets: what validation measures, whatever the loss.

        Args:
          targets: float32 [B, C], rows that sum to 1.
          logits: float32 [B, C].
        """
        smoothed = (1.0 - self.smoothing) * targets + self.smoothing / targets.shape[-1]
        return tf.nn.softmax_cross_entropy_with_logits(smoothed, logits)


def divergence(logits: tf.Tensor) -> tf.Tensor:
    """Returns the Jensen-Shannon divergence of the views of each image (Hendrycks et al. 2020, arXiv 1912.02781).

    Args:
      logits: float32 [views, B, C].

    Returns:
      float32 [B], in nats: the mean over the views of KL(view || mixture), the mixture being the views' mean.
    """
    log_p = tf.nn.log_softmax(logits)
    p = tf.exp(log_p)
    log_mixture = tf.math.log(tf.maximum(tf.reduce_mean(p, axis=0), LEAST_PROBABILITY))
    return tf.reduce_mean(tf.reduce_sum(p * (log_p - log_mixture), axis=-1), axis=0)


def parse(text: str) -> Loss:
    """Reads `cross_entropy(smoothing=0.1)` or `jsd(weight=12, smoothing=0.0)`; raises InputError."""
    term = spec.only_term(spec.parse(text, what="loss"), what="loss")
    values = spec.bind(term, spec.lookup(term, PARAMS, what="loss"), what="loss")
    return Loss(views=3 if term.name == "jsd" else 1, **values)
