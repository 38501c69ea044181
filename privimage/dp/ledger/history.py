"""What the lines of a ledger say, for whoever only reads them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from privimage.dp.accounting import accountant
from privimage.dp.accounting.mechanisms import Epsilon, Mechanism
from privimage.dp.ledger import chain
from privimage.dp.ledger.chain import Entry
from privimage.dp.ledger.records import (
    Completion,
    Content,
    Genesis,
    NotPrivate,
    OutsideEpsilon,
    Plan,
    Reservation,
    Selftest,
)
from privimage.errors import UserError

Kind = TypeVar("Kind", bound=Content)


class History:
    """A ledger's entries, in order, and what follows from them."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.path = path
        self._entries = list(entries)

    @classmethod
    def read(cls, path: Path | str) -> "History":
        """The history in the file at `path`, which is neither locked nor mended.

        Raises:
            UserError: it is missing, damaged or of another version.
        """
        return History(Path(path), chain.read(Path(path)))

    @property
    def entries(self) -> Sequence[Entry]:
        """All lines; every other answer is computed from here."""
        return self._entries

    @property
    def unit(self) -> str:
        """Whom ε protects: "image" or "person"."""
        return self._all(Genesis)[0].unit

    def check_unit(self, unit: str) -> None:
        """Raises UserError unless `unit` is whom this ledger protects."""
        if unit != self.unit:
            raise UserError(
                f"{self.path}: unit: this ledger is by {self.unit}, so nothing can be spent by "
                f"{unit}; begin a new run with --out"
            )

    @property
    def adjacency(self) -> str:
        """Which data sets ε calls neighbours."""
        return self._all(Genesis)[0].adjacency

    @property
    def head(self) -> str:
        """The hash of the last line: a checkpoint keeps it to prove how old it is."""
        return self.entries[-1].hash

    def knows(self, head: object) -> bool:
        """Whether `head` is the hash of one of the lines: else this ledger is not its ledger."""
        return any(entry.hash == head for entry in self.entries)

    @property
    def plan(self) -> Plan | None:
        """The plan in force: the last one recorded."""
        return next(reversed(self._all(Plan)), None)

    def plan_in_force(self) -> Plan:
        """The plan in force.

        Raises:
            UserError: there is none.
        """
        if self.plan is None:
            raise UserError(
                f"{self.path}: no plan was recorded, so nothing was spent, nothing may "
                "be, and there is no ε"
            )
        return self.plan

    def paid(self, kind: type[Reservation]) -> Plan | None:
        """The plan under which the last reservation of this kind was made, or None."""
        plan = found = None
        for entry in self.entries:
            if isinstance(entry.content, Plan):
                plan = entry.content
            elif isinstance(entry.content, kind):
                found = plan
        return found

    def spent(self) -> list[Mechanism]:
        """Every mechanism ever reserved, used or not, in their order."""
        return [
            entry.content.mechanism
            for entry in self.entries
            if isinstance(entry.content, Reservation)
        ]

    def epsilon(self, delta: float) -> Epsilon:
        """ε of everything ever reserved."""
        return accountant.epsilon(self.spent(), delta)

    def replace_one_epsilon(self, delta: float) -> float:
        """ε of everything ever reserved if one unit is replaced by another.

        Infinite where nothing is promised or the accountant gives no bound.
        """
        try:
            return accountant.replace_one_epsilon(self.spent(), delta)
        except UserError:
            return math.inf

    def completed(self, purpose: str, artifact_sha256: str) -> bool:
        """Whether the file with this hash was released under this ledger."""
        return any(
            (release.purpose, release.artifact_sha256) == (purpose, artifact_sha256)
            for release in self._all(Completion)
        )

    @property
    def not_private_because(self) -> list[str]:
        """Why nothing is promised; empty if ε holds."""
        reasons = [mark.reason for mark in self._all(NotPrivate)]
        if self.plan is not None and not self.plan.is_private:
            reasons.append("ε is infinite, no noise was added")
        return list(dict.fromkeys(reasons))

    @property
    def outside_epsilon(self) -> list[str]:
        """What was computed on sensitive data without noise: declared, and outside ε."""
        return list(dict.fromkeys(event.what for event in self._all(OutsideEpsilon)))

    @property
    def selftests(self) -> list[Selftest]:
        """The self-tests of the machines that worked under this ledger, in their order."""
        return self._all(Selftest)

    def _all(self, kind: type[Kind]) -> list[Kind]:
        return [entry.content for entry in self.entries if isinstance(entry.content, kind)]
