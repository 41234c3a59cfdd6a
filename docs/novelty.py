"""`python -m docs.novelty --checkpoint=RUN,RUN --contaminants=FOLDER` measures the novelty score, writes `novelty.md`.

Each run's score is fitted as a training fits it, on the images that the run's folder names, and is then shown cells and
what is none (`docs.no_cells`). Beside it stand other scores of the same network. The page, its figures (`novelty.json`)
and its picture are written into this folder; `--page` writes page and picture anew from the figures.
"""

import argparse
import datetime
import functools
import json
import pathlib
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import sklearn.metrics
from matplotlib.figure import Figure

from bloodcell import config
from bloodcell.commands import novelty_fitting, run_images
from bloodcell.data import demo
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import corruptions, medmnist_c, novelty, plots
from bloodcell.evaluate.classifier import Classifier, Member, OnHost
from bloodcell.evaluate.novelty import K, Novelty
from bloodcell.files import write_atomically
from bloodcell.train import checkpoints, stages
from docs import no_cells, results

FOLDER = pathlib.Path(__file__).resolve().parent
COUNT = 300  # no-cells a set
SEVERITIES = (3, 5)
SHOWN = 4  # images of a set in the picture
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BATCH, _DPI = 64, 90
_CELLS, _NONE = "#4472a8", "#b3123f"


def measure(run: pathlib.Path, contaminants: pathlib.Path) -> dict[str, Any]:
    """Returns what a run's score does.

    One half of the validation images sets the threshold, and the other half is measured.

    Args:
      run: the folder of a run.
      contaminants: a folder of PNG files.

    Returns:
      JSON values: `run`, `policy`, `seconds` (of the fit), `fitted_on`, `cells` and `no_cells` (by set: `images`,
      `flagged`, and `auroc`: of cells against all sets of no-cells, each with the same weight, of no-cells against the
      cells as they are, and as `auroc_heavy` against heavy ones), `others` (the same AUROC
      of other scores, by score and set of cells), `quantiles` (of the score, by set), `bytes`, `microseconds` (an
      image: the score, and the network).
    """
    model, about = checkpoints.load_model(str(run))
    parts = run_images.of_run(run, about)
    fit_on, shown = (parts["val"].subset(np.arange(start, len(parts["val"]), 2)) for start in (0, 1))
    settings = config.parse(["main.py", f"--flagfile={run / 'config.cfg'}"])
    if settings is None:
        raise InputError(f"{run}: expected the flags of a run, received --help")
    policy = stages.parse(settings.stages)[-1].rules(settings).augment
    found = Classifier([Member(str(run), model)])
    began = time.perf_counter()
    fitted = novelty_fitting.fitted_on(found, parts["train"], fit_on, policy=policy, batch_size=_BATCH, jit=True,
                                       weights_sha256=checkpoints.weights_sha256(model))
    seconds = time.perf_counter() - began
    cells = _cells(shown, policy)
    size = about["image_size"]
    others = no_cells.every(no_cells.contaminants(contaminants, size), size=size, count=COUNT, seed=0)
    plain = _outputs(found, parts["train"].subset(run_images.balanced(parts["train"], novelty_fitting.IMAGES)))
    cell_outputs = {name: _outputs(found, images) for name, images in cells.items()}
    none_outputs = {name: _outputs(found, _set(images)) for name, images in others.items()}
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(pathlib.Path(folder))
        size_of_file = (pathlib.Path(folder) / novelty.FILE).stat().st_size
    result = {"run": run.name, "policy": policy, "seconds": round(seconds, 1), "fitted_on": fitted.fitted_on,
              **_figures(fitted.score, cell_outputs, none_outputs), "others": {}, "bytes": size_of_file,
              "microseconds": _microseconds(found, fitted, cells[""])}
    for name, score in _other_scores(plain).items():
        result["others"][name] = _aurocs({each: score(*one) for each, one in cell_outputs.items()},
                                         {each: score(*one) for each, one in none_outputs.items()})
    return result


