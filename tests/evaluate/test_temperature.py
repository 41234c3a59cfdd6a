"""The temperature is the one of the least negative log-likelihood, and stays with the weights it was fitted for."""

import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from bloodcell.errors import InputError
from bloodcell.evaluate import temperature
from bloodcell.evaluate.temperature import Choice, Fitted

FITTED = Fitted(1.25, 0.5, 0.4, 100, "val.npz", "flip", "", "a" * 64)


def drawn(scale: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right as often as they say once divided by `scale`, and labels drawn by them."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(count, 4)) * 2
    labels = np.array([rng.choice(4, p=p) for p in scipy.special.softmax(true, axis=1)])
    return true * scale, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_it_finds_how_much_too_large_logits_are(scale):
    logits, labels = drawn(scale)
    found, before, after = temperature.fit(logits[None], labels)
    assert found == pytest.approx(scale, rel=0.06)
    assert after <= before + 1e-12
    one = scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    assert before == pytest.approx(-one.mean())


def test_it_is_the_minimum_that_another_search_finds():
    logits, labels = drawn(2.2, 500)

    def loss(value: np.ndarray) -> float:
        return -scipy.special.log_softmax(logits / value[0], axis=1)[np.arange(len(labels)), labels].mean()

    found, _, after = temperature.fit(logits[None], labels)
    other = scipy.optimize.minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert found == pytest.approx(other.x[0], rel=1e-4)
    assert after == pytest.approx(other.fun, abs=1e-9)


def test_of_several_views_the_mean_of_probabilities_counts():
    rng = np.random.default_rng(1)
    logits, labels = drawn(2.0, 300)
    views = np.stack([logits, logits + rng.normal(size=logits.shape), logits - rng.normal(size=logits.shape)])
    found, _, after = temperature.fit(views, labels)
    for other in (0.97 * found, 1.03 * found):
        mean = scipy.special.softmax(views / other, axis=2).mean(axis=0)
        assert -np.log(mean[np.arange(300), labels]).mean() > after


def test_logits_that_are_never_wrong_stay_within_bounds():
    labels = np.arange(40) % 4
    found, _, _ = temperature.fit(10 * np.eye(4)[labels][None], labels)
    assert temperature.LOW <= found <= temperature.HIGH


@pytest.mark.parametrize(("text", "choice"), [
    ("auto", Choice()), ("none", Choice(value=1.0)), ("2", Choice(value=2.0)), ("0.5", Choice(value=0.5)),
    ("fit", Choice(fit=True)), ("fit(augment='flip | rotate(30)')", Choice(fit=True, augment="flip | rotate(30)"))])
def test_the_flag_is_read(text, choice):
    assert temperature.parse(text) == choice


@pytest.mark.parametrize("text", ["", "0", "21", "nan", "inf", "fits", "fit(2)", "none(1)", "fit@0.5", "auto | none"])
def test_any_other_flag_is_one_line(text):
    with pytest.raises(InputError, match="--temperature") as caught:
        temperature.parse(text)
    assert "\n" not in str(caught.value)


def test_a_run_keeps_one_for_each_of_its_weights(tmp_path):
    other = Fitted(**{**vars(FITTED), "temperature": 0.1 + 0.2, "weights_sha256": "b" * 64})
    temperature.save(tmp_path, "best", FITTED)
    temperature.save(tmp_path, "average", other)
    assert temperature.load(tmp_path, "best", "a" * 64) == FITTED
    assert temperature.load(tmp_path, "average", "b" * 64) == other  # to the bit
    assert temperature.load(tmp_path, "last", "a" * 64) is None


def test_other_weights_have_none(tmp_path):
    temperature.save(tmp_path, "best", FITTED)
    assert temperature.load(tmp_path, "best", "c" * 64) is None
    assert temperature.load(tmp_path / "nothing", "best", "a" * 64) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"best": 3}', '{"best": {"temperature": 2}}',
                                     json.dumps({"best": {**vars(FITTED), "temperature": "x"}}),
                                     json.dumps({"best": {**vars(FITTED), "temperature": -1}})])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / temperature.FILE).write_text(content)
    with pytest.raises(InputError, match="damaged"):
        temperature.load(tmp_path, "best", "a" * 64)
