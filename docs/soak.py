"""`python -m docs.soak RUN_FOLDER` draws the memory and the speed of a long run, and writes `docs/soak.png`.

The run's `metrics.jsonl` and TensorBoard's curves say all of it; nothing is measured here.
"""

import json
import pathlib
import sys

import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bloodcell.evaluate import plots
from bloodcell.files import write_atomically

PICTURE = pathlib.Path(__file__).resolve().parent / "soak.png"


def curve(run_dir: pathlib.Path, tag: str) -> tuple[list[float], list[float]]:
    """Returns minutes since the first point, and the values, of one of TensorBoard's scalars."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    points = events.Tensors(tag)
    return ([(point.wall_time - points[0].wall_time) / 60 for point in points],
            [float(tf.make_ndarray(point.tensor_proto)) for point in points])


def draw(run_dir: pathlib.Path) -> dict[str, float]:
    """Writes the picture; returns minutes, epochs, and the memory after the first epoch and at most, in MiB."""
    history = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    minutes, memory = curve(run_dir, "memory/host_mib")
    _, speed = curve(run_dir, "steps/images_per_second")
    first = history[0]["seconds"] / 60
    after = [value for when, value in zip(minutes, memory, strict=True) if when > first]
    figure = Figure((9, 4.5), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(minutes, memory, color="#3465a4")
    upper.set_ylim(0, 1.15 * max(memory))
    upper.set_ylabel("resident memory, MiB")
    lower.plot(minutes[:len(speed)], speed, color="#73ad21", linewidth=0.8)
    lower.set_ylim(0, None)
    lower.set_ylabel("images/s")
    lower.set_xlabel("minutes")
    upper.set_title(f"{len(history)} epochs in {sum(each['seconds'] for each in history) / 60:.0f} minutes", loc="left")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    write_atomically(PICTURE, plots.png(figure))
    return {"minutes": sum(each["seconds"] for each in history) / 60, "epochs": len(history), "after": after[0],
            "least": min(after), "most": max(after)}


if __name__ == "__main__":
    found = draw(pathlib.Path(sys.argv[1]))
    print(f"{found['epochs']} epochs, {found['minutes']:.1f} minutes; after the first epoch {found['after']:,.0f} MiB, "
          f"then {found['least']:,.0f} to {found['most']:,.0f} ({found['most'] / found['after'] - 1:+.1%})")
