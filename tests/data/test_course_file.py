"""The course's file, rebuilt: every contaminant is found, no cell is called one, and its copies are reported."""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bloodcell.data import audit, similarity
from bloodcell.data.dataset import CELL_NAMES, ImageSet

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

pytestmark = pytest.mark.skipif(not (SHARED / "pbc96").is_dir(), reason="the real cells (../shared/data) are not here")


def cells(part: str) -> tuple[np.ndarray, np.ndarray]:
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string),
                "image/class/label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        return tf.io.decode_jpeg(example["image/encoded"], channels=3), example["image/class/label"]

    files = sorted(str(path) for path in (SHARED / "pbc96").glob(f"{part}-*.tfrecord"))
    found = tf.data.TFRecordDataset(files).map(parse, num_parallel_calls=2).batch(1024).as_numpy_iterator()
    images, labels = zip(*found, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def contaminant(name: str) -> np.ndarray:
    return np.asarray(Image.open(SHARED / "contaminants" / f"{name}.png").convert("RGB"))


def image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    count = len(images)
    return ImageSet(images, labels, np.arange(count, dtype=np.int64), CELL_NAMES, "course",
                    tuple(map(str, range(count))))


def test_all_1800_contaminants_are_found_no_cell_is_called_one_and_the_copies_are_reported():
    images, labels = cells("train")
    images = np.concatenate([images, np.repeat(contaminant("cartoon")[None], 1600, 0),
                             np.repeat(contaminant("portrait")[None], 200, 0)])
    labels = np.concatenate([labels, np.tile(np.arange(8), 200), np.full(200, 5)])
    found = audit.examine(image_set(images, labels), features=np.zeros((len(images), 0), np.float32),
                          rules_text="repeats | duplicates | near_duplicates | conflicts")
    content = json.loads(found.to_json())
    assert content["images"] == 13_759
    assert content["kept"] == 11_959
    assert [each["index"] for each in content["removed"]] == list(range(11_959, 13_759))
    assert len(content["duplicates"]) == 17
    assert len(content["conflicts"]) == 1
    for first, second in content["duplicates"]:
        np.testing.assert_array_equal(images[first], images[second])
    first, second = content["conflicts"][0]
    np.testing.assert_array_equal(images[first], images[second])
    assert labels[first] != labels[second]
    assert len(content["near_duplicates"]) <= 5  # three, looked at: cells that were photographed twice


def variant(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy that is shifted by up to 3 pixels, recoloured, and encoded at a quality of 40 to 95."""
    down, right = rng.integers(0, 7, 2)
    moved = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")[down:down + 96, right:right + 96]
    hsv = np.asarray(Image.fromarray(moved).convert("HSV")).astype(np.int64)
    hsv[..., 0] = (hsv[..., 0] + rng.integers(-20, 21)) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.6, 1.4), 0, 255)
    coloured = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")) * rng.uniform(0.75, 1.15)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(coloured, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=int(rng.integers(40, 96)))
    return np.asarray(Image.open(buffer))


def test_contaminants_that_were_each_shifted_recoloured_and_encoded_anew_are_all_found():
    images, labels = cells("val")
    rng = np.random.default_rng(0)
    copies = np.stack([variant(contaminant(name), rng) for name in ("cartoon", "portrait") for _ in range(150)])
    assert len(np.unique(copies.reshape(300, -1), axis=0)) == 300
    order = rng.permutation(len(images) + 300)
    every = np.concatenate([images, copies])[order]
    found = similarity.find(image_set(every, np.concatenate([labels, np.zeros(300, np.int64)])[order]))
    assert len(found.repeated) == 2
    for same, low in zip(found.repeated, (0, 150), strict=True):
        at = order[same] - len(images)
        assert len(same) == 150
        assert ((at // 150 == at[0] // 150) & (at >= 0)).all(), low
