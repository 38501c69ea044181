"""A ledger in lines that a person reads: when, what was reserved, ε so far."""

import math
from collections.abc import Iterator
from itertools import groupby

from privimage.dp.accounting import accountant
from privimage.dp.accounting.mechanisms import Mechanism
from privimage.dp.ledger.chain import Entry
from privimage.dp.ledger.history import History
from privimage.dp.ledger.records import (
    Completion,
    Content,
    Genesis,
    NotPrivate,
    OutsideEpsilon,
    Plan,
    QueryReservation,
    Reservation,
    Selftest,
    StepReservation,
)
from privimage.promise import rounded_up

_NAMES = {"query": "query", "finetune": "fine-tuning", "synthetic": "synthetic images"}


def narrate(history: History) -> Iterator[str]:
    """One line for each entry; reservations of steps that follow each other share one.

    ε is that of everything up to the line, at the δ of the last plan. At the end stands what is
    promised in all, under both adjacencies, and what lies outside it.
    """
    plan, so_far = history.plan, list[Mechanism]()
    for _, group in groupby(history.entries, key=_is_step_reservation_or_number):
        entries = list(group)
        text = _steps(entries) if len(entries) > 1 else _sentence(entries[0].content, history.unit)
        spends = [
            entry.content.mechanism for entry in entries if isinstance(entry.content, Reservation)
        ]
        so_far += spends
        if spends and plan is not None:
            text += f"; ε so far {rounded_up(accountant.epsilon(so_far, plan.delta).upper)}"
        yield f"{entries[-1].time}  {text}"
    if plan is not None:
        yield from _promise(history, plan)


def _promise(history: History, plan: Plan) -> Iterator[str]:
    """What all lines together promise."""
    reasons = history.not_private_because
    if reasons:
        yield f"In all: NOT PRIVATE ({'; '.join(reasons)}), so no ε is promised."
    else:
        unit, added = history.unit, rounded_up(history.epsilon(plan.delta).upper)
        replaced = history.replace_one_epsilon(plan.delta)
        exchanged = rounded_up(replaced) if math.isfinite(replaced) else "unbounded"
        yield (
            f"In all: ε = {added} at δ = {plan.delta} if one {unit} is added or removed, "
            f"{exchanged} if one {unit} is replaced by another."
        )
    if history.outside_epsilon:
        yield f"Not covered by ε, computed without noise: {'; '.join(history.outside_epsilon)}."


def _is_step_reservation_or_number(entry: Entry) -> int:
    return -1 if isinstance(entry.content, StepReservation) else entry.number


def _steps(entries: list[Entry]) -> str:
    """Several reservations of steps in one sentence; repeated steps show as such."""
    reservations = [e.content for e in entries if isinstance(e.content, StepReservation)]
    total = sum(part.mechanism.steps for part in reservations)
    last = max(part.first_step + part.mechanism.steps for part in reservations)
    first = min(part.first_step for part in reservations)
    again = total - (last - first)
    repeated = f", {again} of them again after a crash" if again else ""
    sigmas = sorted({part.mechanism.noise_multiplier for part in reservations})
    return (
        f"reserved  fine-tuning: {total} steps in {len(entries)} records (step {first} to "
        f"{last - 1}{repeated}), σ {', '.join(f'{sigma:g}' for sigma in sigmas)}"
    )


def _sentence(content: Content, unit: str) -> str:
    match content:
        case Genesis():
            return f"begun     {content.schema}, unit {content.unit}, {content.adjacency}"
        case Plan():
            return f"planned   {content.in_words(unit)}"
        case QueryReservation():
            votes = f"{content.votes_per_image} vote{'s' * (content.votes_per_image > 1)} an image"
            votes += ", clipped by person" if unit == "person" else ""
            return (
                f"reserved  query: σ {content.mechanism.noise_multiplier:g}, {votes}, "
                f"std {content.noise_std:g} on each count"
            )
        case StepReservation():
            last = content.first_step + content.mechanism.steps - 1
            return (
                f"reserved  fine-tuning: {content.mechanism.steps} steps (step "
                f"{content.first_step} to {last}), σ {content.mechanism.noise_multiplier:g}"
            )
        case Completion():
            after = "" if content.steps is None else f" after {content.steps} steps"
            digest = content.artifact_sha256[:16]
            return f"released  {_NAMES[content.purpose]}{after}: sha256 {digest}…"
        case NotPrivate():
            return f"NOT PRIVATE from here on: {content.reason}"
        case OutsideEpsilon():
            return f"outside ε {content.what}"
        case Selftest():
            found = f"FAILED: {', '.join(content.failed)}" if content.failed else "all passed"
            return (
                f"tested    noise, sampling and clipping on {content.device} (privimage "
                f"{content.version}, torch {content.torch}, build {content.build}): {found}"
            )
