"""What a run may spend on the stages that are to be done, and what stays spent."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from privimage import dp
from privimage.dp import (
    Gaussian,
    History,
    Ledger,
    Mechanism,
    Plan,
    QueryReservation,
    StepReservation,
    SubsampledGaussian,
)
from privimage.errors import UserError
from privimage.recipe import Recipe
from privimage.run.context import Run

_RESERVATIONS = {"query": QueryReservation, "finetune": StepReservation}


@contextmanager
def saying_what_stays_spent(ledger: Ledger) -> Iterator[None]:
    """Adds to the line of a mistake in this block what mending it does not undo.

    Raises:
        UserError: that of the block; it goes on if the ledger has reserved something meanwhile.
    """
    before = len(ledger.spent())
    try:
        yield
    except UserError as error:
        try:
            reserved = len(ledger.spent()) > before
        except UserError:  # Its last record may have reached the disk or not.
            reserved = True
        if not reserved:
            raise
        raise UserError(f"{error}; the ε that {ledger.path} reserved before stays spent") from error


def settled(
    run: Run, history: History | None, missing: Collection[str], repeated: Collection[str]
) -> Plan:
    """Settles σ for what is still to come on top of what is spent; records nothing.

    A plan for the same promise stays in force: recalibrating it after a crash would only move the
    noise for the steps that are left.

    Args:
        run: its recipe says what is wanted.
        history: what was spent; None before the first ledger.
        missing: names of the stages that are still to be done.
        repeated: those of them that were done or begun before and are wanted again.

    Raises:
        UserError: as `calibrated`.
    """
    privacy = run.recipe.privacy
    is_semantic = run.recipe.selection.mode == "semantic"
    noise = run.recipe.query.noise_multiplier(privacy.epsilon) if is_semantic else None
    old, before, spent = None, list[Plan](), list[Mechanism]()
    if history is not None:
        old, before, spent = history.plan, _paid(history, repeated), history.spent()
    if is_semantic and "query" not in missing and history is not None:
        asked_under = history.paid(QueryReservation)  # Plans since then may ask nothing.
        noise = noise if asked_under is None else asked_under.query_noise_multiplier
    if old is not None and _is_for(old, run, noise) and old not in before:
        return old
    asked = [Gaussian(noise)] if noise is not None and "query" in missing else []
    run.reporter.say("calibrating the noise …")
    return calibrated(run.recipe, noise, [*spent, *asked])


def refuse_paid_twice(run: Run, history: History | None, repeated: Collection[str]) -> None:
    """Refuses to forget what was paid for, unless the budget was raised.

    Args:
        run: its recipe says what is wanted.
        history: what was spent; None before the first ledger.
        repeated: names of the stages that are forgotten first.

    Raises:
        UserError: it was not.
    """
    before = [] if history is None else _paid(history, repeated)
    paid = max((plan.epsilon for plan in before), default=0.0)
    if math.isfinite(paid) and run.recipe.privacy.epsilon <= paid:
        is_begun = not all(run.folder.is_done(name) for name in repeated)
        go_on = "leave out --from-stage to go on with what was begun, or " if is_begun else ""
        raise UserError(
            f"{run.folder.path}: epsilon {paid:g} was planned for what is to be repeated; "
            f"what it cost stays spent, so {go_on}raise --epsilon to pay for both"
        )


def calibrated(recipe: Recipe, noise: float | None, spent: Sequence[Mechanism]) -> Plan:
    """The plan that keeps a recipe's promise.

    Args:
        recipe: its budget, rate and steps.
        noise: σ of the query; None for no query.
        spent: what else the budget pays for, the query included.

    Raises:
        UserError: that leaves nothing for the steps.
    """
    privacy, settings = recipe.privacy, recipe.finetune
    rate, steps = settings.sample_rate, settings.steps
    multiplier = dp.calibrate_noise_multiplier(privacy.epsilon, privacy.delta, rate, steps, spent)
    finetune = SubsampledGaussian(rate, multiplier, steps)
    return Plan(privacy.epsilon, privacy.delta, noise, finetune)


def _paid(history: History, repeated: Collection[str]) -> list[Plan]:
    """The plans under which the private ones of these stages were last paid for."""
    kinds = [kind for name, kind in _RESERVATIONS.items() if name in repeated]
    return [plan for kind in kinds if (plan := history.paid(kind)) is not None]


def _is_for(plan: Plan, run: Run, query_noise_multiplier: float | None) -> bool:
    """Whether `plan` is what the run's recipe asks for, with whatever σ."""
    privacy, settings = run.recipe.privacy, run.recipe.finetune
    steps = SubsampledGaussian(settings.sample_rate, plan.finetune.noise_multiplier, settings.steps)
    return plan == Plan(privacy.epsilon, privacy.delta, query_noise_multiplier, steps)
