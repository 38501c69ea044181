"""ε as people read it: rounded up, to the side on which it holds, and as a sentence."""

import math
from decimal import ROUND_CEILING, Context, Decimal

# With more digits than this one nobody reads a number.
_LONG = 1e12
_THREE_DIGITS = Context(prec=3, rounding=ROUND_CEILING)


def rounded_up(bound: float, decimals: int = 4) -> str:
    """An upper bound in so many decimals, never below it; "inf" where there is none."""
    if math.isinf(bound):
        return "inf"
    return str(Decimal(bound).quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING))


def epsilon_sentence(epsilon: float | None, delta: float, unit: str) -> str:
    """What ε promises for a `unit` ("image" or "person"), in a sentence; None for no promise.

    Its numbers are rounded up.
    """
    if epsilon is None:
        return "NOT PRIVATE: nothing is promised to anybody in the images."
    upper = rounded_up(epsilon, decimals=2)
    whose = "all images of any one person" if unit == "person" else "any one sensitive image"
    factor = _THREE_DIGITS.plus(Decimal(upper).exp())
    times = f"{factor:,.0f}" if 1000 <= factor < _LONG else f"{factor:.3g}"
    return (
        f"ε = {upper} at δ = {delta}: with {whose} added or removed, "
        f"any outcome is at most {times} times as likely, "
        f"but for a probability of {delta}."
    )
