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

MODES = ("train", "evaluate", "predict", "audit", "explain", "export", "search")
FORMATS = ("savedmodel", "keras", "tflite", "onnx", "codabench")
EXPLANATIONS = ("augment", "segment", "model")
OF_MODEL = ("gradcam", "tsne", "mistakes", "neighbours")  # what --explain=model stands for
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
        "(find contaminants, copies and wrong labels, write a clean set), explain (--explain says "
        "what), export files that other programs load (--format says which), or search hyper-parameters "
        "(--search_space says which)."),
        choices=MODES)
    data: str = _flag("demo", (
        "Images: 'demo' (rendered, offline), a .npz (keys images+labels, or MedMNIST's six), a folder (one folder "
        "per class; flat for predict), a .tfrecord glob, 'bloodmnist' or 'bloodmnist:SIZE' with SIZE 28, 64, 128 "
        "or 224 (downloaded once). Evaluate takes the test part where the data has parts."))
    val_data: str = _flag("", "Validation set, in the forms of --data. Empty: taken from --data.")
    test_data: str = _flag("", "Test set, in the forms of --data. Empty: taken from --data.")
    max_bad_images: int = _flag(0, (
        "How many images of a folder or of TFRecords, at most, may be left out because they cannot be used (cut short, "
        "damaged, oversized, no image at all); more is an error, and the run says which are left out. Predict lists "
        "every one of them in its place with the reason; above 0 it ends where there are more. Nothing ever takes "
        "their place."))
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
        "--mode=evaluate or explain: use the last part of this split, or with 'run' that of the checkpoint's run."))
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
        "Corruptions, below, on which evaluate, and train at its end, measure the model beside the images as they are: "
        "names with commas between them; 'all' is the eleven that MedMNIST-C publishes for BloodMNIST, each in five "
        "severities. A table is printed, the line of JSON and the report get the figures, and the run's folder gets "
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
    search_space: str = _flag("", (
        "What --mode=search varies: NAME=kind(...) with commas between them, kinds below. NAME is a flag of training; "
        "FLAG.PARAM, a parameter of the one op of that flag's spec that has it; FLAG.OP.PARAM; FLAG.OP.N.PARAM, of the "
        "Nth op of that name; p is the probability of a policy's op; lr is the stages' largest learning rate, to which "
        "the others keep their ratios. Example: lr=log(1e-5, 1e-2), augment.m=int(2, 9), optimizer=choice('adamw', "
        "'lion')."))
    search: str = _flag("tpe(trials=20)", (
        "How --mode=search goes about it, below. Each trial is a training with these flags; it is worth the balanced "
        "accuracy of its best epoch on validation (under --val_augment where given), or with folds=K the mean over K "
        "folds of --data, copies of a picture together. The same command goes on with a search; on another machine "
        "that has the same --workdir it takes part."))
    search_pruning: str = _flag("median(startup=5, warmup=1)", (
        "When a trial of --mode=search is stopped before its end, below: 'median(startup=5, warmup=1)' or 'none'."))
    search_workers: int = _flag(1, (
        "Processes of this machine that share a search's trials, each with a GPU of its own as far as there are any."),
        low=1, high=256)
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
    backend: str = _flag("auto", (
        "What applies the augmentation while training: XLA's own code, or one native kernel for a whole policy, faster "
        "on a CPU, with the same images. 'auto' takes the native one where `python -m bloodcell.augment.native.build` "
        "has built and tested it on this machine, and says so in the first line."),
        choices=("auto", "xla", "native"))
    seed: int = _flag(0, "Seed of everything random: split, order, augmentation, first weights, dropout.")
    image_size: int = _flag(96, (
        "Side of the square images the model sees, in pixels; others are resized."), low=16, high=1024)
    workdir: str = _flag("", (
        "Folder of the run; one that holds a run is resumed. Empty: runs/RECIPE, RECIPE being the flagfile's name. Of "
        "evaluate: the folder of evaluation.html and evaluation.json; empty: that of the first --checkpoint."))
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
    checkpoint: str = _flag("", (
        "Run folder to evaluate or to predict with, for example runs/v2s. Several, with commas between them, are an "
        "ensemble: the mean of their probabilities."))
    which: str = _flag("best", (
        "Weights of the run to evaluate or to predict with: of the 'best' epoch by validation, of the 'last' one, or "
        "the best 'average' that a run with --average has."), choices=("best", "last", "average"))
    tta: str = _flag("", (
        "Views of an image whose probabilities are averaged by evaluate, predict and export: 'flips', 'rotations', "
        "'dihedral' (all 8 of both), 'weak(8)', all below; with | between them, all their views. Example: dihedral | "
        "weak(8). Each view costs a forward pass. Empty: the image as it is."))
    temperature: str = _flag("auto", (
        "What logits are divided by, so that confidence says how often the model is right: 'auto' is the temperature "
        "that the run's folder holds (train fits one), else 1; 'none' is 1; a number is itself; 'fit' fits it on "
        "--val_data (in train: on the validation part) under --val_augment, or 'fit(augment='POLICY')' under that, and "
        "keeps it in the run's folder."))
    ensemble_weights: str = _flag("equal", (
        "Weights of the runs of --checkpoint in the mean of their probabilities: 'equal', 'val' (those that make the "
        "labels of --val_data likeliest), or positive numbers with commas between them."))
    batch_norm: str = _flag("train", (
        "Statistics of batch normalisation in evaluate: those of 'train', or of the 'data' that is measured, without "
        "its labels. With 'data' an image's result depends on the others, which a lab's single image has not."),
        choices=("train", "data"))
    report: str = _flag("", "File that also gets the JSON of the last line (train and evaluate). Empty: none.")
    predictions: str = _flag("", (
        "File written by --mode=predict, a row for each image of --data in its order (a folder at any depth, an image, "
        "a .npz or TFRecords; jpg, png, bmp, tiff and webp of any size): CSV (.csv) with the columns "
        "file,label,name,p0..pN,confidence,novelty,flag, JSON lines (.jsonl) or arrays (.npz). confidence is the "
        "largest probability; novelty, 0 to 1, says how unlike all training cells an image is (of runs that cannot "
        "tell: the entropy of the probabilities over its maximum); flag is 'novel' from a novelty of 0.5 on, else "
        "'low_confidence' below a confidence of 0.5, or 'unreadable: REASON' without figures. Until it is complete it "
        "is called FILE.part, and the same command goes on with it."))
    topk: int = _flag(0, (
        "How many of the most probable classes predict names behind the other columns, with their probabilities: "
        "top1_name, top1_p, top2_name, ... 0: none."), high=1000)
    explain: str = _flag("", (
        "What --mode=explain shows: 'augment' writes explain_augment.png into the run's folder, a sheet of training "
        "images under --augment in epochs 1 to 8, and the share of images that draw each op; 'segment' writes "
        "explain_segment.png, cells of every class before and after --segment, and the share of foreground. Of a "
        "trained model (--checkpoint) on --data 'model' shows all of the following, or some with commas between them: "
        "'gradcam' (where in cells of each class it finds what speaks for its answer), 'tsne' (a map of its "
        "features), 'mistakes' (the most confident ones), 'neighbours' (the nearest training images). Pictures, "
        "explanations.json and TensorBoard's files go into --workdir, or where that is empty into the run's folder. In "
        "train and evaluate: which of the four the report shows, or 'none'; empty: all that are at hand."))
    train_data: str = _flag("", (
        "Where the images that --checkpoint was trained on lie now, in the forms of --data, for --explain=neighbours. "
        "Empty: where they lay then."))
    format: str = _flag("savedmodel", (
        "What --mode=export writes, names with commas between them: 'savedmodel' (TensorFlow), 'keras' (a .keras file "
        "of Keras's own layers), 'tflite' (LiteRT, in 16 bits and in 8), 'onnx' (extra onnx), 'codabench' (a folder "
        "and a zip with model.py). Each takes uint8 images and gives probabilities; --tta, temperature and the mean "
        "over runs are inside. --workdir is where to; empty: the folder export of the first run. A file is kept if it "
        "says what the run says on 256 images, of --data where given, else of the run's validation part; 8 bits are "
        "calibrated on training images."))
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
_NOT_REPRODUCED = ("workdir", "report", "predictions", "topk", "explain", "format", "list", "dry_run", "progress",
                   "profile_steps", "allow_changed",
                   "search", "search_space", "search_pruning", "search_workers")


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
    from bloodcell.evaluate import corruptions, tta
    from bloodcell.models import heads
    from bloodcell.search import methods, space
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
            "What --tta is made of:\n\n"
            f"{described(tta.VIEWS)}\n"
            "What --search is one of:\n\n"
            f"{described(methods.METHODS)}\n"
            "What --search_pruning is one of:\n\n"
            f"{described(methods.PRUNINGS)}\n"
            "What --search_space is made of, separated by commas:\n\n"
            f"{space.described()}\n"
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
    if config.mode in ("evaluate", "predict", "export") and not config.checkpoint:
        raise InputError(f"--mode={config.mode} expected --checkpoint=RUN_FOLDER, received none; "
                         "try --checkpoint=runs/v2s")
    if config.mode == "predict" and not config.predictions:
        raise InputError("--mode=predict expected --predictions=FILE.csv, received none; try --predictions=out.csv")
    if config.mode in ("train", "evaluate"):
        in_report(config.explain)
    if config.mode == "explain" and explained(config.explain) and not config.checkpoint:
        raise InputError(f"--explain={config.explain} expected --checkpoint=RUN_FOLDER, received none; "
                         "try --checkpoint=runs/v2s")
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
    if config.mode == "export":
        formats_of(config.format)
        if config.val_augment:
            raise InputError("--mode=export expected images as they are, received --val_augment too; "
                             "try leaving it out")
    profile_window(config.profile_steps)
    _validate_specs(config)


