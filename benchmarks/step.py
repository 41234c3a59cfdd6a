"""Suite `step`: training images per second with synthetic input, and what augmentation takes of it.

All contestants of a network train on one batch again and again, a tensor already, so that nothing is read; they differ
in policy, precision, compilation, or in how many replicas share the batch. What augmentation takes of the step is what
is missing to the rate without. Replicas that are logical devices of one CPU share its cores: two can be no faster than
one, and what is missing is what replication costs.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import QUICK_NETWORK, ours, progress, replicas, training
from benchmarks.timing import Contestant, race

SECONDS = 60.0  # a contestant's timed runs
BATCH = 64  # as the recipes have it
STEPS = {"efficientnet_v2_s": 2, "efficientnet_lite0": 6, "mobilenet_v3_small": 12}  # of a run: each takes seconds
PLAIN = "none"  # the contestant without augmentation
POLICIES: dict[str, dict[str, str]] = {
    PLAIN: {},
    "v2s policy": {"policy": training.V2S},
    "augmix": {"policy": "augmix(severity=3)"},
    "mixup": {"mix": "mixup(0.2)"},
}
SETTINGS: dict[str, dict[str, str]] = {  # of one network with the v2s policy
    "float32, jit=augment": {"precision": "float32", "jit": "augment"},
    "float32, jit=off": {"precision": "float32", "jit": "off"},
    "float32, jit=step": {"precision": "float32", "jit": "step"},
    "mixed_bfloat16, jit=augment": {"precision": "mixed_bfloat16", "jit": "augment"},
}
OF_SETTINGS = "mobilenet_v3_small"
REPLICAS = (1, 2)  # of the same network and policy, the global batch being the same
QUICK, QUICK_STEPS = (PLAIN, "mixup"), 1  # what compiles soonest


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None], quick: bool = False) -> dict[str, Any]:
    """Races what each network trains with, network by network.

    Args:
      present: the peers; none takes part.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the cases to run are those in whose names it occurs.
      tell: called with lines of progress.
      quick: one network, without and with `mixup`, shorter runs, and neither settings nor replicas.

    Returns:
      `rows`, with their part of the rate of the first contestant of their case.
    """
    del present
    rows: list[dict[str, Any]] = []
    policies = {name: POLICIES[name] for name in (QUICK if quick else POLICIES)}
    if not quick and "native" in ours.backends(tell):
        policies["v2s policy, native op"] = {"policy": training.V2S, "backend": "native"}
    cases = {network: (network, policies) for network in ((QUICK_NETWORK,) if quick else STEPS)}
    of_replicas = f"{OF_SETTINGS}, v2s policy, replicas"
    if not quick:
        cases[f"{OF_SETTINGS}, v2s policy"] = (OF_SETTINGS, {
            name: {"policy": training.V2S, **setting} for name, setting in SETTINGS.items()})
    last = [] if quick else [of_replicas]
    for case in progress.each([case for case in [*cases, *last] if re.search(only, case)], tell):
        if case == of_replicas:
            rows += _replicated(case, samples, seconds, tell)
            continue
        network, contestants = cases[case]
        steps = QUICK_STEPS if quick else STEPS[network]
        ready = [_contestant(case, name, network, steps, given) for name, given in contestants.items()]
        rows += race("step", ready, samples=samples, seconds=seconds, baseline=next(iter(contestants)), tell=tell)
    return {"rows": rows, "batch": BATCH}


def _contestant(case: str, name: str, network: str, steps: int, given: Mapping[str, Any]) -> Contestant:
    from bloodcell.data import demo
    classes = len(demo.CLASS_NAMES)
    trained = training.build(network, classes=classes, **given)
    batches = training.placed([training.rendered(BATCH)], trained.runtime.strategy) * steps
    return Contestant(case, name, steps * BATCH, lambda turn: trained.run(batches, turn))


def _replicated(case: str, samples: int, seconds: float, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    program = replicas.Program(OF_SETTINGS, training.V2S, BATCH, STEPS[OF_SETTINGS])
    counts = replicas.possible(REPLICAS, tell)
    with contextlib.ExitStack() as running:
        ready = [running.enter_context(replicas.start(count, [program])).contestant(
            case, replicas.named(count), program, 0) for count in counts]
        return race("step", ready, samples=samples, seconds=seconds, baseline=replicas.named(counts[0]), tell=tell)
