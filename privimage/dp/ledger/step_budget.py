"""The integer gate in front of every fine-tuning step."""

from collections.abc import Callable

from privimage.errors import UserError, check_count


class StepBudget:
    """Counts down the steps that may still be reserved; the count is exact and in integers."""

    def __init__(
        self, left: int, first_step: int, spend: Callable[["StepBudget", int, int], None]
    ) -> None:
        """`spend(self, first_step, steps)` makes a reservation of at most `left` steps durable."""
        self.left = left
        self._next = first_step
        self._spend = spend

    def reserve(self, steps: int) -> None:
        """Reserves the next `steps`; returns when the record is durable, before noise is drawn.

        Formal guarantee: what this let through is in the ledger, whatever fails from then on
        (tests/privacy/test_ledger_storage.py), and it never lets more through than it was given
        (tests/privacy/test_ledger_property.py).

        Raises:
            UserError: more than what is left, a budget that is no longer in force, or a disk that
                refuses the record.
        """
        check_count("steps", steps)
        if steps > self.left:
            raise UserError(f"the privacy budget pays for {self.left} more steps, not {steps}")
        first = self._next
        # Before it is on disk: whoever is interrupted right after that has spent it.
        self.left -= steps
        self._next += steps
        self._spend(self, first, steps)
