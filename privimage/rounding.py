"""Bounds as people read them: rounded to the side on which they hold."""

import math
from decimal import ROUND_CEILING, Decimal


def rounded_up(bound: float, decimals: int = 4) -> str:
    """An upper bound in so many decimals, never below it; "inf" where there is none."""
    if math.isinf(bound):
        return "inf"
    return str(Decimal(bound).quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING))
