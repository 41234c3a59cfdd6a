"""`python -m docs.results run` measures the five systems' augmentation and balancing, and writes `docs/results.md`.

It trains the recipes of `flags/results`, each with every seed, and measures them on the validation set as it is and
under the suite `heavy`. Every run is what its commands say and no more: `main.py` trains it, `main.py` evaluates it. A
run that is there is not run again, and one that was interrupted goes on. `page` writes the page anew from
`docs/results.json`.
"""

import argparse
import dataclasses
import datetime
import glob
import json
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bloodcell import config
from bloodcell.errors import InputError, did_you_mean
from bloodcell.files import write_atomically

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = ("flips", "alpaca", "alpaca_smote", "deepl", "m2g", "m2g_synthetic", "riconvoluzione", "dumbening")
SEEDS = (0, 1, 2)
SUITE = "heavy"
EVALUATED = "evaluated.json"  # in the folder of a run that is finished
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run, and where.

    Attributes:
      data, val_data: in the forms of `--data`.
      workdir: holds a folder for each run.
      flags: further flags of every training.
    """

    data: str
    val_data: str
    workdir: pathlib.Path
    flags: tuple[str, ...] = ()

    def folder(self, recipe: str, seed: int) -> pathlib.Path:
        """Returns the folder of a run."""
        return self.workdir / f"{recipe}-{seed}"

    def train(self, recipe: str, seed: int) -> list[str]:
        """Returns the arguments of `main.py` that train a run."""
        return [f"--flagfile=flags/results/{recipe}.cfg", f"--data={self.data}", f"--val_data={self.val_data}",
                f"--seed={seed}", *self.flags, f"--workdir={self.folder(recipe, seed)}"]

    def evaluate(self, recipe: str, seed: int) -> list[str]:
        """Returns the arguments of `main.py` that measure it."""
        return ["--mode=evaluate", f"--checkpoint={self.folder(recipe, seed)}", f"--data={self.val_data}",
                f"--corruptions={SUITE}"]


def run(plan: Plan, recipes: Sequence[str], seeds: Sequence[int], call: Callable[[list[str]], None]) -> None:
    """Trains and measures what is missing: all recipes with the first seed, then all with the next.

    Args:
      plan: how and where.
      recipes: of `RECIPES`.
      seeds: of the runs.
      call: runs `main.py` with such arguments.

    Raises:
      InputError: a finished run of other flags is in the way.
    """
    for seed in seeds:
        for recipe in recipes:
            folder = plan.folder(recipe, seed)
            if (folder / EVALUATED).exists():
                _same(folder, plan.train(recipe, seed))
                continue
            if not (folder / "report.json").exists():
                call(plan.train(recipe, seed))
            _same(folder, plan.train(recipe, seed))
            call([*plan.evaluate(recipe, seed), f"--report={folder / EVALUATED}"])


def _same(folder: pathlib.Path, arguments: list[str]) -> None:
    """Raises InputError where the folder's run is not what these arguments ask for."""
    asked = _parsed(arguments)
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["config"]
    differing = [name for name, value in dataclasses.asdict(asked).items()
                 if name not in ("workdir", "recipe", "progress") and name in found and found[name] != value]
    if differing:
        raise InputError(f"{folder} expected a run of these flags, received one of another "
                         f"--{differing[0]}={found[differing[0]]}; try another --workdir, or remove that folder")


def _parsed(arguments: Sequence[str]) -> config.Config:
    where = os.getcwd()
    os.chdir(ROOT)  # flagfiles are named from there
    try:
        settings = config.parse(["main.py", *arguments])
    finally:
        os.chdir(where)
    if settings is None:
        raise InputError("expected flags of a training, received --help")
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# What was found
# ---------------------------------------------------------------------------------------------------------------------