def examples() -> dict[str, np.ndarray]:
    """Returns a few images of each set, uint8 [SHOWN, 96, 96, 3]: rendered cells, and no contaminant, which has one."""
    pixels = demo.render(SHOWN, seed=2, size=96)[0]
    cells = _cells(_set(pixels), "")
    return {**{name: np.asarray(each.images) for name, each in cells.items()},
            **no_cells.every({}, size=96, count=SHOWN, seed=0)}


def _set(images: np.ndarray) -> ImageSet:
    return ImageSet(images, None, np.arange(len(images), dtype=np.int64), (), "", ("",) * len(images))


def _cells(val: ImageSet, policy: str) -> dict[str, ImageSet]:
    """Returns validation images as they are, under the policies of the fit, and under what no fit has seen."""
    pixels = val.images[:]
    shown = {"": pixels}
    for text in filter(None, (policy, novelty_fitting.STRONG)):
        apply = novelty_fitting.policy_on_host(text, True)
        shown[text] = _by_batches(apply, pixels, val.ids)
    shown["heavy"] = _by_batches(_heavy(), pixels, val.ids)
    for severity in SEVERITIES:  # each of the eleven on every eleventh image
        corrupted = pixels.copy()
        for turn, name in enumerate(medmnist_c.CORRUPTIONS):
            rows = slice(turn, None, len(medmnist_c.CORRUPTIONS))
            corrupted[rows] = medmnist_c.apply(name, pixels[rows], val.ids[rows], severity)
        shown[f"MedMNIST-C, severity {severity}"] = corrupted
    return {name: _set(images) for name, images in shown.items()}


@functools.lru_cache(maxsize=1)
def _heavy() -> OnHost:
    return corruptions.on_host("heavy", 1, jit=True)


def _by_batches(apply: OnHost, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    result = np.empty_like(images)
    for start in range(0, len(images), _BATCH):
        rows = np.resize(np.arange(start, min(start + _BATCH, len(images))), _BATCH)  # one shape, compiled once
        result[start:start + _BATCH] = apply(images[rows], ids[rows])[:len(images) - start]
    return result


def _outputs(found: Classifier, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns features, logits and labels."""
    outputs = found.outputs(images, batch_size=_BATCH, timed=False)
    return outputs.features[0], outputs.logits[0, 0], images.labels


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------

_Outputs = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _figures(score: Callable[[np.ndarray], np.ndarray], cells: Mapping[str, _Outputs], none: Mapping[str, _Outputs]
             ) -> dict[str, Any]:
    of_cells = {name: score(one[0]) for name, one in cells.items()}
    of_none = {name: score(one[0]) for name, one in none.items()}
    aurocs = _aurocs(of_cells, of_none)
    return {"cells": {name: {"images": len(one), "flagged": float((one >= 0.5).mean()), "auroc": aurocs[name]}
                      for name, one in of_cells.items()},
            "no_cells": {name: {"images": len(one), "flagged": float((one >= 0.5).mean()),
                                "auroc": _auroc(of_cells[""], one), "auroc_heavy": _auroc(of_cells["heavy"], one)}
                         for name, one in of_none.items()},
            "quantiles": {name: np.quantile(one, QUANTILES).round(4).tolist()
                        for name, one in {**of_cells, **of_none}.items()}}


def _aurocs(cells: Mapping[str, np.ndarray], none: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns, by set of cells, the mean AUROC against the sets of no-cells."""
    return {name: float(np.mean([_auroc(one, other) for other in none.values()])) for name, one in cells.items()}


def _auroc(cells: np.ndarray, none: np.ndarray) -> float:
    return float(sklearn.metrics.roc_auc_score(np.arange(len(cells) + len(none)) >= len(cells),
                                               np.concatenate([cells, none])))


def _other_scores(train: _Outputs) -> dict[str, Callable[..., np.ndarray]]:
    """Returns other scores, larger for what is more novel, fitted on the clean half of the bank's images."""
    features, _, labels = train
    unit = _unit(features)
    by_class, of_all = _mahalanobis(features, np.asarray(labels)), _mahalanobis(features, np.zeros(len(features), int))
    of_unit = _mahalanobis(unit, np.asarray(labels))

    def neighbours(own: np.ndarray, _: np.ndarray, __: object) -> np.ndarray:
        return -np.partition(_unit(own) @ unit.T, -K, axis=1)[:, -K]

    return {"largest logit": lambda _, logits, __: -logits.max(axis=1),
            "energy (Liu et al. 2020)": lambda _, logits, __: -scipy.special.logsumexp(logits, axis=1),
            "Mahalanobis (Lee et al. 2018)": lambda own, _, __: by_class(own),
            "relative Mahalanobis (Ren et al. 2021)": lambda own, _, __: by_class(own) - of_all(own),
            "Mahalanobis, unit length": lambda own, _, __: of_unit(_unit(own)),
            f"{K} neighbours, unit length (Sun et al. 2022)": neighbours}


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _mahalanobis(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the squared distance to the nearest class's mean by one covariance, which is kept from being singular."""
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)]).astype(np.float64)
    centred = features - means[labels]
    covariance = centred.T @ centred / len(features)
    values, vectors = np.linalg.eigh(covariance + np.eye(len(covariance)) * 1e-3 * np.trace(covariance)
                                     / len(covariance))
    white = vectors / np.sqrt(values)

    def distance(own: np.ndarray) -> np.ndarray:
        return np.min([(((own - mean) @ white) ** 2).sum(axis=1) for mean in means], axis=0)

    return distance


