"""`--list=models`: what `--model` may be, what each network costs, and whether its ImageNet weights are at hand.

Nothing is built, read or downloaded: the figures are those of the registry. What belongs here: tables for people.
"""

from collections.abc import Sequence

from bloodcell.config import Config
from bloodcell.errors import InputError
from bloodcell.models.backbones import BACKBONES, Backbone
from bloodcell.models.published import PackageFile

_HEADINGS = ("model", "parameters", "FLOPs at 96x96", "smallest side", "ImageNet weights", "at hand")
_NOTE = """\
Parameters and FLOPs are the backbone's, without a head; FLOPs are of the convolutions and dense layers for one image, a
multiply-add counted as 2. At hand: installed (a package), cached (in Keras's folder), none (--weights=imagenet
downloads them or says what to install). '-': no ImageNet weights."""


def run(config: Config) -> None:
    """Prints the table that `--list` names; InputError where there is none of that name."""
    if config.list != "models":
        raise InputError(f"--list expected models, received {config.list!r}; try --list=models")
    rows = [_row(entry) for entry in sorted(BACKBONES.values(), key=lambda entry: entry.name)]
    print("\n".join([*_aligned([_HEADINGS, *rows]), "", _NOTE]), flush=True)


def _row(entry: Backbone) -> tuple[str, ...]:
    weights = entry.imagenet
    source = "-" if weights is None else weights.package if isinstance(weights, PackageFile) else "keras.applications"
    return (entry.name, f"{entry.parameters:,}", f"{entry.flops / 1e6:,.0f} M", f"{entry.minimum}", source,
            weights.at_hand() if weights else "-")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Pads columns to one width: names to the left, numbers (columns 2 to 4) to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.rjust(width) if 1 <= column <= 3 else text.ljust(width)
                      for column, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
