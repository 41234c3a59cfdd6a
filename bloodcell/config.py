"""Every flag, what it may be, and the frozen dataclass that all of them become.

One field of `Config` is one flag. What belongs here: names, defaults, help, and checks that need no data. What a spec
means belongs to its owner (`augment.parse`, `stages.parse`, ...), which `validate` asks. Nothing else reads flags.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from bloodcell import spec
from bloodcell.errors import InputError, did_you_mean

MODES = ("train", "evaluate", "predict", "audit", "explain")
EXPLANATIONS = ("augment", "segment")
SPLIT_OF_RUN = "run"  # --split of an evaluation: as the checkpoint's run was divided


class _Whole(flags.ArgumentParser):
    """Whole numbers of an inclusive range; the error's line says which."""

    syntactic_help = ""

    def __init__(self, low: int, high: int):
        super().__init__()
        self._low, self._high = low, high

    def parse(self, argument: Any) -> int:
        try:
            value = int(argument)
        except ValueError:
            value = None
        if value is None or not self._low <= value <= self._high:
            raise ValueError(f"expected a whole number {self._low}..{self._high}")
        return value

    def flag_type(self) -> str:
        return "int"


def _flag(default: Any, text: str, *, choices: tuple[str, ...] = (), low: int = 0, high: int = 2**31 - 1) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is: one field a flag (its help says values and unit), and `recipe`, the flagfile's name."""

    mode: str = _flag("train", (
        "What to do: train a model, evaluate a checkpoint on labelled data, predict on new images, audit labelled data "
        "(find contaminants, copies and wrong labels, write a clean set), or explain (--explain says what)."),
        choices=MODES)
    data: str = _flag("demo", (
        "Images: 'demo' (rendered, offline), a .npz (keys images+labels, or MedMNIST's six), a folder (one folder "
        "per class; flat for predict), a .tfrecord glob, 'bloodmnist' or 'bloodmnist:SIZE' with SIZE 28, 64, 128 "
        "or 224 (downloaded once). Evaluate takes the test part where the data has parts."))
    val_data: str = _flag("", "Validation set, in the forms of --data. Empty: taken from --data.")
    test_data: str = _flag("", "Test set, in the forms of --data. Empty: taken from --data.")
    max_bad_images: int = _flag(0, (
        "How many images of a folder or of TFRecords, at most, may be left out because they cannot be used (cut short, "
        "damaged, oversized, no image at all); more is an error. The run says which, predict lists them with the flag "
        "'unreadable'. Nothing ever takes their place."))
    cache: str = _flag("auto", (
        "Where decoded images are while they are trained on: in the host's 'memory'; on the 'device', all of them on "
        "each one, so that a step is sent their positions alone; 'none': nowhere, each image of TFRecords is read and "
        "decoded when its turn comes, so a set may be larger than memory. 'auto': on the GPUs where a set takes less "
        "than a fourth of their memory; else in memory, TFRecords where they take less than a fourth of what is free. "
        "Results are the same, to the bit."),
        choices=("auto", "memory", "device", "none"))
    clean: str = _flag("auto", (
        "What training leaves out of --data (validation and test sets of their own are left as they are): 'auto' "
        "audits a set that is neither rendered nor written by an audit, and leaves out what --audit_rules remove; an "
        "audit.json or a kept.txt is an earlier audit of the same data; 'none' leaves it as it is. A line and the "
        "report say what was left out."))
    audit_rules: str = _flag("", (
        "Rules of an audit, in order, below; each takes remove=True or False. Empty: all of them, of which 'repeats' "
        "and 'examples' remove and the others report. Example: 'repeats(copies=10) | duplicates(remove=True)'."))
    audit_keep: str = _flag("", "Positions in --data that an audit never removes, for example 5,100-120.")
    audit_write: str = _flag("npz", (
        "The clean set that --mode=audit writes into the run's folder: clean.npz, kept.txt (the kept positions, for "
        "--clean), or TFRecords."), choices=("npz", "index", "tfrecord"))
    audit_features: str = _flag("auto", (
        "Whose features an audit measures distances in: a backbone's, with its ImageNet weights, or 'pixels'; 'auto' "
        "is efficientnet_lite0 where its weights are installed, else pixels."))
    contaminants: str = _flag("", (
        "Known contaminants for the rule 'examples': positions in --data or image files, for example "
        "13202,13690,logo.png."))
    split: str = _flag("", (
        "How --data is split, stratified, copies of a picture together, and the same for one seed: 'fractions(0.83, "
        "0.13, 0.04)' are the shares of train, validation and test; 'kfold(5, fold=0)', 'balanced_test(100)' and "
        "'two_copies(0.6, 1.0)' are below. Empty: the parts that --data itself has, else those fractions. With "
        "--mode=evaluate: use the last part of this split, or with 'run' that of the checkpoint's run."))
    segment: str = _flag("", (
        "What becomes of what is not the cell, in all images: 'threshold(fill=255)' keeps the stained object in the "
        "middle, 'knn(k=5, masks=\'FOLDER\', fill=255)' what K nearest neighbours on colour and position take for the "
        "foreground of a few images with masks (without masks: of clear cells of the training part); the rest gets the "
        "fill, a grey level 0..255, 'white', 'black' or 'mean'. Saved with the run; evaluate and predict do the same "
        "by themselves. Empty: nothing."))
    model: str = _flag("efficientnet_v2_s", (
        "Backbone, for example efficientnet_v2_s, mobilenet_v3_large, efficientnet_lite0 or cnn; --list=models shows "
        "all. 'concat(efficientnet_v2_s, efficientnet_v2_m)' is several side by side, their features joined."))
    weights: str = _flag("imagenet", (
        "First weights: 'imagenet' (error where they are missing; the demo set alone goes on from random ones), "
        "'none' (random), or a weights file (.h5). A concat takes imagenet or none for all its parts, or one of the "
        "three for each, in order and with commas between them."))
    head: str = _flag("", (
        "Layers between the backbone and the logits, of the kinds below, for example 'dense(128) | dropout(0.3)'. "
        "Before them the feature map is averaged over its pixels, unless the first is a pool or flatten. Empty: the "
        "logits alone."))
    stages: str = _flag("all(epochs=5, lr=1e-3)", (
        "Training stages in order, each of one of the kinds below: what learns, for how many epochs, and lr, the peak "
        "learning rate. Example: 'head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4)'. A stage may have "
        "rules of its own: augment='SPEC', mix='SPEC', optimizer='SPEC', schedule='SPEC' and batch_size=N inside the "
        "parentheses stand for the flags of these names there."))
    augment: str = _flag("", (
        "Augmentation policy of training images, for example 'flip | rotate(180) | randaugment(n=3, m=4)'; angles "
        "in degrees. Empty: none."))
    val_augment: str = _flag("", (
        "Policy applied to the images that are validated or evaluated, to measure robustness. Empty: none."))
    corruptions: str = _flag("", (
        "Corruptions, below, on which --mode=evaluate measures the model beside the images as they are: names with "
        "commas between them; 'all' is the eleven that MedMNIST-C publishes for BloodMNIST, each in five severities. "
        "A table by severity is printed, the line of JSON gets the figures, and the folder --checkpoint gets "
        "corruptions.png (balanced error by corruption and severity) and corruption_cells.png (a cell of each class "
        "under each), in place of those of the time before. Example: all,heavy. Empty: none."))
    mix: str = _flag("", (
        "Mixes training images in pairs after --augment, and their labels in the same proportion: 'mixup(0.2)', "
        "'cutmix(1.0)' (the number is alpha of lambda ~ Beta(alpha, alpha)), 'oneof(mixup(0.2), cutmix(1.0))', op@p. "
        "Partners are images of the same batch and replica; accuracy counts the larger part of a label. Empty: none."))
    optimizer: str = _flag("adamw(weight_decay=1e-4)", (
        "What takes the steps: 'sgd', 'adam', 'adamw(weight_decay=1e-4)', 'lion' or 'ranger', all below. Decay is apart"
        " from the gradient and leaves biases, norms and layer scales alone; clipnorm limits all gradients together."))
    schedule: str = _flag("cosine(warmup=0.05)", (
        "Learning rate within a stage, from the stage's lr: 'constant', 'cosine(warmup=0.05)', 'restarts(first=0.1, "
        "factor=2)', 'exponential(rate=0.96, every=0.01)', 'step(factor=0.1, at=(0.5, 0.75))' or 'plateau(factor=0.5, "
        "patience=3)', all below; lengths are fractions of the stage's steps, patience is in epochs."))
    loss: str = _flag("cross_entropy(smoothing=0.1)", (
        "'cross_entropy(smoothing=0.1)'; smoothing is a probability, 0..1. 'focal(gamma=2)' counts images that are "
        "right already less. 'jsd(weight=12)' shows the model three views of each image, itself without augmentation "
        "and two by --augment: cross-entropy of the first, plus weight times the Jensen-Shannon divergence of the "
        "three predictions, in nats (a step costs three times as much). Validation takes the cross-entropy alone."))
    average: str = _flag("", (
        "Averaged weights, kept beside the raw ones, validated after every epoch and saved as "
        "checkpoints/average.npz: 'ema(0.999)' or 'swa(start=0.75)', below. --which=average uses them. Empty: none."))
    balance: str = _flag("none", (
        "What is done about unequal classes of the training part: 'none', 'class_weights' (in the loss), "
        "'replicate(2000)', 'sampler', 'synthetic(1500)' or 'smote(k=5)', all below; numbers are images a class."))
    batch_size: int = _flag(64, "Images a step, over all replicas together.", low=1, high=65536)
    early_stopping: int = _flag(0, (
        "Epochs without a better validation accuracy (ties: loss) after which a stage ends. 0: never."), high=10000)
    strategy: str = _flag("auto", (
        "Devices: 'mirrored' over all visible ones, 'none' for one device, 'multiworker' over those of all processes "
        "that TF_CONFIG names (BUILD.md), 'tpu' for a TPU's cores (untested; TPU_NAME says which). 'auto': the workers "
        "where a training's TF_CONFIG names several, else mirrored where there are several devices."),
        choices=("auto", "mirrored", "none", "multiworker", "tpu"))
    replicas: int = _flag(0, (
        "Number of replicas, over all workers together. 0: every visible device. More than 1 on a CPU makes logical "
        "devices, for tests."), high=1024)
    precision: str = _flag("auto", (
        "Arithmetic of the model; 'auto' is mixed_bfloat16 where the hardware has it, mixed_float16 on older GPUs,"
        " float32 on CPU."), choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"))
    jit: str = _flag("auto", (
        "What XLA compiles: nothing, the augmentation, or the whole step; 'auto' is augment on CPU, step on GPU."),
        choices=("auto", "off", "augment", "step"))
    seed: int = _flag(0, "Seed of everything random: split, order, augmentation, first weights, dropout.")
    image_size: int = _flag(96, (
        "Side of the square images the model sees, in pixels; others are resized."), low=16, high=1024)
    workdir: str = _flag("", (
        "Folder of the run; one that holds a run is resumed. Empty: runs/RECIPE, RECIPE being the flagfile's name."))
    checkpoint_seconds: int = _flag(600, (
        "Seconds between two checkpoints within an epoch; every epoch ends with one. A killed run loses what it did "
        "since the last, and does it again with the same results, to the bit; Ctrl-C and SIGTERM save first. 0: only "
        "at the ends of epochs."), high=10**6)
    keep: int = _flag(2, (
        "How many of the newest checkpoints are kept: where the newest is damaged, the run goes on from the one "
        "before."), low=1, high=1000)
    allow_changed: str = _flag("", (
        "What may differ from the run that --workdir holds when that goes on, separated by commas: names of flags, "
        "'train' and 'val' (the images), 'code' (bloodcell's), 'tensorflow', 'keras', 'numpy' (their versions), "
        "'precision', or 'all'. Empty: nothing. Example: code,batch_size."))
    deterministic: bool = _flag(False, (
        "Makes TensorFlow's own kernels deterministic too (slower on a GPU): two runs end with the same bits."))
    checkpoint: str = _flag("", "Run folder to evaluate or to predict with, for example runs/v2s.")
    which: str = _flag("best", (
        "Weights of the run to evaluate or to predict with: of the 'best' epoch by validation, of the 'last' one, or "
        "the best 'average' that a run with --average has."), choices=("best", "last", "average"))
    report: str = _flag("", "File that also gets the JSON of the last line (train and evaluate). Empty: none.")
    predictions: str = _flag("", (
        "CSV written by --mode=predict, columns file,label,name,p0..pN,confidence,novelty,flag. confidence is the "
        "largest probability; novelty is the entropy of the probabilities over its maximum, 0 (certain) to 1 (all "
        "classes alike); flag is 'low_confidence' below a confidence of 0.5, 'unreadable' without figures."))
    explain: str = _flag("", (
        "What --mode=explain shows: 'augment' writes explain_augment.png into the run's folder, a sheet of training "
        "images under --augment in epochs 1 to 8, and the share of images that draw each op; 'segment' writes "
        "explain_segment.png, cells of every class before and after --segment, and the share of foreground."))
    list: str = _flag("", (
        "Prints what there is and ends; 'models': every backbone with its parameters, its FLOPs at 96x96, the smallest "
        "image it takes, and whether its ImageNet weights are at hand. Empty: nothing."))
    dry_run: bool = _flag(False, "Build everything, train one batch, say what would run, and write nothing.")
    profile_steps: str = _flag("", (
        "First and last step of a profiler trace for TensorBoard, for example 10,20. Empty: none."))
    progress: str = _flag("auto", (
        "Progress of training: a bar, a line now and then, or none; 'auto' is bar on a terminal, else lines."),
        choices=("auto", "bar", "lines", "none"))
    recipe: str = "default"

    @property
    def run_dir(self) -> pathlib.Path:
        """The run's folder: `workdir`, or runs/RECIPE where that is empty."""
        return pathlib.Path(self.workdir or f"runs/{self.recipe}").expanduser()


_FLAG_FIELDS = tuple(field for field in dataclasses.fields(Config) if field.metadata)

# Where a run is written and how it is watched is no part of what it computes.
_NOT_REPRODUCED = ("workdir", "report", "predictions", "explain", "list", "dry_run", "progress", "profile_steps",
                   "allow_changed")


def _flag_values() -> flags.FlagValues:
    values = flags.FlagValues()
    for field in _FLAG_FIELDS:
        text, choices = field.metadata["help"], field.metadata["choices"]
        default: Any = field.default
        if field.type is bool:
            flags.DEFINE_boolean(field.name, default, text, flag_values=values)
        elif field.type is int:
            parser: Any = _Whole(field.metadata["low"], field.metadata["high"])
            flags.DEFINE(parser, field.name, default, text, flag_values=values,
                         serializer=flags.ArgumentSerializer())
        elif choices:
            flags.DEFINE_enum(field.name, default, choices, text, flag_values=values)
        else:
            flags.DEFINE_string(field.name, default, text, flag_values=values)
    flags.DEFINE_boolean("help", False, "Print this and end.", short_name="h", flag_values=values)
    values.set_gnu_getopt(True)
    return values


def parse(argv: list[str]) -> Config | None:
    """Reads the command line.

    Args:
      argv: program name and arguments; `--flagfile=FILE` stands for the flags of that file, and later flags win.

    Returns:
      The configuration, or `None` where `--help` was asked for.

    Raises:
      InputError: an unknown flag, a value out of range, an unreadable flagfile, or an argument that is no flag.
    """
    values = _flag_values()
    try:
        left_over = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        names = [field.name for field in _FLAG_FIELDS] + ["flagfile", "help"]
        raise InputError(f"unknown flag --{error.flagname}; {did_you_mean(error.flagname, names)}") from None
    except (flags.Error, ValueError) as error:  # ValueError: a flagfile that is no text, or --nodry_run=x
        raise InputError(f"{str(error).removeprefix('ERROR:: ')}; try --help") from None
    if values["help"].value:
        return None
    if left_over:
        raise InputError(f"expected flags only (--name=value), received the argument {left_over[0]!r}; try --help")
    chosen: dict[str, Any] = {field.name: values[field.name].value for field in _FLAG_FIELDS}
    # A spec quoted over several lines of a shell is one line.
    chosen = {name: re.sub(r"\s*\n\s*", " ", value).strip() if isinstance(value, str) else value
              for name, value in chosen.items()}
    return Config(**chosen, recipe=_recipe(argv))


def _recipe(argv: list[str]) -> str:
    """Returns the stem of the last flagfile named in `argv`."""
    name = "default"
    for position, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        if flag in ("--flagfile", "-flagfile"):
            name = pathlib.PurePath(value or " ".join(argv[position + 1:position + 2])).stem or name
    return name


def help_text() -> str:
    """Returns the text of `--help`: every flag with its values and default, and the ops of a policy."""
    from bloodcell import augment  # here: see `_validate_specs`
    from bloodcell.data import audit, balance, segment, split
    from bloodcell.evaluate import corruptions
    from bloodcell.models import heads
    from bloodcell.train import averaging, losses, optimizers, schedules, stages

    def described(entries: Mapping[str, Any]) -> str:
        text = ""
        for name, each in sorted(entries.items()):
            arguments = [_parameter(param) for param in each.params]
            arguments += ["policy, policy, ..."] if getattr(each, "branches", False) else []
            text += f"  {name}({', '.join(arguments)})\n      {each.summary}\n"
        return text

    flag_help = _flag_values().get_help(include_special_flags=False).replace(f"\n{__name__}:\n", "")
    return ("bloodcell: train, evaluate and use classifiers of blood-cell images.\n\n"
            "  python main.py --flagfile=flags/v2s.cfg --data=training_set.npz\n\n"
            "--flagfile=FILE reads flags from a file, one a line; later flags win, so it comes first.\n\n"
            f"{flag_help.rstrip()}\n\n"
            "What --augment and --val_augment are made of, beside op | op and op@p (with probability p):\n\n"
            f"{described({**augment.REGISTRY, **augment.COMBINATORS})}\n"
            "What --mix is made of:\n\n"
            f"{described(augment.MIXES)}\n"
            "What --head is made of:\n\n"
            f"{described(heads.OPERATIONS)}\n"
            "What --stages is made of:\n\n"
            f"{described(stages.SCOPES)}\n"
            "What --optimizer is one of:\n\n"
            f"{described(optimizers.OPTIMIZERS)}\n"
            "What --schedule is one of:\n\n"
            f"{described(schedules.SCHEDULES)}\n"
            "What --loss is one of:\n\n"
            f"{described(losses.LOSSES)}\n"
            "What --average is one of:\n\n"
            f"{described(averaging.AVERAGES)}\n"
            "What --split is one of:\n\n"
            f"{described(split.SPLITS)}\n"
            "What --balance is one of:\n\n"
            f"{described(balance.BALANCES)}\n"
            "What --audit_rules is made of:\n\n"
            f"{described(audit.RULES)}\n"
            "What --segment is one of:\n\n"
            f"{described(segment.SEGMENTERS)}\n"
            "What --corruptions takes, separated by commas:\n\n"
            f"{corruptions.described()}")


def _parameter(param: spec.Param) -> str:
    default = "" if param.default is spec.REQUIRED else f", default {param.default}"
    return f"{param.name}: {param.range_text()}{default}"


def to_flagfile(config: Config) -> str:
    """Returns a flagfile that reproduces the run: every flag, but where it is written and how it is watched."""
    lines = []
    for field in _FLAG_FIELDS:
        if field.name not in _NOT_REPRODUCED:
            value = getattr(config, field.name)
            lines.append(f"--{field.name}={value}")
    return "\n".join(lines) + "\n"


def validate(config: Config) -> None:
    """Checks every flag that can be checked without data; the owners of the specs are asked.

    Raises:
      InputError: a spec, a name or a combination of flags that cannot run.
    """
    if config.mode in ("evaluate", "predict") and not config.checkpoint:
        raise InputError(f"--mode={config.mode} expected --checkpoint=RUN_FOLDER, received none; "
                         "try --checkpoint=runs/v2s")
    if config.mode == "predict" and not config.predictions:
        raise InputError("--mode=predict expected --predictions=FILE.csv, received none; try --predictions=out.csv")
    if config.mode == "explain" and config.explain not in EXPLANATIONS:
        raise InputError(f"--mode=explain expected --explain={' or '.join(EXPLANATIONS)}, received "
                         f"{repr(config.explain) if config.explain else 'none'}; try --explain={EXPLANATIONS[0]}")
    if config.mode == "explain" and config.explain == "segment" and not config.segment:
        raise InputError("--explain=segment expected --segment=SPEC, received none; try --segment=threshold")
    if config.mode == "explain" and config.explain == "augment" and not config.augment:
        raise InputError("--explain=augment expected --augment=POLICY, received none; "
                         "try --augment='flip | rotate(180)'")
    if config.corruptions and config.val_augment:
        raise InputError("--corruptions expected images as they are to compare with, received --val_augment too; "
                         "try leaving one out")
    if config.split and (config.val_data or config.test_data):
        raise InputError("expected --split or --val_data/--test_data, received both; try leaving one out")
    if config.test_data and not config.val_data:
        raise InputError("--test_data expected --val_data beside it, received none; try --val_data=FILE or --split")
    profile_window(config.profile_steps)
    _validate_specs(config)


def _validate_specs(config: Config) -> None:
    # Imported here, because these rooms need TensorFlow's import (seconds), and a mistyped flag should not wait for it.
    from bloodcell import augment, models
    from bloodcell.data import audit, balance, segment, split
    from bloodcell.evaluate import corruptions
    from bloodcell.models import features
    from bloodcell.train import averaging, losses, optimizers, schedules, stages, state

    for name in filter(None, (part.strip() for part in config.allow_changed.split(","))):
        if name not in state.ALLOWABLE:
            raise InputError(f"--allow_changed expected names of what a run compares, received {name!r}; "
                             f"{did_you_mean(name, state.ALLOWABLE)}")
    augment.parse(config.augment)
    augment.parse(config.val_augment, what="val_augment")
    augment.parse_mix(config.mix)
    corruptions.parse(config.corruptions)
    plan = stages.parse(config.stages)
    optimizers.parse(config.optimizer)
    schedules.parse(config.schedule)
    averaging.parse(config.average)
    if losses.parse(config.loss).views > 1:
        stages.need_policies(plan, config.augment)
    audit.parse(config.audit_rules)
    features.validate(config.audit_features)
    balance.validate(config.balance)
    segment.parse(config.segment)
    augment.parse(balance.policy(config.balance), what="balance: policy")
    if config.split and not (config.mode == "evaluate" and config.split == SPLIT_OF_RUN):
        split.validate(config.split)
    if config.mode == "train":  # elsewhere the checkpoint says which network it is
        try:
            models.validate(config.model, config.weights, config.head, config.image_size)
        except models.MissingWeights:
            if config.data != "demo":
                raise


def profile_window(text: str) -> tuple[int, int] | None:
    """Returns first and last step of `--profile_steps`, or `None` where it is empty."""
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    first, last = (int(match[1]), int(match[2])) if match else (math.inf, 0)
    if first >= last:
        raise InputError(f"--profile_steps expected 'FIRST,LAST' with FIRST < LAST, received {text!r}; try 10,20")
    return int(first), int(last)
