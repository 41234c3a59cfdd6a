"""Features of unit length, by a backbone or by pixels, that say how alike images are."""

import cells
import numpy as np
import pytest
import tensorflow as tf

from bloodcell.errors import InputError
from bloodcell.models import features, lite0


@pytest.fixture(scope="module")
def images():
    return cells.cells(40)


def test_pixels_are_the_centred_shrunk_image_at_unit_length(images):
    found = features.Extractor("pixels")(images, np.arange(40))
    small = images.reshape(40, 12, 8, 12, 8, 3).mean(axis=(2, 4)).reshape(40, -1)
    small -= small.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, small / np.linalg.norm(small, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.skipif(lite0.weights_file() is None, reason="the ImageNet weights of EfficientNet-Lite0 are not installed")
def test_a_backbone_tells_a_changed_copy_from_another_cell(images):
    assert features.resolve("auto") == "efficientnet_lite0"
    look = features.Extractor("efficientnet_lite0")
    found = look(images, np.arange(40))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(look(images, np.asarray([7, 3])), found[[7, 3]], atol=1e-4)
    lossy = np.stack([tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=95)).numpy() for image in images])
    alike = look(lossy, np.arange(40)) @ found.T
    assert (alike.argmax(axis=1) == np.arange(40)).all()
    assert np.diag(alike).min() > 0.9
    large = tf.image.resize(images, (192, 192), antialias=True).numpy().astype(np.uint8)
    assert np.diag(look(large, np.arange(40)) @ found.T).min() > 0.9


def test_auto_is_pixels_where_no_weights_are_installed(monkeypatch):
    monkeypatch.setattr(lite0, "weights_file", lambda: None)
    assert features.resolve("auto") == "pixels"


def test_an_unknown_name_is_an_error():
    with pytest.raises(InputError, match="did you mean 'efficientnet_lite0'"):
        features.validate("efficientnet_lite")
