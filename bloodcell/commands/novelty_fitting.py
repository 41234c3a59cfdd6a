"""The novelty score of a training that has ended: which of its images go into the bank, and which set the threshold.

The score itself is `evaluate.novelty`'s. What it reaches on cells and on what is none is in `docs/novelty.md`.
"""

import functools
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bloodcell import augment
from bloodcell.commands import classifying, common, run_images
from bloodcell.config import Config
from bloodcell.data.dataset import ImageSet
from bloodcell.evaluate import embedding
from bloodcell.evaluate.classifier import Classifier, OnHost
from bloodcell.evaluate.novelty import Known, Novelty
from bloodcell.train import stages
from bloodcell.train.strategy import Runtime

# What a cell may go through and still count as known, whatever the network was trained with: any turn and other sizes,
# two of RandAugment's ops at the strength of its paper, and in every second image something that covers a part.
STRONG = "flip | rotate(180) | zoom(0.3) | randaugment(n=2, m=9) | oneof(cutout(0.4), gridmask, identity, identity)"
SHARE, SHARE_OF_STRONG = 0.99, 0.7  # of the validation images that stay unflagged
IMAGES = 1000  # of the training part, each class alike, and of the validation part, at most
LEAST = 100  # validation images: of fewer nobody can say what one in a hundred does
_SEED = 0


def fit(loaded: classifying.Loaded, which: str, *, train: ImageSet, val: ImageSet, config: Config, runtime: Runtime
        ) -> Novelty | None:
    """Fits the score of a training's weights and keeps it in the run's folder.

    Args:
      loaded: of `classifying.of_training`.
      which: "best" or "average".
      train: labelled images that were learned from, segmented already.
      val: labelled images that were not, segmented already.
      config: the run's flags.
      runtime: the devices.

    Returns:
      The score, or None where there are fewer than 100 validation images.

    Raises:
      InputError: the folder cannot be written.
    """
    if len(val) < LEAST:
        if config.progress != "none":
            print(f"novelty: not fitted, since that wants {LEAST} validation images and there are {len(val)}; predict "
                  "flags none as novel", flush=True)
        return None
    began = time.monotonic()
    fitted = fitted_on(loaded.classifier, train, val, policy=stages.parse(config.stages)[-1].rules(config).augment,
                       weights_sha256=loaded.weights_sha256[0], batch_size=config.batch_size,
                       jit=runtime.jit != "off", progress=config.progress)
    fitted.save(loaded.runs[0], which)
    if config.progress != "none":
        said = ", ".join(f"{each['flagged']:.1%} {name}" for name, each in fitted.named())
        print(f"novelty: of the validation images are flagged {said} ({len(fitted.bank):,} training vectors, "
              f"{time.monotonic() - began:.1f} s)", flush=True)
    return fitted


def fitted_on(found: Classifier, train: ImageSet, val: ImageSet, *, policy: str, weights_sha256: str, batch_size: int,
              jit: bool, progress: str = "none") -> Novelty:
    """Returns the score of a classifier's first network; nothing is written.

    The bank has training images as they are and under the policy of the training. By the threshold 99 in 100 validation
    images stay unflagged, as they are and under that policy, and 70 in 100 under `STRONG`.

    Args:
      found: the network in it; what it does to images before and its views are left out.
      train: labelled images that were learned from.
      val: labelled images that were not.
      policy: of the training; empty: none.
      weights_sha256: of the network.
      batch_size: images a step.
      jit: whether XLA compiles the policies.
      progress: `--progress`.
    """
    plain = found.of_member(0).seeing(None, views=())
    train = train.subset(run_images.balanced(train, IMAGES, seed=_SEED))
    val = val.subset(embedding.spread(np.asarray(val.labels), IMAGES))
    policies = tuple(dict.fromkeys(("", policy)))
    count = common.counter("novelty: compared", (len(train) + len(val)) * len(policies) + len(val), progress)
    done = 0

    def features(images: ImageSet, text: str) -> np.ndarray:
        nonlocal done
        own = plain.outputs(images, batch_size=batch_size, on_host=policy_on_host(text, jit) if text else None,
                            on_batch=_after(count, done), timed=False).features[0]
        done += len(images)
        return own

    return Novelty.fit([(each, features(train, each)) for each in policies],
                       [*(Known(each, SHARE, features(val, each)) for each in policies),
                        Known(STRONG, SHARE_OF_STRONG, features(val, STRONG))], weights_sha256=weights_sha256)


def _after(count: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: count(before + done)


@functools.lru_cache(maxsize=4)  # compiling takes longer than all the rest where sets are small
def policy_on_host(text: str, jit: bool) -> OnHost:
    """Returns a policy as what `Classifier.outputs` takes, the same draws at every call; `jit`: compiled by XLA."""
    policy = augment.parse(text)
    graph = tf.function(lambda images, ids: policy(images, ids, epoch=0, seed=_SEED, dtype="uint8"), jit_compile=jit,
                        autograph=False)
    return lambda images, ids: graph(tf.constant(images), tf.constant(ids)).numpy()
