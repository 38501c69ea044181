"""The privacy ledger: every touch of sensitive data is on disk here before it happens.

What is reserved is spent, whether or not it was used: a crash can make the ledger overstate ε,
never understate it.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from privimage import durable
from privimage.dp.accounting import accountant, calibration
from privimage.dp.accounting.mechanisms import Gaussian
from privimage.dp.ledger import chain
from privimage.dp.ledger.chain import Entry
from privimage.dp.ledger.history import History
from privimage.dp.ledger.log import LockedLog, is_open_here
from privimage.dp.ledger.records import (
    Completion,
    Content,
    Genesis,
    NotPrivate,
    OutsideEpsilon,
    Plan,
    QueryReservation,
    Selftest,
    StepReservation,
    adjacency,
)
from privimage.dp.ledger.step_budget import StepBudget
from privimage.errors import UserError


class Ledger(History):
    """The one writer of a run's ledger file, until it is closed; a context manager closes it.

    Formal guarantee: `spent()` covers every release that was ever made under this file, whatever
    crashed, failed or lost power in between (tests/privacy/test_ledger_storage.py,
    tests/privacy/test_ledger_kills.py, tests/privacy/test_ledger_property.py). After a write that
    failed the object refuses all further use; a new one reads what the disk holds.
    """

    def __init__(self, path: Path | str, unit: str = "image") -> None:
        """Opens or creates the file at `path` and locks it.

        Args:
            path: in a folder that exists.
            unit: whom the ledger protects, "image" or "person"; sampling, clipping and query must
                be by the same unit.

        Raises:
            UserError: another process or another `Ledger` of this one holds it, it can't be
                written, a line of it is damaged, or it is for another unit.
        """
        path, genesis = Path(path), Genesis(unit, adjacency(unit))
        try:
            self._log = LockedLog(path)
        except BlockingIOError as error:
            holder = "another process is working on this run; wait for it or stop it"
            if is_open_here(path):
                holder = "a Ledger of this process still has it open; close() that one first"
            raise UserError(f"{path}: {holder}") from error
        except OSError as error:
            raise durable.cannot_write(path, error) from error
        self._failure = ""
        self._budget: StepBudget | None = None
        try:
            super().__init__(path, self._recovered(path))
            if not self.entries:
                self._append(genesis)
            self.check_unit(unit)
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file free for another writer; nothing can be reserved here any more."""
        self._log.close()

    @property
    def entries(self) -> Sequence[Entry]:
        """All lines; every use of the ledger comes through here and ends after a failed write."""
        if self._failure:
            raise UserError(f"{self.path}: {self._failure}; start again from what the disk holds")
        return self._entries

    def set_plan(self, plan: Plan) -> None:
        """Records what may be spent from here on; the plan in force is not recorded again."""
        if plan != self.plan:
            self._budget = None
            self._append(plan)

    def reserve_query(self, votes_per_image: int = 1, noise_std: float | None = None) -> None:
        """Reserves the planned query; returns when the record is durable.

        Args:
            votes_per_image: k1, the counts that one image changes by 1.
            noise_std: of the noise that will be drawn for each count; by default σ_q · √k1, and
                nothing else is let through.

        Raises:
            UserError: the plan has no query, the noise is not the planned one, or the budget can't
                pay for it.
        """
        plan = self.plan_in_force()
        if plan.query_noise_multiplier is None:
            raise UserError(f"{self.path}: the plan has no query")
        query = Gaussian(plan.query_noise_multiplier)
        reservation = QueryReservation(query, votes_per_image, 0.0, _nonce())
        due = reservation.due_noise_std
        if noise_std not in (None, due):
            raise UserError(
                f"a query with noise {noise_std:g} on each count was planned with {due:g}"
            )
        if accountant.epsilon([*self.spent(), query], plan.delta).upper > plan.epsilon:
            raise UserError(
                f"{self.path}: the budget of epsilon {plan.epsilon:g} can't pay for another query; "
                "raise --epsilon or begin a new run with --out"
            )
        self._budget = None
        self._append(replace(reservation, noise_std=due))

    def step_budget(self, wanted: int, first_step: int = 0) -> StepBudget:
        """An integer gate on `wanted` more fine-tuning steps, or as many as the budget pays for.

        It is computed from all that was ever reserved, and in force until the plan changes or a
        query or another budget comes in between.

        Args:
            wanted: how many steps are still to be taken; 0 is allowed.
            first_step: how many the network has taken before.
        """
        plan = self.plan_in_force()
        left = 0
        if wanted:
            steps = replace(plan.finetune, steps=wanted)
            left = calibration.affordable_steps(plan.epsilon, plan.delta, steps, self.spent())
        self._budget = StepBudget(left, first_step, self._reserve_steps)
        return self._budget

    def complete(self, purpose: str, artifact_sha256: str, steps: int | None = None) -> None:
        """Records that something was released, as the file with this hash; once is enough.

        Args:
            purpose: "query", "finetune" or "synthetic".
            artifact_sha256: of the file.
            steps: how many a fine-tuned network has taken; None for the others.
        """
        if not self.completed(purpose, artifact_sha256):
            self._append(Completion(purpose, artifact_sha256, steps))

    def mark_not_private(self, reason: str) -> None:
        """Takes back every promise of this ledger, for good; a reason is recorded once."""
        if reason not in self.not_private_because:
            self._append(NotPrivate(reason))

    def record_outside_epsilon(self, what: str) -> None:
        """Records that `what` was computed on sensitive data without noise: ε does not cover it.

        To be called before it is computed, so that no crash can lose it; once is enough.
        """
        if what not in self.outside_epsilon:
            self._append(OutsideEpsilon(what))

    def record_selftest(self, selftest: Selftest) -> None:
        """Records that this machine and build were checked, and what failed; costs nothing."""
        self._append(selftest)

    def _reserve_steps(self, budget: StepBudget, first_step: int, steps: int) -> None:
        if budget is not self._budget:
            raise UserError(
                f"{self.path}: this step budget was computed before something else was reserved "
                "or planned; ask the ledger for a new one"
            )
        plan = self.plan_in_force()
        mechanism = replace(plan.finetune, steps=steps)
        threshold = plan.sample_rate_threshold
        self._append(StepReservation(mechanism, first_step, threshold, _nonce()))

    def _append(self, content: Content) -> None:
        """Makes a line durable; if that fails, nobody knows what the disk holds, and all ends."""
        entry = chain.successor(self.entries, content)
        line = chain.line_of(self.entries, entry)
        self._failure = "a record was not written whole"
        try:
            self._log.append(line)
        except OSError as error:
            raise durable.cannot_write(self.path, error) from error
        self._failure = ""
        self._entries.append(entry)

    def _recovered(self, path: Path) -> list[Entry]:
        """What the file holds, after a torn tail was cut off and a lost newline put back."""
        try:
            data = self._log.read()
            entries, whole = chain.parse(data, path)
            if data != whole:
                self._log.truncate(max(len(whole) - 1, 0))
                self._log.append(whole[-1:])
        except OSError as error:
            raise durable.cannot_write(path, error) from error
        return entries


def _nonce() -> str:
    return os.urandom(8).hex()
