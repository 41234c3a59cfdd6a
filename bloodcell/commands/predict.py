"""`--mode=predict`: class, probabilities and flags of new images, however many, as CSV, JSON lines or arrays."""

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bloodcell.commands import classifying, common, parts, predictions
from bloodcell.commands.classifying import Loaded
from bloodcell.commands.predictions import LOW, NOVEL, UNREADABLE, Layout
from bloodcell.config import Config
from bloodcell.data import stream
from bloodcell.data.dataset import first_left_out
from bloodcell.data.stream import Batch, Stream
from bloodcell.errors import InputError, Stopped
from bloodcell.evaluate import metrics, novelty
from bloodcell.evaluate.novelty import Novelty
from bloodcell.part_file import PartFile

_NAMED = 3  # unreadable images that are named on the terminal; the file names all of them
_NOTHING_YET = {"images": 0, "changed": 0, "first": [], **dict.fromkeys(predictions.FLAGS, 0)}


def run(config: Config) -> None:
    """Writes `--predictions` for the images of `--data`, in their order; labels are neither needed nor read.

    Rows are on disk a few seconds after their images were looked at, in `<predictions>.part`, which gets its name when
    all are there. A command that was stopped or killed goes on from there when it is given again.

    Raises:
      InputError: a checkpoint, a source or an output file that cannot be used, no image that can be read, or more that
        cannot than `--max_bad_images` allows where that is above 0.
      Stopped: Ctrl-C or SIGTERM.
    """
    ending = predictions.check(config.predictions)
    runtime = common.resolve(config)
    loaded = classifying.load(dataclasses.replace(config, val_augment=""), runtime)
    size, names = loaded.about["image_size"], loaded.about["class_names"]
    layout = Layout(ending, names, config.topk)
    judges = loaded.judges()
    images = stream.open_source(config.data, image_size=size, class_names=names, seed=config.seed)
    print(f"devices: {runtime.devices} | precision: {runtime.precision} | jit: {runtime.jit} | data: {config.data}: "
          f"{len(images):,} unlabelled images, read as their turn comes, {len(names)} classes", flush=True)
    loaded.print_notes()
    loaded = classifying.calibrated(loaded, parts.to_fit_on(config, loaded.about), config, runtime)
    for line in _how_they_are_read(images, size, loaded, judges):
        print(line, flush=True)

    about = {"images": [len(images), images.digest], "checkpoint": list(loaded.weights_sha256),
             "temperature": [member.temperature for member in loaded.classifier.members],
             "ensemble_weights": loaded.classifier.weights.tolist(), "segment": loaded.about["segment"],
             "tta": config.tta, "novelty": [judge and judge.threshold for judge in judges], "topk": config.topk,
             "batch_size": config.batch_size, "precision": runtime.precision, "jit": runtime.jit}
    with PartFile(pathlib.Path(config.predictions), about) as part:
        if part.damaged:
            print(f"{part.path} is damaged: starting with the first image", flush=True)
        if part.state:
            print(f"going on after {part.state['images']:,} of {len(images):,} images", flush=True)
        else:
            part.append(layout.header(), _NOTHING_YET)
        start, started = part.state["images"], time.monotonic()
        said = started
        try:
            with contextlib.closing(images.batches(config.batch_size, size, start)) as batches:
                for batch in batches:
                    text, flags = layout.rows(batch.items, *_judged(batch, loaded, judges))
                    part.append(text, _counted(part.state, batch, flags))
                    if 0 < config.max_bad_images < part.state[UNREADABLE]:
                        raise _too_many_unreadable(part, config)
                    now, done = time.monotonic(), part.state["images"]
                    if config.progress != "none" and now - said >= common.LINE_SECONDS:
                        speed, said = (done - start) / (now - started), now
                        print(f"predicted {done:,}/{len(images):,} images, {speed:,.0f} images/s, "
                              f"{(len(images) - done) / speed / 60:,.1f} minutes to go", flush=True)
        except (KeyboardInterrupt, Stopped) as stop:
            raise Stopped(stop.number if isinstance(stop, Stopped) else signal.SIGINT, (
                f"{part.state['images']:,} of {len(images):,} images are in {part.path}; the same command goes on "
                "from there")) from None
        result = part.state
        if result[UNREADABLE] == result["images"]:
            part.discard()
            raise InputError(f"{config.data}: expected an image that can be read, received {result['images']:,} that "
                             f"cannot, first {first_left_out(result['first'], _NAMED)}; try other files")
        layout.finish(part)
    speed = (result["images"] - start) / (time.monotonic() - started)
    print(_last_line(config.predictions, result, size, speed), flush=True)