def _microseconds(found: Classifier, fitted: Novelty, cells: ImageSet) -> dict[str, float]:
    """Returns the time of an image in batches of 64: of the network and of the score, in turns, each the least."""
    images, ids = cells.images[:_BATCH], cells.ids[:_BATCH]
    network, score = [], []
    for _ in range(15):
        began = time.perf_counter()
        features = found.batch(images, ids).features[0]
        between = time.perf_counter()
        fitted.score(features)
        network.append(between - began)
        score.append(time.perf_counter() - between)
    return {"network": round(1e6 * min(network) / _BATCH, 1), "score": round(1e6 * min(score) / _BATCH, 1)}


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

OURS = f"{K} neighbours, power {novelty.POWER:g}, unit length"


def page(result: Mapping[str, Any]) -> str:
    """Returns novelty.md."""
    runs = result["runs"]
    heads = [f"`{run['run']}`" for run in runs]
    cells = _table(_cells_rows(runs, heads))
    none = _table(_no_cells_rows(runs, heads))
    kinds = ("as they are", "heavy")
    scores = _table([["AUROC", *[f"{head}, {kind}" for head in heads for kind in kinds]],
                     *[[name, *[f"{values[kind]:.3f}" for values in each for kind in ("", "heavy")]]
                       for name, each in _all_scores(runs).items()]])
    cost = "; ".join(f"{head} {run['seconds']:.0f} s, {run['bytes'] / 2**20:.1f} MiB, "
                     f"{run['microseconds']['score']:.0f} and {run['microseconds']['network']:.0f} microseconds"
                     for head, run in zip(heads, runs, strict=True))
    said = (f"Fit, file, and an image's score and its way through the network, in batches of {_BATCH}: {cost}. "
            f"{result['hardware']}, other programs at work; {result['date']}.")
    return "\n\n".join([
        "# Novelty: what is no blood cell",
        "*Written by `python -m docs.novelty`; change that, not this page.*",
        _INTRODUCTION.format(strong=novelty_fitting.STRONG, k=K, power=novelty.POWER, images=novelty_fitting.IMAGES,
                             share=novelty_fitting.SHARE, share_of_strong=novelty_fitting.SHARE_OF_STRONG),
        "![Scores of cells and no-cells](novelty.png)",
        "## Cells that are flagged", cells, _OF_CELLS,
        "## No-cells that pass", none, _OF_NONE.format(count=runs[0]["no_cells"]["text"]["images"],
                                                       recoloured=no_cells.RECOLOURED),
        "## Other scores", scores, _OF_SCORES,
        "## Cost", textwrap.fill(said, 120),
        "## Command", f"    {result['command']}"]) + "\n"


