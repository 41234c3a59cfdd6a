"""`--mode=evaluate`: the figures of a run's best weights on labelled images."""

import pathlib

from bloodcell.commands import common, corrupting, parts, segmenting
from bloodcell.config import SPLIT_OF_RUN, Config
from bloodcell.data import division, sources
from bloodcell.errors import InputError
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies


def run(config: Config) -> None:
    """Measures `--checkpoint` on `--data` and ends by printing one line of JSON.

    All of `--data` is used; of a source with parts of its own (demo, MedMNIST, folders with train/ and test/) the test
    part, and with `--split` the last part of that split; `--split=run` is the division that the run's folder holds.
    With `--corruptions` the line also says what the figures fall to on the same images corrupted, and the checkpoint's
    folder gets pictures of it.

    Raises:
      InputError: a checkpoint or data that cannot be used, or data of other classes.
    """
    common.check_output(config.report, "--report")
    corrupting.check(config)
    runtime = strategies.resolve(strategy=config.strategy, replicas=config.replicas, precision=config.precision,
                                 jit=config.jit, seed=config.seed)
    model, about = checkpoints.load_model(config.checkpoint, which=config.which)
    size, names = about["image_size"], about["class_names"]
    if config.split and config.split != SPLIT_OF_RUN:  # cleaned and divided as a training with these flags does
        divided = parts.of_split(config, config.split, image_size=size, names=names)
        part = "test" if "test" in divided else "val"
        images = divided[part]
    else:
        part = "train" if config.split else "test"
        images = sources.load(config.data, part=part, image_size=size, seed=config.seed, class_names=names,
                              max_bad_images=config.max_bad_images, cache=config.cache)
        if config.split:
            part, images = division.held_out(pathlib.Path(config.checkpoint), images, config.data)
    if images.labels is None:
        raise InputError(f"--data expected labelled images, received {config.data} without labels; try --mode=predict")
    common.print_header(runtime, config.data, {part: images})
    figures = common.measure(model, segmenting.of_run(images, config, about), config, runtime)
    if config.corruptions:
        figures["corruptions"] = corrupting.measure(model, images, config, runtime, about=about, clean=figures)
    common.print_result(figures, config.report)
