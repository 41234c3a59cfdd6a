"""`--mode=audit`: what is wrong with a labelled set, and a clean one without it. Training begins with one too."""

import pathlib
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from bloodcell.commands import common
from bloodcell.config import Config
from bloodcell.data import audit, npz_writer, sources, tfrecord_writer
from bloodcell.data.audit import cleaning
from bloodcell.data.dataset import ImageSet, UnequalSizes
from bloodcell.data.decode import decode_file
from bloodcell.data.similarity import equal_pixels
from bloodcell.errors import InputError, shown
from bloodcell.evaluate import audit_page
from bloodcell.files import check_folder, make_folder, write_atomically
from bloodcell.models import features

MOST_POINTS = 12_000  # on each map
_MANY = 2_000  # images whose audit takes so long that it is announced
_COMPONENTS, _PERPLEXITY, _ITERATIONS = 32, 30, 500  # of t-SNE and of the PCA before it


def run(config: Config) -> None:
    """Audits `--data` and writes audit.json, audit.html and the clean set into the run's folder.

    Nothing is lost: the source stays as it is, and audit.json names every removed image with its reason.

    Raises:
      InputError: data, examples or a folder that cannot be used.
    """
    # ---- The set -------------------------------------------------------------------------------------------------
    check_folder(config.run_dir)
    images = _load(config)
    make_folder(config.run_dir)
    height, width = images.images.shape[1:3]
    print(f"data: {config.data}: {len(images):,} images, {height}x{width}, {images.num_classes} classes", flush=True)
    common.print_left_out({"train": images})

    # ---- What is found ---------------------------------------------------------------------------------------------
    found, seen = examine(images, config, every_rule=True, say=_say)
    for line in lines(found):
        print(line, flush=True)

    # ---- What is written -------------------------------------------------------------------------------------------
    _check_left(found, config)
    written = _write_clean(images.subset(found.kept), images, found, config)
    _say("drawing the maps")
    page = audit_page.page(found, images.images, maps(images, found, seen), written=[cleaning.AUDIT_FILE, *written])
    write_atomically(config.run_dir / cleaning.AUDIT_FILE, found.to_json().encode())
    write_atomically(config.run_dir / "audit.html", page.encode())
    for name in (cleaning.AUDIT_FILE, *written, "audit.html"):
        print(f"wrote {config.run_dir / name}", flush=True)


def examine(images: ImageSet, config: Config, *, every_rule: bool,
            say: Callable[[str], None]) -> tuple[audit.Audit, np.ndarray]:
    """Audits a set as the flags say.

    Args:
      images: N labelled images.
      config: the flags `audit_rules`, `audit_keep`, `audit_features` and `contaminants`.
      every_rule: False: only the rules that remove.
      say: called with a few words before each long step.

    Returns:
      The audit, and the features float32 [N, D] that it used, D = 0 where it used none.
    """
    rules = config.audit_rules if every_rule else audit.removing(config.audit_rules)
    keep = audit.positions(config.audit_keep, len(images), "--audit_keep")
    given, names = _examples(images, config.contaminants)
    name, seen, examples = "none", np.zeros((len(images), 0), np.float32), None
    if audit.needs_features(rules, given=given is not None):
        name = features.resolve(config.audit_features)
        say(f"features: {name}")
        look = features.Extractor(name)
        equal = equal_pixels(images)
        seen = look(images.images, np.unique(equal, return_index=True)[1])[equal]
        examples = None if given is None else look(given, np.arange(len(given)))
    return audit.examine(images, rules_text=rules, features=seen, features_name=name, examples=examples,
                         example_names=names, keep=keep, on_step=say), seen


def clean(images: ImageSet, config: Config) -> tuple[ImageSet, np.ndarray | None]:
    """Leaves out of a set what `--clean` says; `common.print_header` tells of it.

    Args:
      images: N labelled images, as `--data` gives them.
      config: the flag `clean` and those of the audit.

    Returns:
      The set without what was removed, and its int64 numbers of pictures (`Audit.pictures`) where an audit told.

    Raises:
      InputError: a file that is no audit of this set, or flags that do not fit it.
    """
    if config.clean == "none" or (config.clean == "auto" and images.audited):
        return images, None
    if config.clean != "auto":
        kept, pictures = audit.by_file(images, pathlib.Path(config.clean).expanduser()), None
    else:
        if len(images) >= _MANY:
            print(f"auditing {len(images):,} images (--clean=none goes without)", file=sys.stderr, flush=True)
        found, _ = examine(images, config, every_rule=False, say=lambda words: None)
        _check_left(found, config)
        kept, pictures = audit.by_audit(images, found), found.pictures[found.kept]
    return kept, pictures


