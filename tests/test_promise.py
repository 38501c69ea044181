import math
from fractions import Fraction

import pytest

from privimage.promise import epsilon_sentence, rounded_up


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        (3.50674, "3.5068"),  # To the nearest it would be 3.5067.
        (0.1, "0.1001"),  # This float lies above the number that it is written as.
        (3.5, "3.5000"),
        (0.0, "0.0000"),
        (1e-9, "0.0001"),
        (9.99996, "10.0000"),
        (math.inf, "inf"),
    ],
)
def test_what_is_shown_is_never_below_the_bound(bound, shown):
    assert rounded_up(bound) == shown
    if math.isfinite(bound):
        assert Fraction(shown) >= Fraction(bound)


def test_decimals_are_as_many_as_are_asked_for():
    assert rounded_up(3.501, decimals=2) == "3.51"


@pytest.mark.parametrize(
    ("epsilon", "shown", "times"),
    [
        (1.0, "1.00", "2.72"),
        (9.9961, "10.00", "22,100"),
        (10.0, "10.00", "22,100"),
        (15.0, "15.00", "3,270,000"),
        (0.0001, "0.01", "1.02"),
        (2.001, "2.01", "7.47"),
        (1000.0, "1000.00", "1.98e+434"),
    ],
)
def test_epsilon_is_said_rounded_up(epsilon, shown, times):
    sentence = epsilon_sentence(epsilon, 1e-5, "image")
    assert f"ε = {shown} at δ = 1e-05" in sentence
    assert f"at most {times} times as likely" in sentence
    assert float(shown) >= epsilon
    if epsilon < 700:
        assert float(times.replace(",", "")) >= math.exp(epsilon)


def test_delta_is_said_in_full():
    delta = 1.00000049e-5  # In six digits it would be 1e-5.
    assert epsilon_sentence(1.0, delta, "image").count("1.00000049e-05") == 2


def test_no_promise_is_said_to_be_none():
    sentence = epsilon_sentence(None, 1e-5, "image")
    assert sentence.startswith("NOT PRIVATE")
    assert "ε =" not in sentence


def test_the_sentence_says_whose_images_come_and_go():
    assert "any one sensitive image added" in epsilon_sentence(1.0, 1e-5, "image")
    assert "all images of any one person added" in epsilon_sentence(1.0, 1e-5, "person")
