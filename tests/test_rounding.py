import math
from fractions import Fraction

import pytest

from privimage.rounding import rounded_up


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
