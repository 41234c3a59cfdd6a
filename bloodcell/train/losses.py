"""Losses per image, from float32 logits. Weighting and averaging over the batch belong to `step`."""

import dataclasses

import tensorflow as tf

from bloodcell import spec


@dataclasses.dataclass(frozen=True)
class Entry:
    """One loss.

    Attributes:
      summary: what it does, for people.
      params: what its spec takes; fields of `Loss`.
      views: how many views of each image it compares.
    """

    summary: str
    params: tuple[spec.Param, ...]
    views: int = 1


_SMOOTHING = spec.Param("smoothing", float, 0.0, 0.0, 0.99, "probability given away to all classes")

LOSSES: dict[str, Entry] = {
    "cross_entropy": Entry("Minus the logarithm of the right class's probability.", (_SMOOTHING,)),
    "focal": Entry("Cross-entropy times (1 - p)^gamma, p the class's probability: images that are right already count "
                   "less (Lin et al. 2017).", (spec.Param("gamma", float, 2.0, 0.0, 10.0), _SMOOTHING)),
    "jsd": Entry("Cross-entropy of the image itself, plus weight times the Jensen-Shannon divergence of the "
                 "predictions for it and for two augmentations of it.",
                 (spec.Param("weight", float, 12.0, 0.0, 1000.0, "times the divergence in nats"), _SMOOTHING), views=3),
}
LEAST_PROBABILITY = 1e-7  # of the views' mixture, before its logarithm; of the other classes, before a power


@dataclasses.dataclass(frozen=True)
class Loss:
    """A checked loss spec; call it for the training loss.

    Attributes:
      views: how many views of each image the network is shown in a step: 1, or 3 (the image itself, then two that the
        policy drew independently of each other).
      smoothing: s in 0..1; every target becomes (1 - s) * target + s / C (Szegedy et al. 2016, for soft targets too).
      weight: of the divergence between the views.
      gamma: of the focal loss; 0 is cross-entropy.
    """

    views: int
    smoothing: float
    weight: float = 0.0
    gamma: float = 0.0

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each image, in nats.

        Args:
          targets: float32 [B, C], rows that sum to 1.
          logits: float32 [views * B, C], all images of the first view first.

        Returns:
          float32 [B]: the first view's cross-entropy or focal loss, and `weight` times the divergence where there are
          three.
        """
        if self.views == 1:
            return self.focal(targets, logits) if self.gamma else self.cross_entropy(targets, logits)
        by_view = tf.reshape(logits, [self.views, -1, logits.shape[-1]])
        return self.cross_entropy(targets, by_view[0]) + self.weight * divergence(by_view)

    def cross_entropy(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross-entropy of each image with smoothed targets: what validation measures, whatever the loss.

        Args:
          targets: float32 [B, C], rows that sum to 1.
          logits: float32 [B, C].
        """
        return tf.nn.softmax_cross_entropy_with_logits(self._smoothed(targets), logits)

    def focal(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the focal loss of each image with smoothed targets (Lin et al. 2017, arXiv 1708.02002).

        The paper gives an image of class c the loss f(p_c) = -(1 - p_c)^gamma log p_c. A target that is a distribution
        y, of a mixed image or a smoothed label, says that the image is of class c with probability y_c, so its loss is
        the expectation: the sum over c of y_c f(p_c). That is f itself for a one-hot y, cross-entropy for gamma 0, and
        linear in y, as cross-entropy is: mixing labels mixes losses. (For gamma above 0 its minimum over p is not
        p = y: the focal loss does not estimate probabilities, with hard labels either.) The paper's weights per class
        are `--balance=class_weights` here.

        Args:
          targets: float32 [B, C], rows that sum to 1.
          logits: float32 [B, C].
        """
        log_p = tf.nn.log_softmax(logits)
        # Where p rounds to 1, a gamma below 1 would have an infinite slope.
        others = tf.maximum(-tf.math.expm1(log_p), LEAST_PROBABILITY)
        return -tf.reduce_sum(self._smoothed(targets) * tf.pow(others, self.gamma) * log_p, axis=-1)

    def _smoothed(self, targets: tf.Tensor) -> tf.Tensor:
        return (1.0 - self.smoothing) * targets + self.smoothing / targets.shape[-1]


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
    """Reads `cross_entropy(smoothing=0.1)`, `focal(gamma=2)` or `jsd(weight=12, smoothing=0.0)`; raises InputError."""
    term = spec.only_term(spec.parse(text, what="loss"), what="loss")
    entry: Entry = spec.lookup(term, LOSSES, what="loss")
    return Loss(views=entry.views, **spec.bind(term, entry.params, what="loss"))
