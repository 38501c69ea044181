"""ε of several runs on the same people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privimage.dp.accounting import accountant
from privimage.dp.ledger.history import History
from privimage.errors import UserError


@dataclass(frozen=True)
class JointPromise:
    """What several ledgers promise together, at one δ.

    `epsilon` is None if one of them promises nothing, for the reasons in `not_private_because`;
    `epsilons` are what each would promise alone at the same δ.
    """

    epsilon: float | None
    delta: float
    unit: str
    adjacency: str
    epsilons: tuple[float | None, ...]
    not_private_because: tuple[str, ...]
    outside_epsilon: tuple[str, ...]


def compose(paths: Sequence[Path | str], delta: float | None = None) -> JointPromise:
    """Composes everything that all ledgers have reserved, the later ones chosen adaptively or not.

    All mechanisms are accounted for together at one δ, which is tighter than adding the runs' ε
    (and their δ).

    Args:
        paths: ledgers of runs on the same people.
        delta: at which ε is stated; by default the smallest of the ledgers' own.

    Raises:
        UserError: a ledger is missing, damaged, without a plan or named twice, or their units
            differ: an ε by image says nothing of a person.
    """
    if not paths or len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError("name every run once: each ledger is counted as releases of its own")
    ledgers = [History.read(path) for path in paths]
    units = sorted({ledger.unit for ledger in ledgers})
    if len(units) > 1:
        raise UserError(f"the runs protect different units ({', '.join(units)}): no common ε")
    chosen = min(ledger.plan_in_force().delta for ledger in ledgers) if delta is None else delta
    reasons = [
        f"{ledger.path}: {reason}" for ledger in ledgers for reason in ledger.not_private_because
    ]
    everything = [mechanism for ledger in ledgers for mechanism in ledger.spent()]
    together = accountant.epsilon(everything, chosen).upper
    return JointPromise(
        epsilon=None if reasons else together,
        delta=chosen,
        unit=units[0],
        adjacency=ledgers[0].adjacency,
        epsilons=tuple(
            None if ledger.not_private_because else ledger.epsilon(chosen).upper
            for ledger in ledgers
        ),
        not_private_because=tuple(reasons),
        outside_epsilon=tuple(
            f"{ledger.path}: {what}" for ledger in ledgers for what in ledger.outside_epsilon
        ),
    )
