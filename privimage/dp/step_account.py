"""The account of a private engine's steps: how many it may take, has begun, and what they cost."""

import os
from dataclasses import asdict
from typing import Any

from privimage.dp.accounting import accountant
from privimage.dp.ledger.ledger import Ledger
from privimage.dp.ledger.step_budget import StepBudget
from privimage.dp.privacy import Privacy
from privimage.errors import UserError


class StepAccount:
    """Steps of one training run: begun by this engine and by those whose states it took over.

    Formal guarantee: with a ledger, a step is on disk before `begin` returns
    (tests/dp/test_private_engine.py::test_a_step_is_in_the_ledger_before_data_is_touched).

    Attributes:
        is_secret: False if the key of any of these engines was a test key.
        name: under which this engine's own steps are counted.
    """

    def __init__(self, privacy: Privacy, ledger: Ledger | None, is_secret: bool) -> None:
        """Begins at none.

        Raises:
            UserError: the ledger is by another unit or has another plan than `privacy`.
        """
        self.is_secret = is_secret
        self._privacy, self._ledger = privacy, ledger
        self.name = os.urandom(8).hex()
        # By the engine that began them: a state that is taken over brings those of others.
        self._begun = {self.name: 0}
        self._budget: StepBudget | None = None
        if ledger is not None:
            _check_plan(ledger, privacy)

    @property
    def begun(self) -> int:
        """Steps of all these engines; each once."""
        return sum(self._begun.values())

    def rename(self, name: str) -> None:
        """Counts its own steps under another name: that of the first of several processes.

        So a state of the first one's, loaded in all, is known to all to be of this very run.
        """
        steps = self._begun.pop(self.name)
        self.name = name
        self._begun[name] = max(steps, self._begun.get(name, 0))

    def check_left(self) -> None:
        """Raises UserError if all steps were begun."""
        if self.begun >= self._privacy.steps:
            raise UserError(
                f"all {self._privacy.steps} steps of privacy were taken; more need a Privacy of "
                "more steps, and cost a larger epsilon"
            )

    def begin(self) -> None:
        """Counts the next step, and reserves it in the ledger, if there is one, before.

        Raises:
            UserError: the ledger's budget is used up, it has another plan by now, or the disk
                refuses the record.
        """
        if self._ledger is not None:
            if self._budget is None:
                self._budget = self._open_budget(self._ledger)
            self._budget.reserve(1)
        self._begun[self.name] += 1

    def epsilon(self, delta: float) -> float:
        """As `PrivateEngine.epsilon`."""
        accountant.check_delta(delta)
        if self._ledger is not None:
            private = not self._ledger.not_private_because
            return self._ledger.epsilon(delta).upper if private else float("inf")
        if self.begun == 0:
            return 0.0
        if not self.is_secret:
            return float("inf")
        return accountant.epsilon([self._privacy.mechanism(self.begun)], delta).upper

    def state_dict(self) -> dict[str, Any]:
        """What another account takes over."""
        return {
            "begun": dict(self._begun),
            "is_secret": self.is_secret,
            "privacy": asdict(self._privacy),
            "ledger_head": None if self._ledger is None else self._ledger.head,
        }

    def check_state(self, state: dict[str, Any], with_ledger: bool) -> None:
        """Raises UserError if the steps of a `state_dict` can't be counted together with ours.

        Args:
            state: from `state_dict`.
            with_ledger: whether a ledger is needed where the state's account had one.
        """
        if not self._privacy.goes_on_from(Privacy(**state["privacy"])):
            raise UserError(
                f"the state is of {Privacy(**state['privacy'])}, this engine has {self._privacy}; "
                "ε counts steps of one kind: make the engine with those numbers"
            )
        if with_ledger and self._ledger is None and state["ledger_head"] is not None:
            raise UserError(
                "the state was saved with a ledger, which knows of steps since then, and this "
                "engine has none; make it with ledger=Ledger(...) of that run, or, if that is "
                'lost, set state["ledger_head"] = None: ε then leaves those steps out'
            )
        if self._ledger is not None and not self._ledger.knows(state["ledger_head"]):
            raise UserError(
                f"{self._ledger.path} is older than the state or is another run's, so ε can't be "
                "stated; restore it from a backup"
            )

    def take_over(self, state: dict[str, Any]) -> None:
        """Counts the steps of a `state_dict` that `check_state` let pass, each once."""
        for name, steps in state["begun"].items():
            self._begun[name] = max(self._begun.get(name, 0), steps)
        self.is_secret = self.is_secret and state["is_secret"]
        self._budget = None

    def _open_budget(self, ledger: Ledger) -> StepBudget:
        # Another engine may have set its own plan since this one was made.
        _check_plan(ledger, self._privacy)
        budget = ledger.step_budget(self._privacy.steps - self.begun, first_step=self.begun)
        if not self.is_secret:
            ledger.mark_not_private("test key")
        return budget


def _check_plan(ledger: Ledger, privacy: Privacy) -> None:
    # One example is the unit that is sampled and clipped, whatever it shows.
    ledger.check_unit("image")
    plan, own = ledger.plan, privacy.mechanism(privacy.steps)
    if plan is None or plan.finetune != own:
        raise UserError(
            f"{ledger.path}: the ledger's plan is not that of the engine's privacy; "
            "call ledger.set_plan(privacy.plan(delta)) first"
        )
