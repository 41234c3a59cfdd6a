"""What a space's names mean in a Config, and which searches are refused before anything is built."""

import dataclasses

import pytest

from bloodcell import config
from bloodcell.errors import InputError
from bloodcell.search import places, space

BASE = ("--data=demo", "--model=cnn", "--weights=none", "--image_size=32",
        "--augment=flip | randaugment(2, 9) | oneof(cutout(0.5), gridmask)@0.5",
        "--stages=head(epochs=1, lr=1e-3) | all(2, 1e-4, batch_size=16)")


def settings(*arguments: str) -> config.Config:
    parsed = config.parse(["main.py", *BASE, *arguments])
    assert parsed is not None
    return parsed


def search(searched: str, *arguments: str) -> config.Config:
    return settings("--mode=search", f"--search_space={searched}", *arguments)


@pytest.mark.parametrize(("point", "expected"), [
    ({"batch_size": 32}, {"batch_size": 32}),
    ({"optimizer": "lion"}, {"optimizer": "lion"}),
    ({"augment.m": 4}, {"augment": "flip | randaugment(2, 4) | oneof(cutout(0.5), gridmask)@0.5"}),
    ({"augment.std": 1.5}, {"augment": "flip | randaugment(2, 9, std=1.5) | oneof(cutout(0.5), gridmask)@0.5"}),
    ({"augment.randaugment.n": 3}, {"augment": "flip | randaugment(3, 9) | oneof(cutout(0.5), gridmask)@0.5"}),
    ({"augment.cutout.size": 0.25}, {"augment": "flip | randaugment(2, 9) | oneof(cutout(0.25), gridmask)@0.5"}),
    ({"augment.oneof.p": 0.25}, {"augment": "flip | randaugment(2, 9) | oneof(cutout(0.5), gridmask)@0.25"}),
    ({"augment.gridmask.p": 0.5}, {"augment": "flip | randaugment(2, 9) | oneof(cutout(0.5), gridmask@0.5)@0.5"}),
    ({"lr": 0.01}, {"stages": "head(epochs=1, lr=0.01) | all(2, 0.001, batch_size=16)"}),
    ({"stages.all.lr": 0.01}, {"stages": "head(epochs=1, lr=0.001) | all(2, 0.01, batch_size=16)"}),
    ({"stages.all.lr_decay": 0.5},
     {"stages": "head(epochs=1, lr=0.001) | all(2, 0.0001, batch_size=16, lr_decay=0.5)"}),
    ({"stages.batch_size": 64}, None),
    ({"optimizer.weight_decay": 0.01}, {"optimizer": "adamw(weight_decay=0.01)"}),
    ({"optimizer": "lion", "optimizer.weight_decay": 0.01}, {"optimizer": "lion(weight_decay=0.01)"}),
    ({"schedule.warmup": 0.1}, {"schedule": "cosine(warmup=0.1)"}),
    ({"loss.smoothing": 0.2}, {"loss": "cross_entropy(smoothing=0.2)"}),
    ({"schedule": "step", "schedule.at": (0.5, 0.9)}, {"schedule": "step(at=(0.5, 0.9))"}),
])
def test_a_value_goes_where_its_name_says_and_nowhere_else(point, expected):
    base = settings()
    if expected is None:
        with pytest.raises(InputError, match=r"stages.head.batch_size, stages.all.batch_size"):
            places.apply(base, point)
        return
    assert places.apply(base, point) == dataclasses.replace(base, **expected)


def test_the_nth_of_several_ops_is_named_by_its_number():
    base = settings("--augment=noise(8) | oneof(blur(1.0), noise(4)) | noise(2)")
    made = places.apply(base, {"augment.noise.2.p": 0.5, "augment.noise.3.p": 0.25})
    assert made.augment == "noise(8) | oneof(blur(1.0), noise(4)@0.5) | noise(2)@0.25"
    with pytest.raises(InputError, match=r"augment.noise.1.p, augment.noise.2.p, augment.noise.3.p"):
        places.apply(base, {"augment.noise.p": 0.5})


@pytest.mark.parametrize(("searched", "said"), [
    ("bacth_size=choice(32, 64)", "did you mean 'batch_size'?"),
    ("weight_decay=log(1e-5, 1e-2)", "did you mean 'optimizer.weight_decay'?"),
    ("augment.q=int(1, 2)", "expected a parameter of --augment="),
    ("augment.randaugmnt.m=int(1, 2)", "did you mean 'augment.randaugment.m'?"),
    ("batch_size.x=int(1, 2)", "try batch_size itself"),
    ("workdir=choice('a', 'b')", "expected a flag that decides what is learned"),
    ("val_augment.m=int(1, 2)", "expected a flag that decides what is learned"),
    ("batch_size=uniform(31.5, 64.0)", "expected a whole number 1..65536"),
    ("augment.m=int(2, 19)", "augment.m=19"),
    ("lr=log(1e-5, 100)", "lr=100"),
    ("lr=choice('a', 'b')", "expected a number"),
    ("model=choice('cnn', 'cmn')", "cmn"),
    ("augment.flip.p=uniform(0.5, 1.5)", "probability 0..1"),
    ("stages=choice('all(epochs=1, lr=1e-3)', 'all(epochs=0, lr=1e-3)')", "epochs"),
    ("augment=choice('flip', 'randaugment(2, 9)'), augment.m=int(1, 3)", "augment.m"),
    ("lr=log(1e-5, 1e-2), image_size=choice(8)", "image_size"),
    ("a.b.c.d=int(1, 2)", "unknown flag 'a.b.c.d'"),
    ("augment.a.b.c=int(1, 2)", "FLAG.OP.N.PARAM"),
])
def test_an_impossible_space_is_refused_in_one_line_before_anything_is_built(searched, said):
    with pytest.raises(InputError) as caught:
        config.validate(search(searched))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flags", "said"), [
    (("--search=tpe(trials=0)",), "trials"),
    (("--search=bayes",), "--search: unknown name 'bayes'"),
    (("--search=",), "--search expected one of"),
    (("--search=grid(trials=3)",), "no parameter 'trials'"),
    (("--search_pruning=mean",), "did you mean 'median'?"),
    (("--search=tpe(folds=3)", "--split=fractions(0.8, 0.2)"), "folds=3 expected to divide --data itself"),
    (("--search_workers=0",), "1..256"),
    (("--search_space=",), "received nothing"),
])
def test_methods_that_cannot_be_are_refused_in_one_line(flags, said):
    with pytest.raises(InputError) as caught:
        config.validate(search("lr=log(1e-4, 1e-2)", *flags))
    assert said in str(caught.value)


def test_an_error_that_is_not_the_spaces_is_not_put_down_to_it():
    with pytest.raises(InputError) as caught:
        config.validate(search("lr=log(1e-4, 1e-2)", "--weights=nowhere.h5"))
    assert "lr" not in str(caught.value).partition("--weights")[0]


def test_without_optuna_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'bloodcell\[search\]'"):
        config.validate(search("lr=log(1e-4, 1e-2)"))


def test_corners_are_all_of_them_or_each_end_of_each_range():
    few = space.parse("a=int(1, 3), b=choice(1, 2, 3)").corners()
    assert few == [{"a": a, "b": b} for a in (1, 3) for b in (1, 2, 3)]
    many = space.parse(", ".join(f"n{i}=int(0, 9)" for i in range(9))).corners()
    assert len(many) == 11
    assert {name for point in many for name, value in point.items() if value == 9} == {f"n{i}" for i in range(9)}
