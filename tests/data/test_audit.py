"""The audit names what is wrong, says why, loses nothing, and what it removed can be left out later."""

import json
import re
from typing import Any

import cells
import numpy as np
import pytest
import scipy.ndimage
from sklearn.covariance import MinCovDet

from bloodcell.data import audit
from bloodcell.data.audit import cleaning, outliers, quality
from bloodcell.data.dataset import ImageSet
from bloodcell.errors import InputError

NAMES = ("one", "two", "three")


def make(images, labels=None) -> Any:
    count = len(images)
    labels = np.arange(count) % 3 if labels is None else np.asarray(labels)
    return ImageSet(np.ascontiguousarray(images), labels.astype(np.int64), np.arange(count, dtype=np.int64), NAMES,
                    "made here", tuple(f"cell {index}.png" for index in range(count)))


@pytest.fixture(scope="module")
def real():
    return cells.cells(300)


def examined(images, rules, **given) -> audit.Audit:
    given.setdefault("features", np.zeros((len(images), 0), np.float32))
    return audit.examine(images, rules_text=rules, **given)


def with_copies(real, count=24):
    """Real cells with `count` equal noise images at positions 100, 102, 104, ..."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    images = real[:200].copy()
    images[100:100 + 2 * count:2] = noise
    return make(images), list(range(100, 100 + 2 * count, 2))


def test_repeated_pictures_are_removed_with_their_reason_and_nothing_else_is(real):
    images, places = with_copies(real)
    found = examined(images, "repeats(copies=20)")
    assert [each.index for each in found.removed] == places
    assert {each.reason for each in found.removed} == {"one of 24 identical images, under 3 labels"}
    assert {each.score for each in found.removed} == {24.0}
    np.testing.assert_array_equal(found.kept, np.setdiff1d(np.arange(200), places))
    assert found.duplicates == found.near_duplicates == found.conflicts == ()


def test_what_the_user_asks_to_keep_is_kept_and_said_so(real):
    images, places = with_copies(real)
    found = examined(images, "repeats", keep=[places[0], places[5], 7])
    assert found.asked_to_keep == (places[0], places[5])
    assert set(found.kept) >= {places[0], places[5], 7}
    assert len(found.removed) == 22


def test_a_set_made_of_copies_is_not_emptied(real):
    images = make(np.repeat(real[:8], 20, axis=0))
    found = examined(images, "repeats")
    assert found.removed == ()
    assert "nothing removed" in found.rules[0].note


def test_duplicates_and_conflicts_are_reported_as_pairs_and_kept(real):
    images = real[:120].copy()
    images[30], images[50], images[90] = images[10], images[11], images[50]
    images[70] = np.roll(images[20], 2, axis=1)
    labels = np.zeros(120, np.int64)
    labels[[1, 2]] = 1, 2
    labels[30] = 1
    labels[70] = 2
    found = examined(make(images, labels), "")
    assert [(pair.first, pair.second) for pair in found.duplicates] == [(10, 30), (11, 50), (11, 90)]
    assert [(pair.first, pair.second) for pair in found.near_duplicates] == [(20, 70)]
    assert {(pair.first, pair.second) for pair in found.conflicts} == {(10, 30), (20, 70)}
    assert len(found.kept) == 120
    content = json.loads(found.to_json())
    assert content["images"] == content["kept"] == 120
    assert content["duplicates"] == [[10, 30], [11, 50], [11, 90]]
    assert sorted(content["conflicts"]) == [[10, 30], [20, 70]]


def test_rules_about_copies_remove_them_when_told(real):
    images = real[:60].copy()
    images[30], images[40] = images[10], images[11]
    labels = np.arange(60) % 3  # 10 and 30 differ: 1 and 0; 11 and 40 differ: 2 and 1
    found = examined(make(images, labels), "duplicates(remove=True)")
    assert [each.index for each in found.removed] == [30, 40]
    assert len(found.duplicates) == 2
    both = examined(make(images, labels), "conflicts(remove=True) | duplicates(remove=True)")
    assert [(each.index, each.rule) for each in both.removed] == [(index, "conflicts") for index in (10, 11, 30, 40)]


def test_the_first_rule_that_names_an_image_gives_the_reason_and_later_rules_do_not_see_it(real):
    images, places = with_copies(real)
    found = examined(images, "repeats | background(remove=True) | exposure(remove=True)")
    assert {each.rule for each in found.removed if each.index in places} == {"repeats"}


def test_images_like_a_given_example_are_removed_by_cosine():
    angles = np.radians([0, 10, 36, 37.5, 90, 180])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    images = make(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8))
    found = examined(images, "examples(similarity=0.8)", features=features, examples=features[:1], example_names=["0"])
    assert [each.index for each in found.removed] == [0, 1, 2]  # cos(36.9 degrees) is 0.8
    assert found.removed[2].score == pytest.approx(np.cos(np.radians(36)), abs=1e-6)


def test_centroid_distances_are_in_standard_deviations_of_the_class():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(0, 1, (60, 5)), np.arange(60) % 2
    features[labels == 1] += 20
    features[7] += 9
    measured = outliers.centroid_deviations(features, labels)
    for label in (0, 1):
        rows = features[labels == label]
        distance = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1))
        np.testing.assert_allclose(measured[labels == label], (distance - distance.mean()) / distance.std(), rtol=1e-9)
    assert measured.argmax() == 7


def test_an_outlier_is_far_within_the_components_or_away_from_them():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    features = rng.normal(size=(400, 4)) * [8, 6, 5, 4] @ basis[:4] + 0.1 * rng.normal(size=(400, 20))
    features[5] += 60 * basis[1]  # along a component
    features[9] += 6 * basis[10]  # away from all of them
    inside, outside = outliers.mahalanobis(features, np.zeros(400, np.int64), 4)
    assert inside.argmax() == 5
    assert outside.argmax() == 9
    assert inside[5] > 10
    assert outside[9] > 10
    # the robust covariance, computed apart in the generating coordinates, gives the same order of the bulk
    scores = features @ basis[:4].T
    distance = np.sqrt(MinCovDet(support_fraction=0.75, random_state=0).fit(scores).mahalanobis(scores))
    bulk = np.setdiff1d(np.arange(400), [5, 9])
    assert np.corrcoef(inside[bulk], distance[bulk])[0, 1] > 0.99


def test_blur_exposure_and_background_name_the_images_that_were_made_so(real):
    images = real[:200].copy()
    images[17] = scipy.ndimage.gaussian_filter(images[17], (4, 4, 0))
    images[40] = images[40] // 8
    images[41] = 255 - (255 - images[41].astype(int)) // 20
    images[60] = images[60].mean(axis=-1, keepdims=True).astype(np.uint8)
    images[80] = np.clip(images[80] * [0.4, 1.0, 0.6], 0, 255)
    found = examined(make(images), "blur(k=5) | exposure | background(share=0.02)")
    named: dict[str, set[int]] = {}
    for each in found.suspects:
        named.setdefault(each.rule, set()).add(each.index)
    assert 17 in named["blur"]
    assert named["exposure"] == {40, 41}
    assert {60, 80} <= named["background"]
    for rule, (made, allowed) in {"blur": ({17}, 4), "background": ({40, 41, 60, 80}, 4)}.items():
        assert len(named[rule] - made) <= allowed, (rule, named[rule])
    assert len(found.kept) == 200


def test_sharpness_is_the_variance_of_scipys_laplacian(real):
    labels = np.zeros(50, np.int64)
    luma = real[:50].astype(np.float64) @ [0.299, 0.587, 0.114]
    edges = np.asarray([np.log(scipy.ndimage.laplace(each, mode="nearest").var() + 1e-3) for each in luma])
    spread = 1.4826 * np.median(np.abs(edges - np.median(edges)))
    measured = quality.blur_deviations(real[:50], np.arange(50), labels)
    np.testing.assert_allclose(measured, (np.median(edges) - edges) / spread, atol=1e-3)


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'repeats'"):
        audit.parse("repeat(copies=3)")
    with pytest.raises(InputError, match="copies"):
        audit.parse("repeats(copies=1)")
    with pytest.raises(InputError, match="'@p'"):
        audit.parse("blur@0.5")


def test_equal_sets_have_equal_audits(real):
    images, _ = with_copies(real)
    first, second = (json.loads(examined(images, "").to_json()) for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


@pytest.mark.parametrize(("text", "wanted"), [("", []), ("5", [5]), (" 3, 1-2 ,2", [1, 2, 3]), ("6-9", [6, 7, 8, 9])])
def test_positions_are_numbers_and_ranges(text, wanted):
    assert audit.positions(text, 10, "--audit_keep").tolist() == wanted


@pytest.mark.parametrize("text", ["10", "3-2", "a", "1;2", "-1", "1-", "999999999999999"])
def test_positions_that_there_are_not_are_an_error(text):
    with pytest.raises(InputError, match=re.escape("--audit_keep expected positions 0..9")):
        audit.positions(text, 10, "--audit_keep")


def test_an_audit_and_its_index_file_leave_out_the_same_images(real, tmp_path):
    images, places = with_copies(real)
    found = examined(images, "repeats")
    (tmp_path / "audit.json").write_text(found.to_json())
    (tmp_path / "kept.txt").write_text(cleaning.to_index(found, images))
    direct = audit.by_audit(images, found)
    for file in ("audit.json", "kept.txt"):
        cleaned = audit.by_file(images, tmp_path / file)
        np.testing.assert_array_equal(cleaned.images, direct.images)
        np.testing.assert_array_equal(cleaned.ids, found.kept)
        assert [name for name, _ in cleaned.cleaned] == [f"cell {index}.png" for index in places]
    assert cleaning.summary(direct.cleaned) == "24 repeats"
    assert audit.by_file(images, tmp_path / "audit.json").cleaned == direct.cleaned


def test_an_audit_of_other_data_or_a_damaged_one_is_refused_in_one_line(real, tmp_path):
    images, _ = with_copies(real)
    found = examined(images, "repeats")
    text, index = found.to_json(), cleaning.to_index(found, images)
    other = make(images.images, np.zeros(200, np.int64))
    cases = {"labels.json": (text, other), "cut.json": (text[:300], images), "empty.txt": ("", images),
             "beyond.txt": (index + "200\n", images), "twice.txt": (index + "1\n1\n", images),
             "words.txt": (index + "x\n", images), "list.json": ("{\"removed\": 3}", images),
             "deep.json": ("{" * 3 + "[" * 100_000, images)}
    for name, (content, data) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match="--clean expected") as error:
            audit.by_file(data, tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--clean expected"):
        audit.by_file(images, tmp_path / "missing.json")