def _validate_specs(config: Config) -> None:
    # Imported here, because these rooms need TensorFlow's import (seconds), and a mistyped flag should not wait for it.
    from bloodcell import augment, models
    from bloodcell.data import audit, balance, segment, split
    from bloodcell.evaluate import classifier, corruptions, temperature, tta
    from bloodcell.models import features
    from bloodcell.search import methods, places
    from bloodcell.train import averaging, losses, optimizers, schedules, stages, state

    for name in filter(None, (part.strip() for part in config.allow_changed.split(","))):
        if name not in state.ALLOWABLE:
            raise InputError(f"--allow_changed expected names of what a run compares, received {name!r}; "
                             f"{did_you_mean(name, state.ALLOWABLE)}")
    augment.parse(config.augment)
    augment.parse(config.val_augment, what="val_augment")
    augment.parse_mix(config.mix)
    corruptions.parse(config.corruptions)
    tta.parse(config.tta)
    choice = temperature.parse(config.temperature)
    augment.parse(choice.augment, what="--temperature: augment")
    weights = classifier.parse_weights(config.ensemble_weights)
    if config.mode in ("evaluate", "predict") and not config.val_data and (choice.fit or weights == "val"):
        asked = f"--temperature={config.temperature}" if choice.fit else "--ensemble_weights=val"
        raise InputError(f"{asked} expected labelled images to fit on, received none; try --val_data=FILE")
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
    if config.split and not (config.mode in ("evaluate", "explain") and config.split == SPLIT_OF_RUN):
        split.validate(config.split)
    if config.mode == "train":  # elsewhere the checkpoint says which network it is
        try:
            models.validate(config.model, config.weights, config.head, config.image_size)
        except models.MissingWeights:
            if config.data != "demo":
                raise
    methods.parse(config.search)
    methods.parse_pruning(config.search_pruning)
    if config.mode == "search":
        places.validate(config)