def lines(found: audit.Audit) -> list[str]:
    """Returns what was found, for a terminal."""
    width = max(len(rule.name) for rule in found.rules) if found.rules else 0
    told = [f"  {rule.name:<{width}}  {rule.found:>7,}  {'removed' if rule.action == 'remove' else 'reported'}"
            f"{f'  ({rule.note})' if rule.note else ''}" for rule in found.rules]
    told.append(f"kept {len(found.kept):,} of {len(found.labels):,} images, removed {len(found.removed):,}; "
                f"{len(found.duplicates):,} pairs of duplicates, {len(found.near_duplicates):,} of near-duplicates, "
                f"{len(found.conflicts):,} label conflict{'s' * (len(found.conflicts) != 1)}; {found.seconds:.0f} s")
    return told


def maps(images: ImageSet, found: audit.Audit, seen: np.ndarray) -> dict[str, audit_page.Map]:
    """Returns the plane of the first two principal components, and t-SNE's (L. van der Maaten, 2014), of the features.

    Of images with equal pixels the first is drawn, and of more than 12,000 a random choice with everything that a rule
    has named.
    """
    index = np.unique(equal_pixels(images), return_index=True)[1]
    if seen.shape[1] < 2 or len(index) < 4:
        return {}
    if len(index) > MOST_POINTS:
        named = np.intersect1d([each.index for each in (*found.removed, *found.suspects)], index)[:MOST_POINTS]
        others = np.random.default_rng(0).permutation(np.setdiff1d(index, named))
        index = np.concatenate([named.astype(np.int64), others[:MOST_POINTS - len(named)]])
    index = np.sort(index)
    components = min(_COMPONENTS, seen.shape[1], len(index))
    scores = PCA(components, svd_solver="randomized", random_state=0).fit_transform(seen[index])
    near = TSNE(perplexity=min(_PERPLEXITY, (len(index) - 1) / 3), init="pca", random_state=0, max_iter=_ITERATIONS,
                n_jobs=-1).fit_transform(scores)
    return {"PCA": audit_page.Map(index, scores[:, :2]), "t-SNE": audit_page.Map(index, near)}


def _load(config: Config) -> ImageSet:
    """Returns `--data` at its own size, or at `--image_size` where its images have several."""
    def load(size: int | None) -> ImageSet:
        return sources.load(config.data, part="train", image_size=size, seed=config.seed,
                            max_bad_images=config.max_bad_images, cache=config.cache)

    try:
        return load(None)
    except UnequalSizes:
        return load(config.image_size)


def _examples(images: ImageSet, text: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the given contaminants, uint8 [E, H, W, 3] of the set's size, and their names: positions or files."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        return None, ()
    size = tuple(images.images.shape[1:3])
    given = []
    for name in names:
        if name.isdigit():
            given.append(np.asarray(images.images[audit.positions(name, len(images), "--contaminants")])[0])
        else:
            image = decode_file(pathlib.Path(name).expanduser())
            if isinstance(image, str):
                raise InputError(f"--contaminants expected positions or image files, received {shown(name)} ({image}); "
                                 "try its full path")
            resized = tf.image.resize(image, size, antialias=True).numpy()
            given.append(np.clip(np.rint(resized), 0, 255).astype(np.uint8))
    return np.stack(given), names


def _write_clean(clean: ImageSet, images: ImageSet, found: audit.Audit, config: Config) -> list[str]:
    about = f"{len(clean)} of the {len(images)} images of {images.origin}, fingerprint {found.fingerprint}"
    if config.audit_write == "index":
        write_atomically(config.run_dir / cleaning.INDEX_FILE, cleaning.to_index(found, images).encode())
        return [cleaning.INDEX_FILE]
    _say(f"writing {len(clean):,} images")
    if config.audit_write == "npz":
        npz_writer.write(clean, config.run_dir / "clean.npz", audited=about)
        return ["clean.npz"]
    shards = tfrecord_writer.write(clean, config.run_dir, name="clean")
    return [shard.name for shard in shards]


def _check_left(found: audit.Audit, config: Config) -> None:
    if not len(found.kept):
        raise InputError(f"--audit_rules expected rules that leave an image, received {config.audit_rules!r}, which "
                         "remove all of them; try remove=False")


def _say(words: str) -> None:
    print(f"{words}...", flush=True)
