"""The one exception that a user sees, and validators that name argument and value."""

import difflib
import math
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that its reader can mend.

    The text is one line: what is wrong, where, and what to do. The command line prints it and
    exits with status 2; nothing was written and no privacy budget was spent for it.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped `word`: the closest of `choices`, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}"


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise UserError(f"{name}: '{value}' is not known; {nearest(value, known)}")


def check_positive(name: str, value: float) -> None:
    """Raises UserError unless `value` is finite and above 0."""
    if not (_is_finite(value) and value > 0):
        raise UserError(f"{name} must be a finite number above 0, got {value}")


def check_non_negative(name: str, value: float) -> None:
    """Raises UserError unless `value` is finite and at least 0."""
    if not (_is_finite(value) and value >= 0):
        raise UserError(f"{name} must be a finite number of at least 0, got {value}")


def check_between(name: str, value: float, least: float, most: float) -> None:
    """Raises UserError unless `least` <= `value` <= `most`."""
    if not (_is_finite(value) and least <= value <= most):
        raise UserError(f"{name} must lie in [{least:g}, {most:g}], got {value}")


def check_count(name: str, value: int) -> None:
    """Raises UserError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        hint = "; int() or round() makes one of it" if isinstance(value, float) else ""
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}{hint}")


def check_probability(name: str, value: float) -> None:
    """Raises UserError unless 0 < `value` <= 1."""
    if not (_is_finite(value) and 0 < value <= 1):
        raise UserError(f"{name} must lie in (0, 1], got {value}")


def _is_finite(value: object) -> bool:
    """Whether it is a number at all, and neither infinite nor NaN."""
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except TypeError:
        return False