def _cells_rows(runs: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Returns a row for each set of cells: the share that is flagged, and the AUROC against all no-cells."""
    def said(run: Mapping[str, Any], name: str) -> str:
        one = run["cells"][name]
        return f"{one['flagged']:.1%} ({one['auroc']:.3f})"

    policies = [said(run, run["policy"]) if run["policy"] else "none" for run in runs]
    rows = [["cells that are flagged", *heads], ["as they are", *[said(run, "") for run in runs]],
            ["under the run's `--augment`", *policies]]
    for name in runs[0]["cells"]:
        if name and name != runs[0]["policy"]:
            rows.append([_named(name), *[said(run, name) for run in runs]])
    return rows


def _no_cells_rows(runs: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Returns a row for each set: the share that is not flagged, and the AUROC against cells, and heavy ones."""
    rows = [["no-cells that pass", *heads]]
    for name in runs[0]["no_cells"]:
        each = [run["no_cells"][name] for run in runs]
        rows.append([name, *[f"{1 - one['flagged']:.1%} ({one['auroc']:.3f}, {one['auroc_heavy']:.3f})"
                             for one in each]])
    return rows


def _named(name: str) -> str:
    return {"": "as they are", novelty_fitting.STRONG: "strongly transformed"}.get(name, name)


def _all_scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, float]]]:
    """Returns, by score, what each run reaches."""
    found: dict[str, list[Mapping[str, float]]] = {
        name: [run["others"][name] for run in runs] for name in runs[0]["others"]}
    ours: list[Mapping[str, float]] = [{name: one["auroc"] for name, one in run["cells"].items()} for run in runs]
    return {**found, OURS: ours}


_INTRODUCTION = """\
A network gives each image one of its classes, a photograph too. The novelty score says how unlike all training images
an image is, from 0 to 1, and predict flags it from 0.5 on. It is the distance of an image's features to the {k}th
nearest of a bank of training images' (Sun et al. 2022), on the unit sphere, each feature raised to the power {power}
before (Perronnin et al. 2010). The bank has {images:,} training images, each class alike, as they are and under the
run's `--augment`. The threshold is the least by which {share:.0%} of the validation images stay unflagged, as they are
and under `--augment`, and {share_of_strong:.0%} under a strong policy that is the same for all runs:
`{strong}`.

Below, one half of the 1,712 validation cells has set the threshold and the other half is measured. The runs are those
of [results.md](results.md), EfficientNet-Lite0 trained for minutes. In brackets: AUROC. The cells of the picture are
rendered, what was measured is real; bars hold the middle half of the scores, lines the middle nine tenths."""

_OF_CELLS = """\
*Heavy* is 2 to 5 strong transforms at once ([what and why](../bloodcell/evaluate/corruptions.py)); *MedMNIST-C* its
eleven corruptions, each on every eleventh cell; no fit has seen either, though some ops of the strong policy are ops of
*heavy* too. AUROC is against all sets of no-cells below, each with the same weight."""

_OF_NONE = """\
{count} images a set; AUROC against the cells as they are, and against heavy ones. The two contaminants are pictures
blended over a cell, which shows through, and under *heavy* little tells them from a heavily transformed cell.
*Recoloured and shifted* is
`{recoloured}`.
Photographs are those that scikit-image, scikit-learn and matplotlib bring, tissue and retina scikit-image's, all in
random crops."""