def _how_they_are_read(images: Stream, size: int, loaded: Loaded, judges: Sequence[Novelty | None]) -> Iterator[str]:
    """Lines on what becomes of images before the model, and on what their novelty is."""
    yield (f"images of other sizes are cropped to the centred square and resized to {size}x{size} (bicubic); alpha, "
           "the lower 8 of 16 bits, pages after the first and EXIF orientations are ignored")
    count, first = images.passed_over
    if count:
        yield f"passed over: {count:,} files whose names end in none of {', '.join(stream.SUFFIXES)}, first {first}"
    without = [str(run) for run, judge in zip(loaded.runs, judges, strict=True) if judge is None]
    if len(without) == len(judges):
        yield (f"novelty: {', '.join(without)} cannot say what is no cell (trained before runs could): the column "
               "holds the entropy of the probabilities, and no image is flagged novel")
    elif without:
        yield f"novelty: the mean of the runs' scores without {', '.join(without)}, which cannot say what is no cell"


def _judged(batch: Batch, loaded: Loaded, judges: Sequence[Novelty | None]
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities float32 [R,C], novelty float64 [R] and its flag bool [R] of R images that can be read."""
    count = sum(not item.reason for item in batch.items)
    if not count:
        return np.zeros((0, loaded.classifier.class_count), np.float32), np.zeros(0), np.zeros(0, bool)
    outputs = loaded.classifier.batch(batch.images, batch.ids)
    probabilities = loaded.classifier.probabilities(outputs.logits)[:count]
    score = novelty.mean_score(judges, outputs.features)
    if score is None:
        return probabilities, metrics.normalised_entropy(probabilities), np.zeros(count, bool)
    return probabilities, score[:count], score[:count] >= novelty.FLAGGED


def _counted(state: dict[str, Any], batch: Batch, flags: dict[str, int]) -> dict[str, Any]:
    """Returns what is known of all images so far, those of a batch among them."""
    unreadable = [[item.file, item.reason] for item in batch.items if item.reason]
    return {"images": state["images"] + len(batch.items),
            "changed": state["changed"] + sum(item.changed for item in batch.items),
            "first": (state["first"] + unreadable)[:_NAMED + 1],
            **{flag: state[flag] + count for flag, count in flags.items()}}


def _too_many_unreadable(part: PartFile, config: Config) -> InputError:
    state = part.state
    return InputError(f"{config.data}: expected whole images but for {config.max_bad_images} (--max_bad_images), "
                      f"received {state[UNREADABLE]:,} among the first {state['images']:,} that cannot be used, first "
                      f"{first_left_out(state['first'], _NAMED)}; try replacing them, or leaving the flag out")


def _last_line(path: str, result: dict[str, Any], size: int, speed: float) -> str:
    unreadable = f" ({first_left_out(result['first'], _NAMED)})" if result[UNREADABLE] else ""
    return (f"wrote {path}: {result['images']:,} images, {speed:,.0f} images/s; {result['changed']:,} brought to "
            f"{size}x{size}; flagged: {result[NOVEL]:,} {NOVEL}, {result[LOW]:,} {LOW}, {result[UNREADABLE]:,} "
            f"{UNREADABLE}{unreadable}")
