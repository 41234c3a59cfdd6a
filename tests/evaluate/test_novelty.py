"""The novelty score is the distance that scikit-learn finds, 0.5 at its threshold, and kept for its weights alone."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors

from bloodcell import config
from bloodcell.commands import classifying, novelty_fitting
from bloodcell.data import demo, sources
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError
from bloodcell.evaluate import novelty
from bloodcell.evaluate.classifier import Classifier, Member
from bloodcell.evaluate.novelty import Known, Novelty
from bloodcell.models import features as backbones
from bloodcell.models import lite0
from bloodcell.train import strategy
from docs import novelty as page

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
DOCS = pathlib.Path(page.__file__).parent
DIGEST = "ab" * 32


def drawn(count: int, *, seed: int, width: int = 24) -> np.ndarray:
    """Features as a network has them: none below 0, and many that are 0."""
    random = np.random.default_rng(seed)
    return np.maximum(random.normal(0, 1, (count, width)), 0).astype(np.float32)


@pytest.fixture
def fitted() -> Novelty:
    return Novelty.fit([("", drawn(300, seed=0)), ("flip", drawn(200, seed=1))],
                       [Known("", 0.99, drawn(250, seed=2)), Known("flip", 0.9, drawn(150, seed=3))],
                       weights_sha256=DIGEST)


def by_sklearn(fitted: Novelty, features: np.ndarray, k: int) -> np.ndarray:
    signed = np.sign(features) * np.power(np.abs(features.astype(np.float64)), 0.3)
    unit = signed / np.linalg.norm(signed, axis=1, keepdims=True)
    search = sklearn.neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(fitted.bank.astype(np.float64))
    return search.kneighbors(unit)[0][:, -1]


def test_distances_are_those_of_nearest_neighbors_of_scikit_learn(fitted):
    features = np.random.default_rng(4).normal(0, 2, (1500, 24)).astype(np.float32)  # below 0 as well, and two chunks
    np.testing.assert_allclose(fitted.distances(features), by_sklearn(fitted, features, novelty.K), atol=2e-6)
    assert len(fitted.bank) == 500


def test_the_bank_is_the_training_features_and_a_small_one_has_fewer_neighbours():
    features = drawn(4, seed=0)
    small = Novelty.fit([("", features)], [Known("", 0.5, drawn(9, seed=1))], weights_sha256=DIGEST)
    signed = features.astype(np.float64) ** 0.3
    np.testing.assert_allclose(small.bank, signed / np.linalg.norm(signed, axis=1, keepdims=True), atol=5e-4)
    assert small.k == 4
    np.testing.assert_allclose(small.distances(drawn(7, seed=2)), by_sklearn(small, drawn(7, seed=2), 4), atol=2e-6)


def test_features_scaled_by_any_factor_score_alike(fitted):
    features = drawn(50, seed=5)
    np.testing.assert_allclose(fitted.score(features), fitted.score(features * 1000), atol=1e-5)


def test_a_score_is_a_half_at_the_threshold_exactly_and_grows_with_the_distance(fitted):
    features = np.random.default_rng(6).normal(0, 2, (400, 24)).astype(np.float32)
    distances = fitted.distances(features)
    for place in (3, 77):
        moved = Novelty(fitted.bank, fitted.k, float(distances[place]), DIGEST, {})
        assert moved.score(features)[place] == novelty.FLAGGED
    scores = fitted.score(features)
    assert scores.dtype == np.float64
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert np.array_equal(np.argsort(scores, kind="stable"), np.argsort(distances, kind="stable"))


@pytest.mark.parametrize(("shares", "decides"), [((0.99, 0.5), 0), ((0.6, 0.96), 1)])
def test_every_share_stays_unflagged_and_no_more_than_that_of_the_one_that_decides(shares, decides):
    known = [Known(name, share, drawn(count, seed=seed)) for name, share, count, seed in
             (("", shares[0], 200, 2), ("flip", shares[1], 75, 3))]
    fitted = Novelty.fit([("", drawn(300, seed=0))], known, weights_sha256=DIGEST)
    flagged = [(fitted.score(each.features) >= 0.5).sum() for each in known]
    assert all(count / len(each.features) <= 1 - each.share + 1e-9 for count, each in zip(flagged, known, strict=True))
    # exactly as many as it may, where that decided
    assert flagged[decides] == round((1 - shares[decides]) * len(known[decides].features))
    assert [each["flagged"] for each in fitted.fitted_on["known"]] == [
        count / len(each.features) for count, each in zip(flagged, known, strict=True)]


def test_equal_distances_do_not_push_more_over_the_threshold_than_may():
    same = np.repeat(drawn(1, seed=8), 40, axis=0)
    fitted = Novelty.fit([("", drawn(300, seed=0))], [Known("", 0.7, same)], weights_sha256=DIGEST)
    assert (fitted.score(same) < 0.5).all()


def test_features_without_direction_or_number_are_as_far_as_a_right_angle(fitted):
    odd = np.zeros((3, 24), np.float32)
    odd[1, 3], odd[2, 5] = np.nan, np.inf
    np.testing.assert_allclose(fitted.distances(odd), np.sqrt(2), atol=1e-3)
    known = Novelty.fit([("", np.ones((20, 4)))], [Known("", 0.9, np.ones((20, 4)))], weights_sha256=DIGEST)
    assert np.isfinite(known.score(np.ones((2, 4)))).all()


# ---------------------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_to_the_bit_and_only_for_its_weights(fitted, tmp_path):
    assert novelty.load(tmp_path, DIGEST) is None
    fitted.save(tmp_path)
    average = Novelty.fit([("", drawn(60, seed=9))], [Known("", 0.9, drawn(50, seed=10))], weights_sha256="cd" * 32)
    average.save(tmp_path, "average")
    for one in (fitted, average):
        found = novelty.load(tmp_path, one.weights_sha256)
        assert found is not None
        assert np.array_equal(found.bank.view(np.uint16), one.bank.view(np.uint16))
        assert (found.k, found.threshold, found.fitted_on) == (one.k, one.threshold, one.fitted_on)
        assert np.array_equal(found.score(drawn(99, seed=11)), one.score(drawn(99, seed=11)))
    assert novelty.load(tmp_path, "00" * 32) is None


def test_other_weights_of_the_run_take_the_place_of_those_before(fitted, tmp_path):
    fitted.save(tmp_path)
    Novelty(fitted.bank, fitted.k, 0.5, "ef" * 32, fitted.fitted_on).save(tmp_path)
    assert novelty.load(tmp_path, DIGEST) is None
    assert novelty.load(tmp_path, "ef" * 32) is not None


def test_the_same_features_give_the_same_file(fitted, tmp_path):
    again = Novelty.fit([("", drawn(300, seed=0)), ("flip", drawn(200, seed=1))],
                        [Known("", 0.99, drawn(250, seed=2)), Known("flip", 0.9, drawn(150, seed=3))],
                        weights_sha256=DIGEST)
    fitted.save(tmp_path / "one")
    again.save(tmp_path / "other")
    assert (tmp_path / "one" / novelty.FILE).read_bytes() == (tmp_path / "other" / novelty.FILE).read_bytes()


def rewritten(path: pathlib.Path, **changed: object) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays["best/meta"])) | {key: value for key, value in changed.items() if key != "bank"}
    bank = changed.get("bank", arrays["best/bank"])
    arrays = {"best/meta": np.array(json.dumps(meta)), "best/bank": np.asarray(bank)}
    np.savez(path, **arrays)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "no zip", "array", "pickled", "k", "threshold", "nan",
                                  "dtype", "no bank", "no json", "list"])
def test_a_damaged_file_is_one_line_and_saving_mends_it(fitted, tmp_path, harm):
    fitted.save(tmp_path)
    path = tmp_path / novelty.FILE
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[:len(content) // 2])
    elif harm == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1:])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "no zip":
        path.write_bytes(b"novelty")
    elif harm == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif harm == "pickled":
        rewritten(path, bank=np.array([{}], object))
    elif harm == "no bank":
        with zipfile.ZipFile(path) as archive:
            meta = archive.read("best/meta.npy")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("best/meta.npy", meta)
    elif harm == "no json":
        np.savez(path, **{"best/meta": np.array("{"), "best/bank": fitted.bank})
    elif harm == "list":
        np.savez(path, **{"best/meta": np.array("[1]"), "best/bank": fitted.bank})
    else:
        changed: dict[str, dict[str, object]] = {
            "k": {"k": 501}, "threshold": {"threshold": 0.0}, "dtype": {"bank": np.zeros((20, 3))},
            "nan": {"bank": np.full((20, 3), np.nan, np.float16)}}
        rewritten(path, **changed[harm])
    with pytest.raises(InputError, match=r"novelty\.npz: expected .*, received a damaged file; try") as error:
        novelty.load(tmp_path, DIGEST)
    assert "\n" not in str(error.value)
    fitted.save(tmp_path)
    assert novelty.load(tmp_path, DIGEST) is not None


# ---------------------------------------------------------------------------------------------------------------------


def small_network() -> keras.Model:
    keras.utils.set_random_seed(3)
    entry = keras.Input((32, 32, 3))
    backbone = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255),
                                 keras.layers.Conv2D(16, 3, strides=2, activation="relu")], name="backbone")
    head = keras.Sequential([keras.Input((15, 15, 16)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8)],
                            name="head")
    return keras.Model(entry, head(backbone(entry)))


def rendered(count: int, seed: int) -> ImageSet:
    images, labels = demo.render(count, seed=seed, size=32)
    return ImageSet(images, np.asarray(labels, np.int64), np.arange(count, dtype=np.int64), tuple("abcdefgh"), "demo",
                    ("",) * count)


def test_a_training_fits_it_on_its_own_images_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(novelty_fitting, "STRONG", "flip | brightness(0.5)")
    model = small_network()
    loaded = classifying.Loaded(Classifier([Member("run", model)]), (tmp_path,), {}, (DIGEST,))
    settings = config.parse(["main.py", "--augment=flip", "--batch_size=32", "--progress=lines"])
    assert settings is not None
    runtime = strategy.resolve(strategy="none", replicas=0, precision="float32", jit="off", seed=0)
    train, val = rendered(120, 0), rendered(110, 1)
    fitted = novelty_fitting.fit(loaded, "best", train=train, val=val, config=settings, runtime=runtime)
    assert fitted is not None
    assert "novelty: of the validation images are flagged" in capsys.readouterr().out
    known = fitted.fitted_on["known"]
    assert [each["policy"] for each in known] == ["", "flip", "flip | brightness(0.5)"]
    assert [each["images"] for each in known] == [110] * 3
    assert fitted.bank.shape == (240, 16)
    assert max(each["flagged"] - (1 - each["share"]) for each in known) <= 1e-9
    facts = json.loads(json.dumps(fitted.facts(), allow_nan=False))
    assert [facts[f"val_flagged{name}"] for name in ("", "_augmented", "_strongly_transformed")] == [
        each["flagged"] for each in known]
    stored = novelty.load(tmp_path, DIGEST)
    assert stored is not None

    plain = Classifier([Member("run", model)])
    own = plain.outputs(val, batch_size=7).features[0]
    assert (stored.score(own) >= 0.5).mean() == known[0]["flagged"]
    grey = ImageSet(np.full((4, 32, 32, 3), 20, np.uint8), None, np.arange(4, dtype=np.int64), (), "", ("",) * 4)
    assert (stored.score(plain.outputs(grey, batch_size=4).features[0]) >= 0.5).all()


def test_too_few_validation_images_fit_none(tmp_path, capsys):
    loaded = classifying.Loaded(Classifier([Member("run", small_network())]), (tmp_path,), {}, (DIGEST,))
    settings = config.parse(["main.py", "--progress=lines"])
    assert settings is not None
    runtime = strategy.resolve(strategy="none", replicas=0, precision="float32", jit="off", seed=0)
    few = rendered(99, 1)
    assert novelty_fitting.fit(loaded, "best", train=few, val=few, config=settings, runtime=runtime) is None
    assert "novelty: not fitted" in capsys.readouterr().out
    assert not (tmp_path / novelty.FILE).exists()


@pytest.mark.skipif(not (SHARED / "pbc96").is_dir(), reason="the real cells (../shared/data) are not here")
@pytest.mark.skipif(lite0.weights_file() is None, reason="the ImageNet weights of EfficientNet-Lite0 are not installed")
def test_real_contaminants_and_noise_are_told_from_real_cells_by_a_network_that_has_learned_no_cell():
    cells = sources.load(str(SHARED / "pbc96" / "val-*.tfrecord"), part="train", image_size=96)
    odd = sources.load(str(SHARED / "contaminants"), part="test", image_size=96, labelled=False)
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    rows = np.random.default_rng(1).permutation(len(cells))[:246]
    images = np.concatenate([cells.images[rows], odd.images[:], noise])
    features = backbones.Extractor("efficientnet_lite0")(images, np.arange(len(images)))
    fitted = Novelty.fit([("", features[:120])], [Known("", 0.95, features[120:180])], weights_sha256=DIGEST)
    scores = fitted.score(features[180:])
    assert (scores[:66] >= 0.5).mean() < 0.2
    assert (scores[66:] >= 0.5).all()
    assert sklearn.metrics.roc_auc_score(np.arange(len(scores)) >= 66, scores) > 0.99


# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_is_what_its_figures_make():
    figures = json.loads((DOCS / "novelty.json").read_text(encoding="utf-8"))
    assert (DOCS / "novelty.md").read_text(encoding="utf-8") == page.page(figures)
