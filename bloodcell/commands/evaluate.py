"""`--mode=evaluate`: the figures of a run, or of several runs together, on labelled images."""

from bloodcell.commands import classifying, common, corrupting, measuring, parts, reporting
from bloodcell.config import Config


def run(config: Config) -> None:
    """Measures `--checkpoint` on `--data` and ends by printing one line of JSON.

    All of `--data` is used; of a source with parts of its own (demo, MedMNIST, folders with train/ and test/) the test
    part, and with `--split` the last part of that split; `--split=run` is the division that the run's folder holds.
    With `--corruptions` the line also says what the figures fall to on the same images corrupted, and the checkpoint's
    folder gets pictures of it. evaluation.html and evaluation.json go into that folder too, or into `--workdir`.

    Raises:
      InputError: a checkpoint or data that cannot be used, or data of other classes.
    """
    common.check_output(config.report, "--report")
    corrupting.check(config)
    reporting.check(config)
    runtime = common.resolve(config)
    loaded = classifying.load(config, runtime)
    part, images = parts.to_measure(config, loaded.runs[0], loaded.about)
    common.print_header(runtime, config.data, {part: images})
    loaded.print_notes()
    loaded = classifying.calibrated(loaded, parts.to_fit_on(config, loaded.about), config, runtime)
    measured = measuring.measure(loaded.classifier, images, config)
    figures = measured.figures
    if measured.options:
        print(measuring.options_table(measured.options), flush=True)
    if config.corruptions:
        figures["corruptions"] = corrupting.measure(loaded, images, config, runtime, clean=figures)
    explanations = reporting.explained(loaded.classifier, images, measured, config)
    page = reporting.evaluation(config, runtime, loaded, measured, images=images, part=part, explanations=explanations)
    print(f"report: {page}", flush=True)
    common.print_result(figures, config.report)
