"""`--mode=evaluate`: the figures of a run's best weights on labelled images."""

from bloodcell.commands import common
from bloodcell.config import Config
from bloodcell.data import sources, split
from bloodcell.errors import InputError
from bloodcell.train import checkpoints
from bloodcell.train import strategy as strategies


def run(config: Config) -> None:
    """Measures `--checkpoint` on `--data` and ends by printing one line of JSON.

    All of `--data` is used; of a source with parts of its own (demo, MedMNIST, folders with train/ and test/) the test
    part, and with `--split` the last part of that split.

    Raises:
      InputError: a checkpoint or data that cannot be used, or data of other classes.
    """
    common.check_output(config.report, "--report")
    runtime = strategies.resolve(strategy=config.strategy, replicas=config.replicas, precision=config.precision,
                                 jit=config.jit, seed=config.seed)
    model, about = checkpoints.load_model(config.checkpoint)
    part = "train" if config.split else "test"
    images = sources.load(config.data, part=part, image_size=about["image_size"], seed=config.seed,
                          class_names=about["class_names"])
    if config.split:
        divided = split.split(images, config.split, config.seed)
        part, images = ("val", divided.val) if divided.test is None else ("test", divided.test)
    if images.labels is None:
        raise InputError(f"--data expected labelled images, received {config.data} without labels; try --mode=predict")
    common.print_header(runtime, config.data, {part: images})
    common.print_result(common.measure(model, images, config, runtime), config.report)