_OF_SCORES = """\
AUROC of cells as they are, and of heavy ones, against all sets of no-cells. All but the last line see training images
as they are alone. The power and the strong policy's share were chosen by looking at such figures of `flips-0`,
`m2g_synthetic-0` and `deepl-0`, so expect a little less elsewhere; `alpaca-0` was measured once, at the end. Tried as
well, and worse: banks with strongly transformed images in them (of a network that was trained on flips they look like
noise, and noise then passes: AUROC of heavy cells 0.58 instead of 0.86), the distance over the neighbours' own
distances, principal components, and sums with the largest logit."""


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def picture(runs: Sequence[Mapping[str, Any]], shown: Mapping[str, np.ndarray]) -> bytes:
    """Draws examples of each set, and of each run the middle half of its scores, the middle nine tenths and the median.

    Args:
      runs: of `measure`.
      shown: images by set; a set without any has none drawn.

    Returns:
      A PNG file.
    """
    first = runs[0]
    names = [*(name for name in first["cells"] if not name or name != first["policy"]), *first["no_cells"]]
    figure = Figure(figsize=(3.6 + 2.2 * len(runs), 0.5 * len(names) + 0.9), dpi=_DPI, layout="constrained")
    examples, *panels = figure.subplots(1, 1 + len(runs), sharey=True, width_ratios=(0.95, *[1] * len(runs)))
    for row, name in enumerate(names):
        for column, image in enumerate(shown.get(name, ())):
            examples.imshow(image, extent=(column + 0.04, column + 0.96, row + 0.46, row - 0.46), aspect="auto")
    examples.set(xlim=(0, SHOWN), ylim=(len(names) - 0.5, -0.5), xticks=[])
    examples.set_yticks(range(len(names)), [_named(name) for name in names], fontsize=8)
    examples.tick_params(length=0)
    examples.spines[:].set_visible(False)
    for axes, run in zip(panels, runs, strict=True):
        for row, name in enumerate(names):
            low, left, middle, right, high = run["quantiles"][name]
            colour = _CELLS if name in run["cells"] else _NONE
            axes.plot([low, high], [row, row], color=colour, lw=1.2)
            axes.plot([left, right], [row, row], color=colour, lw=6, alpha=0.55, solid_capstyle="butt")
            axes.plot([middle], [row], "o", ms=4, color=colour)
        axes.axvline(novelty.FLAGGED, color="black", lw=0.8, ls="--")
        axes.set_title(run["run"], fontsize=9)
        axes.set(xlim=(-0.02, 1.02), xticks=(0, 0.5, 1))
        axes.set_xlabel("novelty", fontsize=8)
        axes.tick_params(labelsize=8, length=0)
        axes.grid(alpha=0.25, axis="x")
        axes.spines[:].set_visible(False)
    return plots.png(figure)


def main(argv: list[str] | None = None) -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m docs.novelty", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="folders of runs, with commas between them")
    parser.add_argument("--contaminants", type=pathlib.Path, help="a folder of PNG files")
    parser.add_argument("--docs", type=pathlib.Path, default=FOLDER, help="where the page is (default docs)")
    parser.add_argument("--page", action="store_true", help="write page and picture anew, measure nothing")
    args = parser.parse_args(argv)
    figures = args.docs / "novelty.json"
    try:
        if not args.page:
            if not (args.checkpoint and args.contaminants):
                parser.error("expected --checkpoint and --contaminants; try --checkpoint=runs/v2s --contaminants=.")
            runs: list[dict[str, Any]] = []
            for run in args.checkpoint.split(","):
                runs.append(measure(pathlib.Path(run), args.contaminants))
                print(f"measured {run}", flush=True)
            names = ",".join(f"runs/results/{run['run']}" for run in runs)
            result = {"runs": runs, "date": datetime.date.today().isoformat(), "hardware": results._hardware(),
                      "command": f"python -m docs.novelty --checkpoint={names} --contaminants=FOLDER"}
            write_atomically(figures, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        result = json.loads(figures.read_text(encoding="utf-8"))
        write_atomically(args.docs / "novelty.png", picture(result["runs"], examples()))
        write_atomically(args.docs / "novelty.md", page(result).encode())
    except (InputError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {args.docs / 'novelty.md'}")


if __name__ == "__main__":
    main()
