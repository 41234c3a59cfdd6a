"""Suite `scaling`: training images per second with 1, 2 and 4 replicas, and what their exchange takes of the step.

Weak scaling gives every replica the same batch, strong scaling shares one batch among all. Replicas are GPUs where
there are several. Else they are logical devices of one CPU and share its cores, so that no number of them can be faster
than one: `kept`, the rate of all replicas together as part of one's, is 100% at best there, and as many times 100% as
replicas where each has a device. `efficiency` is the part of that best which is reached. On logical devices it says
what replication itself costs (copies, waiting, an optimizer on every replica), and nothing of how devices of their own
would scale; no machine of this suite's kind can say that.

The exchange is the all-reduce of the gradients and of the moving statistics. Its share is what the step takes more than
that of the same replicas exchanging nothing (`training.Unreduced`), both taking turns: in it is what they wait for each
other, which is part of its cost, and what runs beside other work is not. The exchange of the same tensors by itself
stands beside as a check. It is the steadier figure and not the sounder one: alone it waits for nobody and hides behind
nothing, and on a CPU the tensors lie in the cache that the step would have filled with other things.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import QUICK_NETWORK, progress, replicas
from benchmarks.replicas import REDUCED, REDUCTION, UNREDUCED, Program, named
from benchmarks.timing import race

SECONDS = 10.0  # a contestant's timed runs
COUNTS, QUICK_COUNTS = (1, 2, 4), (1, 2)
NETWORKS = ("mobilenet_v3_small", "efficientnet_lite0")
POLICY, QUICK_POLICY = "flip | rotate(180) | zoom(0.2)", ""  # quick to compile: each process does for each replica
STEPS, QUICK_STEPS = 4, 2  # of a run
PER_REPLICA, GLOBAL = 32, 64  # images, in weak and in strong scaling
QUICK_PER_REPLICA = 8
KINDS = ("weak", "strong")
EXCHANGE = "all-reduce"


def run(present: Mapping[str, Any], *, samples: int, seconds: float, only: str,
        tell: Callable[[str], None], quick: bool = False) -> dict[str, Any]:
    """Races the numbers of replicas against each other, and each against itself without exchange.

    Args:
      present: the peers; none takes part.
      samples: timed runs of a contestant, at most.
      seconds: what they may take, together.
      only: a regular expression; the cases to run are those in whose names it occurs: "weak, NETWORK" and
        "strong, NETWORK".
      tell: called with lines of progress.
      quick: weak scaling of one network to two replicas, without augmentation, small batches and short runs.

    Returns:
      `rows`, those of more replicas with their part of the rate of one, and in the cases of the exchange with their
      part of the rate without it; `scaling`, see `summary`; `devices`, what the replicas are, by their number; `batch`,
      of one replica.
    """
    del present
    counts = replicas.possible(QUICK_COUNTS if quick else COUNTS, tell)
    steps = QUICK_STEPS if quick else STEPS
    rows: list[dict[str, Any]] = []
    devices: dict[str, str] = {}
    cases = {f"{kind}, {network}": (kind, network) for network in ((QUICK_NETWORK,) if quick else NETWORKS)
             for kind in (KINDS[:1] if quick else KINDS)}
    for case in progress.each([case for case in cases if re.search(only, case)], tell):
        kind, network = cases[case]
        programs = {count: [Program(network, QUICK_POLICY if quick else POLICY, _batch(kind, count, quick), steps, what)
                            for what in (REDUCED, UNREDUCED, REDUCTION)[:1 if count == 1 else 3]] for count in counts}
        with contextlib.ExitStack() as running:
            tell(f"{case}: starting {len(counts)} processes")
            started = {count: running.enter_context(replicas.start(count, programs[count])) for count in counts}
            devices.update({str(count): each.devices for count, each in started.items()})
            rows += race("scaling", [each.contestant(case, named(count), programs[count][0], 0)
                                     for count, each in started.items()],
                         samples=samples, seconds=seconds, baseline=named(1), tell=tell)
            for count in counts[1:]:
                exchanging = [started[count].contestant(_exchange(case, count), program.what, program, number)
                              for number, program in enumerate(programs[count])]
                raced = race("scaling", exchanging, samples=samples, seconds=seconds, baseline=UNREDUCED,
                             tell=tell)
                raced[-1].pop("part_of_baseline")  # the exchange alone does not train: it is no part of that rate
                rows += raced
    return {"rows": rows, "scaling": summary(rows, own_devices=bool(replicas.own_devices())), "devices": devices,
            "batch": _batch(KINDS[0], 1, quick)}


def summary(rows: Sequence[Mapping[str, Any]], *, own_devices: bool) -> list[dict[str, Any]]:
    """Returns what the rows say of each case and number of replicas.

    Args:
      rows: of this suite.
      own_devices: whether each replica has a device for itself.

    Returns:
      Dictionaries of `case`, `replicas`, `images_per_second`, `kept` (the part of one replica's rate), `best` (what of
      it could be kept), `efficiency` (the part of the best), each of kept and efficiency {median, q1, q3}; and with
      more than one replica `all_reduce` {median, q1, q3}, the part of the step that the exchange takes, and `alone`,
      the time of the exchange by itself as part of the step's. Noise can make `all_reduce` negative.
    """
    found = []
    for row in rows:
        match = re.fullmatch(r"(\d+) replicas?", row["implementation"])
        if match is None:
            continue
        count = int(match[1])
        best = count if own_devices else 1
        kept = row.get("part_of_baseline", dict.fromkeys(("median", "q1", "q3"), 1.0))
        each = {"case": row["case"], "replicas": count, "images_per_second": row["images_per_second"], "kept": kept,
                "best": best, "efficiency": {name: round(part / best, 4) for name, part in kept.items()}}
        of = {other["implementation"]: other for other in rows if other["case"] == _exchange(row["case"], count)}
        if of:
            parts = of[REDUCED]["part_of_baseline"]
            each["all_reduce"] = {name: round(1 - parts[other], 4)
                                  for name, other in (("median", "median"), ("q1", "q3"), ("q3", "q1"))}
            each["alone"] = round(of[REDUCED]["images_per_second"]["median"]
                                  / of[REDUCTION]["images_per_second"]["median"], 4)
        found.append(each)
    return found


def _batch(kind: str, count: int, quick: bool) -> int:
    if kind == "strong":
        return GLOBAL
    return count * (QUICK_PER_REPLICA if quick else PER_REPLICA)


def _exchange(case: str, count: int) -> str:
    return f"{case}, {EXCHANGE} of {count}"
