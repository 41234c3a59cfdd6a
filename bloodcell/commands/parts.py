"""What a training learns from and is measured on: `--data`, `--val_data`, `--test_data` and `--split` taken together.

How a source is read and how a set is divided belong to `data`; here is their order.
"""

from bloodcell.config import Config
from bloodcell.data import sources, split
from bloodcell.data.dataset import ImageSet

DEFAULT_SPLIT = "fractions(0.83, 0.13, 0.04)"


def load(config: Config) -> dict[str, ImageSet]:
    """Returns "train" and "val", and "test" where there is one, all of the model's size and with train's classes.

    `--split` divides `--data`; else `--val_data` and `--test_data` are read; else the parts that the source itself has;
    what is then missing is split off.

    Raises:
      InputError: a source that cannot be used.
    """
    def read(source: str, part: str, names: tuple[str, ...] | None = None) -> ImageSet:
        return sources.load(source, part=part, image_size=config.image_size, seed=config.seed, class_names=names)

    if config.split:
        return _divided(read(config.data, "train"), config.split, config.seed)
    if config.val_data:
        parts = {"train": read(config.data, "train")}
        names = parts["train"].class_names
        parts["val"] = read(config.val_data, "val", names)
        if config.test_data:
            parts["test"] = read(config.test_data, "test", names)
        return parts
    parts = sources.load_parts(config.data, image_size=config.image_size, seed=config.seed)
    if "val" not in parts:
        spec_text = "fractions(0.87, 0.13)" if "test" in parts else DEFAULT_SPLIT
        parts = {**parts, **_divided(parts["train"], spec_text, config.seed)}
    return parts


def _divided(images: ImageSet, spec_text: str, seed: int) -> dict[str, ImageSet]:
    divided = split.split(images, spec_text, seed)
    parts = {"train": divided.train, "val": divided.val}
    return parts if divided.test is None else {**parts, "test": divided.test}
