"""The spec of the stages: what is read, what is printed, what is refused."""

import pytest

from bloodcell.config import Config
from bloodcell.errors import InputError
from bloodcell.train import stages
from bloodcell.train.stages import Rules, Stage


def test_stages_are_read_in_order():
    assert stages.parse("head(epochs=10, lr=1e-3) | top(percent=80, epochs=20, lr=1e-4) | all(2, 1e-5)") == (
        Stage("head", 10, 1e-3), Stage("top", 20, 1e-4, percent=80.0), Stage("all", 2, 1e-5))


def test_a_part_is_named_by_percent_number_or_first_layer():
    plan = stages.parse("top(80, 1, 1e-3) | top(layers=50, epochs=1, lr=1e-3) | from_layer(150, 1, 1e-3)")
    assert [stage.part for stage in plan] == ["top 80%", "top 50 layers", "from layer 150"]
    assert [stage.freezing() for stage in plan] == [
        {"scope": "top", "percent": 80.0, "layers": None, "first": None, "convs_only": False, "freeze_bn": False},
        {"scope": "top", "percent": 100.0, "layers": 50, "first": None, "convs_only": False, "freeze_bn": False},
        {"scope": "from_layer", "percent": 100.0, "layers": None, "first": 150, "convs_only": False,
         "freeze_bn": False}]


def test_a_stage_may_have_rules_of_its_own_and_says_so():
    plan = stages.parse("head(2, 1e-3, augment='flip | rotate(30, fill=\\'edge\\')', mix='', batch_size=16) | "
                        "all(1, 1e-4, optimizer='adam', schedule='constant', convs_only=True, freeze_bn=True, "
                        "lr_decay=0.8, accumulate=4)")
    assert str(plan[0]) == ("head, 2 epochs, lr 0.001, batches of 16, augment flip | rotate(30, fill='edge'), "
                            "mix nothing")
    assert str(plan[1]) == ("all, 1 epoch, lr 0.0001, convolutions only, batch norm frozen, lr_decay 0.8, in 4 parts, "
                            "optimizer adam, schedule constant")
    flags = Config(augment="gray", mix="cutmix", optimizer="adamw", schedule="cosine", batch_size=64)
    assert plan[0].rules(flags) == Rules("flip | rotate(30, fill='edge')", "", "adamw", "cosine", 16)
    assert plan[1].rules(flags) == Rules("gray", "cutmix", "adam", "constant", 64)


def test_a_loss_of_views_needs_a_policy_in_every_stage():
    plan = stages.parse("head(1, 1e-3) | all(1, 1e-3, augment='')")
    with pytest.raises(InputError, match=r"--loss=jsd expected a policy in every stage.*'all, 1 epoch"):
        stages.need_policies(plan, "flip")
    with pytest.raises(InputError, match="'head, 1 epoch"):
        stages.need_policies(plan, "")
    stages.need_policies(plan[:1], "flip")


@pytest.mark.parametrize(("text", "line"), [
    ("", "at least one stage"),
    ("heads(epochs=1, lr=1e-3)", "did you mean 'head'"),
    ("head(epochs=0, lr=1e-3)", "1..100000"),
    ("head(epochs=1)", "expected lr"),
    ("head(epochs=1, lr=1e-3, freeze_bn=True)", "no parameter 'freeze_bn'"),
    ("top(percent=120, epochs=1, lr=1e-3)", "0..100"),
    ("top(epochs=1, lr=1e-3)", "top expected percent=0..100 or layers=N, received neither"),
    ("top(percent=10, layers=3, epochs=1, lr=1e-3)", "received both"),
    ("from_layer(epochs=1, lr=1e-3)", "expected first"),
    ("all(epochs=1, lr=1e-3, lr_decay=1.5)", "0.01..1"),
    ("all(epochs=1, lr=1e-3, accumulate=0)", "1..1024"),
    ("all(epochs=1, lr=1e-3)@0.5", "@p"),
    ("all(epochs=1, lr=1e-3, augment='rotat(3)')", "stages: all: augment: unknown op 'rotat'"),
    ("all(epochs=1, lr=1e-3, augment=flip)", "received flip"),
    ("head(epochs=1, lr=1e-3, mix='mixup(0)')", "stages: head: mix: mixup(alpha) expected 0.01..32"),
    ("all(epochs=1, lr=1e-3, mix='flip')", "flip belongs in --augment"),
    ("all(epochs=1, lr=1e-3, augment='cutmix')", "cutmix belongs in --mix"),
    ("all(epochs=1, lr=1e-3, optimizer='adamm')", "stages: all: optimizer: unknown name 'adamm'"),
    ("all(epochs=1, lr=1e-3, optimizer='')", "stages: all: optimizer: expected one term"),
    ("all(epochs=1, lr=1e-3, schedule='cosine(warmup=2)')", "stages: all: schedule: cosine(warmup) expected 0..0.9"),
])
def test_a_bad_spec_is_one_line_naming_the_fix(text, line):
    with pytest.raises(InputError) as error:
        stages.parse(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
