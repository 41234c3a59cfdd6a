"""The U-Net is the one described: its blocks, its skips, and any side of image."""

import keras
import pytest

from bloodcell.models import unet


def build(side: int) -> keras.Model:
    with keras.StatelessScope(initialize_variables=False):
        return unet.backbone(side)


@pytest.mark.parametrize("side", [16, 17, 31, 95, 96, 101, 224])
def test_every_side_comes_back_whole(side: int) -> None:
    assert build(side).output.shape == (None, side, side, 64)


def test_eight_blocks_around_a_bottleneck_of_1024() -> None:
    layers = build(96).layers
    plain = [layer for layer in layers if type(layer) is keras.layers.Conv2D]
    assert all(layer.kernel_size == (3, 3) for layer in plain)
    assert [layer.filters for layer in plain] == [
        filters for filters in (64, 128, 256, 512, 1024, 512, 256, 128, 64) for _ in range(2)]
    up = [layer for layer in layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    assert [(layer.filters, layer.output.shape[1]) for layer in up] == [(512, 12), (256, 24), (128, 48), (64, 96)]
    joined = [layer.output.shape[1:] for layer in layers if isinstance(layer, keras.layers.Concatenate)]
    assert joined == [(12, 12, 1024), (24, 24, 512), (48, 48, 256), (96, 96, 128)]


def test_skips_join_what_comes_up_with_what_went_down() -> None:
    model = build(17)
    for level, side in enumerate((17, 9, 5, 3)):
        skip, up = model.get_layer(f"up{level}_concat").input
        assert skip is model.get_layer(f"down{level}_b_relu").output
        assert up.shape == skip.shape == (None, side, side, 64 * 2 ** level)
