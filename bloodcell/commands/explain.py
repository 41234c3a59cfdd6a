"""`--mode=explain`: pictures that say what happens: of a policy, of a segmentation, and of a trained model."""

from bloodcell.commands import classifying, common, explaining, explaining_policy, parts, segmenting
from bloodcell.config import Config, explained
from bloodcell.files import check_folder, make_folder, write_atomically
from bloodcell.train.tensorboard import Board

SEGMENT_SHEET = "explain_segment.png"
SEGMENT_ROWS = 2  # of three cells, for each class


def run(config: Config) -> None:
    """Does what `--explain` says; `config.validate` has seen to it that this can be done.

    Raises:
      InputError: data, a checkpoint or a folder that cannot be used.
    """
    if config.workdir or not explained(config.explain):
        check_folder(config.run_dir)
    if config.explain == "segment":
        explain_segment(config)
    elif config.explain == "augment":
        explaining_policy.explain_augment(config)
    else:
        explain_model(config)


def explain_model(config: Config) -> None:
    """Writes pictures of `--checkpoint` on `--data`, explanations.json, and what TensorBoard shows of them.

    They go into `--workdir`, or into the folder of the (first) run where that is empty. The images are those that
    `--mode=evaluate` measures under the same flags.
    """
    kinds = explained(config.explain)
    runtime = common.resolve(config)
    loaded = classifying.load(config, runtime)
    part, images = parts.to_measure(config, loaded.runs[0], loaded.about)
    common.print_header(runtime, config.data, {part: images})
    loaded.print_notes()
    folder = config.run_dir if config.workdir else loaded.runs[0]
    make_folder(folder)

    loaded = classifying.calibrated(loaded, parts.to_fit_on(config, loaded.about), config, runtime)
    if config.batch_norm == "data":
        classifying.reestimate(loaded.classifier, images, config)
        print(f"batch normalisation: statistics of these {len(images):,} images (--batch_norm=data)", flush=True)
    outputs = loaded.classifier.outputs(images, batch_size=config.batch_size, timed=False,
                                        on_batch=common.counter("looked at", len(images), config.progress))
    train = None
    if "neighbours" in kinds:
        train = explaining.training_of(loaded.runs[0], data=config.train_data, cache=config.cache)
    searched = len(train.images) if isinstance(train, explaining.Training) else 0
    found = explaining.explanations(
        loaded.classifier, images, outputs, kinds=kinds, train=train, batch_size=config.batch_size, seed=config.seed,
        on_batch=common.counter("searched among", min(searched, explaining.MOST_SEARCHED), config.progress))

    for remark in found.remarks:
        print(remark, flush=True)
    print(f"{int(found.wrong.sum()):,} of {len(images):,} images are taken for another class; {found.coarseness}")
    drawn = explaining.pictures(found)
    for path in explaining.write(folder, found, drawn):
        print(f"wrote {path}", flush=True)
    with Board(folder) as board:
        explaining.to_board(board, found, drawn, step=0)
    print(f"TensorBoard: tensorboard --logdir={board.folder}", flush=True)


def explain_segment(config: Config) -> None:
    """Writes `explain_segment.png` into the run's folder: cells of every class, their foreground, and what is left.

    The cells are the first of each class in the training part that `--mode=train` has under the same flags.
    """
    _, segmentation = segmenting.in_training({"train": parts.load(config)["train"]}, config, rows=SEGMENT_ROWS)
    if segmentation is None:
        raise ValueError("expected --segment")
    for bar in segmentation.shares:
        print(f"  {bar.name:<24}  {100 * bar.share:5.1f} %  {bar.remark}")
    path = config.run_dir / SEGMENT_SHEET
    write_atomically(path, segmentation.png())
    print(f"wrote {path}", flush=True)
