"""Suite `policies`: whole augmentation policies, compiled and eager, against what each peer offers in their place."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import BATCH, QUICK_BATCH, memory, ours, threads
from benchmarks.peers import Implementation, contestant
from benchmarks.timing import race

SECONDS = 5.0  # a contestant's timed runs

_V2S = ("flip | rotate(180) | zoom(0.2) | {choice} | oneof(gridmask, cutout(0.5)) | "
        "oneof(channel_shuffle, channel_shift(0.3), hue(0.3))")
POLICIES = {
    "randaugment(2, 9)": "randaugment(2, 9)",
    "trivialaugment": "trivialaugment",
    "augmix(severity=3)": "augmix(severity=3)",
    "v2s": _V2S.format(choice="oneof(augmix(severity=3), randaugment(n=3, m=4))"),
    "v2s without augmix": _V2S.format(choice="randaugment(n=3, m=4)"),
}
SCALED = ("randaugment(2, 9)", "v2s")  # those that are run with several numbers of threads
QUICK = ("randaugment(2, 9)",)  # that which most peers have


def run(present: Mapping[str, Implementation], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None], quick: bool = False) -> dict[str, Any]:
    """Races all policies and peers in one round of turns, as they are compared with each other.

    Args:
      present: the peers that are installed.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the policies to run are those in whose names it occurs.
      tell: called with lines of progress.
      quick: one policy in a small batch, and no figures of memory.

    Returns:
      `rows`; `memory`, what each compiled policy needs besides its input and output at a batch of BATCH; `batch`;
      `threads`, the rates of two policies with 1, 2 and 4 threads.
    """
    images = ours.cells(QUICK_BATCH if quick else BATCH)
    known = {case: text for case, text in POLICIES.items() if re.search(only, case) and (case in QUICK or not quick)}
    backends = ours.backends(tell)
    contestants = [each for case, text in known.items() for each in ours.contestants(
        case, {by: ours.policy_function(text, by) for by in backends}, images)]
    for peer, implementation in present.items():
        contestants += [contestant(case, peer, implementation.start(thing, images))
                        for case, (_, thing) in implementation.POLICIES.items() if case in known]
    rows = race("policies", contestants, samples=samples, seconds=seconds, tell=tell)
    found: list[dict[str, Any]] = []
    if known and not quick:
        tell("memory of the compiled policies, in a process of its own")
        try:
            found = memory.measure(known)
        except RuntimeError as error:  # the rows, which took minutes, are worth more
            tell(str(error))
    scaled = [] if quick else threads.measure(
        {case: text for case, text in known.items() if case in SCALED}, samples=samples, seconds=seconds, tell=tell)
    return {"rows": rows, "memory": found, "batch": len(images), "threads": scaled}
