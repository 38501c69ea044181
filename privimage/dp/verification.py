"""Holds a finished run against its ledger: chain, structure, and ε computed again."""

from dataclasses import dataclass
from pathlib import Path

from privimage.dp import accounting, ledger
from privimage.dp.accounting import Epsilon, Gaussian, SubsampledGaussian
from privimage.errors import UserError


@dataclass(frozen=True)
class Verification:
    """What `verify` found; `problems` is empty if all is well."""

    epsilon: Epsilon
    planned_epsilon: float
    delta: float
    adjacency: str
    queries_reserved: int
    steps_reserved: int
    problems: tuple[str, ...]


def verify(path: Path, optimizer_steps: int, query_sha256: str | None) -> Verification:
    """Recomputes ε from the ledger and holds its structure against what the run has made.

    The structure counts as much as ε: a query that is missing moves ε by as little as 2e-5.

    Args:
        path: the ledger.
        optimizer_steps: fine-tuning steps that the run's model has taken.
        query_sha256: hash of the query's result, None if the run has none.

    Raises:
        UserError: the ledger is missing or damaged, or holds no plan.
    """
    lines = list(ledger.records(path))
    plans = ledger.plans(lines)
    if not plans:
        raise UserError(f"{path}: no plan was recorded, so nothing was spent and there is no ε")
    plan = plans[-1]
    reserved = ledger.mechanisms(lines)
    queries = sum(isinstance(part, Gaussian) for part in reserved)
    steps = sum(part.steps for part in reserved if isinstance(part, SubsampledGaussian))
    completed = [line["artifact_sha256"] for line in lines if line["type"] == "complete"]
    bounds = accounting.epsilon(reserved, plan.delta)
    problems = []
    if optimizer_steps > steps:
        problems.append(f"the model took {optimizer_steps} steps, only {steps} were reserved")
    if query_sha256 is not None and query_sha256 not in completed:
        problems.append("the query's result is not one that this ledger completed")
    if len(completed) > queries:
        problems.append(f"{len(completed)} queries were completed, only {queries} were reserved")
    if bounds.upper > plan.epsilon:
        problems.append(f"ε is {bounds.upper:.4f}, above the planned {plan.epsilon:g}")
    return Verification(
        epsilon=bounds,
        planned_epsilon=plan.epsilon,
        delta=plan.delta,
        adjacency=lines[0]["adjacency"],
        queries_reserved=queries,
        steps_reserved=steps,
        problems=tuple(problems),
    )