def gather(plan: Plan) -> Result:
    """Returns what the finished runs of a plan's folder found, as JSON values.

    `rows`, in the order of `RECIPES`: `recipe`, `title`, `commands`, `images_seen` and `runs` (`seed`, `clean`,
    `heavy`); and the conditions: `date`, `hardware`, `devices`, `precision`, `jit`, `versions`,
    `images` (of training and of validation).

    Raises:
      InputError: no run is finished.
    """
    rows, last = [], None
    for recipe in RECIPES:
        runs = []
        for folder in sorted(plan.workdir.glob(f"{recipe}-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2])):
            if (folder / EVALUATED).exists():
                last = json.loads((folder / "report.json").read_text(encoding="utf-8"))
                runs.append((last, json.loads((folder / EVALUATED).read_text(encoding="utf-8"))))
        if runs:
            rows.append(_row(plan, recipe, runs))
    if last is None:
        raise InputError(f"{plan.workdir} expected a finished run, received none; try python -m docs.results run "
                         "--data=clean.npz --val_data=val.npz")
    return {"rows": rows, "date": datetime.date.today().isoformat(), "hardware": _hardware(),
            **{name: last[name] for name in ("devices", "precision", "jit", "versions")},
            "images": {part: last["data"]["parts"][part]["images"] for part in ("train", "val")}}


def _row(plan: Plan, recipe: str, runs: Sequence[tuple[Result, Result]]) -> Result:
    report = runs[0][0]
    balanced = report["data"]["training_rows"]
    per_epoch = balanced["after"] if balanced else report["data"]["parts"]["train"]["images"]
    seed = report["config"]["seed"]
    epochs = len((plan.folder(recipe, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    typed = dataclasses.replace(plan, data=_name(plan.data), val_data=_name(plan.val_data),
                                workdir=pathlib.Path("runs/results"))
    return {
        "recipe": recipe, "title": title(recipe), "images_seen": per_epoch * epochs,
        "commands": [shlex.join(["python", "main.py", *arguments])
                     for arguments in (typed.train(recipe, seed), typed.evaluate(recipe, seed))],
        "runs": [{"seed": trained["config"]["seed"], "clean": {name: evaluated[name] for name in FIGURES},
                  SUITE: evaluated["corruptions"][SUITE]}
                 for trained, evaluated in runs]}


def title(recipe: str) -> str:
    """Returns the first line of a recipe's head."""
    first = (ROOT / f"flags/results/{recipe}.cfg").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _name(source: str) -> str:
    """Returns what a user would type who has the file at hand: its name."""
    return source.rstrip("/").rpartition("/")[2]


def _hardware() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores"


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def page(result: Result) -> str:
    """Returns the text of `docs/results.md`."""
    rows, images = result["rows"], result["images"]
    table = [("recipe", "what it does", "clean", SUITE, f"{SUITE}, balanced", "images seen", "seeds")]
    for row in rows:
        runs = row["runs"]
        table.append((
            f"[`{row['recipe']}`](../flags/results/{row['recipe']}.cfg)", row["title"].rstrip("."),
            *(_spread([each[part][name] for each in runs])
              for part, name in (("clean", "accuracy"), (SUITE, "accuracy"), (SUITE, "balanced_accuracy"))),
            f"{row['images_seen']:,}",
            ", ".join(str(each["seed"]) for each in runs) if len(runs) > 1 else f"{runs[0]['seed']} alone"))
    said = {}
    for part in ("clean", SUITE):
        means = {row["recipe"]: statistics.fmean(each[part]["accuracy"] for each in row["runs"]) for row in rows}
        best, mean = max(means.items(), key=lambda each: each[1])
        error = (mean * (1 - mean) / images["val"]) ** 0.5
        said[part] = f"`{best}` ({mean:.3f}, by the number of images alone give or take {error:.3f})"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    data, val_data = (_typed(rows[0], flag) for flag in ("data", "val_data"))
    commands = [f"`{row['recipe']}`:\n\n" + "\n".join(f"    {command}" for command in row["commands"]) for row in rows]
    return "\n\n".join([
        "# Results: what the five systems do to images and classes, at equal budget",
        "*Written by `python -m docs.results`; change that, not this page.*",
        _INTRODUCTION.format(train=images["train"], val=images["val"], suite=SUITE),
        _table(table),
        textwrap.fill(f"Highest on clean cells: {said['clean']}; highest on {SUITE} ones: {said[SUITE]}.", 120),
        _READING,
        textwrap.fill(f"{result['hardware']}; devices {result['devices']}, {result['precision']}, jit {result['jit']}; "
                      f"{result['date']}; {versions}.", 120),
        "## Commands",
        textwrap.fill(f"`{data}` is what `python main.py --mode=audit --data=training_set.npz` leaves of the course's "
                      "file. Another seed wants a `--workdir` of its own. All of them, one after the other:", 120),
        f"    python -m docs.results run --data={data} --val_data={val_data}",
        *commands]) + "\n"


_INTRODUCTION = """\
Each row trains EfficientNet-Lite0 from its ImageNet weights, all of it, on the same {train:,} cells, with the
augmentation and the balancing of one of the five systems. Network, rate, schedule, batch and loss are alike, and
epochs are such that each run sees about as many images. So rows compare these choices and not the systems, each of
which had a network and a training of its own: those are the recipes of [flags/seeds](../flags/seeds/README.md). A run
is measured on {val:,} cells that it has not learned from, as they are (*clean*) and each under 2 to 5 strong
transforms (*{suite}*: [what and why](../bloodcell/evaluate/corruptions.py)), which were chosen before any of these
figures was known."""

_READING = """\
Accuracy: mean ± standard deviation over the seeds, which change order, augmentation, head and dropout. The best epoch
of a run is the one of the highest clean accuracy. Differences of less than two standard errors, of seeds and of
images, say little."""


def _typed(row: Result, flag: str) -> str:
    return next(part.partition("=")[2] for part in shlex.split(row["commands"][0]) if part.startswith(f"--{flag}="))


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write(result: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes results.json and results.md into a folder."""
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(folder / "results.json", text.encode())
    write_atomically(folder / "results.md", page(dict(result)).encode())
    print(f"wrote {folder / 'results.md'}")


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m docs.results", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--data", help="training images, in the forms of main.py's --data")
    parser.add_argument("--val_data", help="the images to measure on")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs/results",
                        help="holds a folder for each run (default runs/results)")
    parser.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs", help="where the page is (default docs)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default 0,1,2")
    parser.add_argument("--only", default=",".join(RECIPES), help=f"some of {','.join(RECIPES)} (default all)")
    parser.epilog = "What follows -- are further flags of every training, for a trial: -- --batch_size=16"
    given = sys.argv[1:] if argv is None else argv
    until = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:until])
    args.flags = given[until + 1:]
    if args.what == "run" and not (args.data and args.val_data):
        parser.error("run expected --data and --val_data; try --data=clean.npz --val_data=val.npz")
    return args


def _source(text: str) -> str:
    """Returns a path as seen from anywhere; what is no path (demo, bloodmnist:28) stays as it is."""
    path = os.path.expanduser(text)
    return os.path.abspath(path) if glob.glob(path) else text


def _call(arguments: list[str]) -> None:
    print("python main.py", shlex.join(arguments), flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "main.py"), *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main(argv: list[str] | None = None) -> None:
    """Does what the command line asks for."""
    args = _arguments(argv)
    try:
        if args.what == "page":
            figures = args.docs / "results.json"
            if not figures.exists():
                raise InputError(f"page expected {figures}, received none; try python -m docs.results run "
                                 "--data=clean.npz --val_data=val.npz")
            write(json.loads(figures.read_text(encoding="utf-8")), args.docs)
            return
        recipes = args.only.split(",")
        for recipe in recipes:
            if recipe not in RECIPES:
                raise InputError(f"--only expected recipes, received {recipe!r}; {did_you_mean(recipe, RECIPES)}")
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", args.seeds):
            raise InputError(f"--seeds expected whole numbers, received {args.seeds!r}; try 0,1,2")
        plan = Plan(_source(args.data), _source(args.val_data), args.workdir.absolute(), tuple(args.flags))
        run(plan, recipes, [int(seed) for seed in args.seeds.split(",")], _call)
        write(gather(plan), args.docs)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