def explained(text: str) -> tuple[str, ...]:
    """Returns those of `OF_MODEL` that `--explain` asks for, in that order; none for a policy or a segmentation.

    Raises:
      InputError: a name that is none, or a mixture that cannot be.
    """
    asked = [part.strip() for part in text.split(",")]
    if asked == ["model"]:
        return OF_MODEL
    if len(asked) == 1 and asked[0] in EXPLANATIONS:
        return ()
    if wrong := [name for name in asked if name not in OF_MODEL]:
        known = (*EXPLANATIONS, *OF_MODEL)
        received, fix = "none", f"try --explain={EXPLANATIONS[0]}"
        if text:
            received = repr(wrong[0])
            fix = "try it alone" if wrong[0] in EXPLANATIONS else did_you_mean(wrong[0], known)
        raise InputError(f"--mode=explain expected --explain={' or '.join(EXPLANATIONS)}, or some of "
                         f"{', '.join(OF_MODEL)}, received {received}; {fix}")
    return tuple(name for name in OF_MODEL if name in asked)


def in_report(text: str) -> tuple[str, ...]:
    """Returns those of `OF_MODEL` that a report of train or evaluate is to show, by `--explain`.

    Raises:
      InputError: a name that is none of them.
    """
    if text in ("", "none"):
        return () if text else OF_MODEL
    found = explained(text)
    if not found:
        raise InputError(f"--explain={text} expected --mode=explain beside it, received train or evaluate, whose "
                         f"report shows some of {', '.join(OF_MODEL)}, or none; try leaving it out")
    return found


def formats_of(text: str) -> tuple[str, ...]:
    """Returns the names in `--format`, each once; raises InputError where there is none, or an unknown one."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in FORMATS:
            raise InputError(f"--format: unknown name '{spec.shorten(name)}'; {did_you_mean(name, FORMATS)}")
    if not names:
        raise InputError(f"--format expected names of formats, received none; try --format={FORMATS[0]}")
    return names


def profile_window(text: str) -> tuple[int, int] | None:
    """Returns first and last step of `--profile_steps`, or `None` where it is empty."""
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    first, last = (int(match[1]), int(match[2])) if match else (math.inf, 0)
    if first >= last:
        raise InputError(f"--profile_steps expected 'FIRST,LAST' with FIRST < LAST, received {text!r}; try 10,20")
    return int(first), int(last)
