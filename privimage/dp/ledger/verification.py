"""Holds what a run has made against its ledger: chain, structure, and ε computed again.

The structure counts as much as ε: a query that is missing moves ε by as little as 2e-5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privimage.dp.accounting.mechanisms import Epsilon, Gaussian, SubsampledGaussian
from privimage.dp.ledger.chain import Entry
from privimage.dp.ledger.history import History
from privimage.dp.ledger.records import (
    Completion,
    Plan,
    QueryReservation,
    Selftest,
    StepReservation,
)
from privimage.dp.sampling import rate_threshold
from privimage.promise import rounded_up


@dataclass(frozen=True)
class Made:
    """What a run has made under its ledger.

    Attributes:
        optimizer_steps: steps that its fine-tuned network has taken; 0 without one.
        releases: purpose ("query", "finetune", "synthetic") to the SHA-256 of the released file.
        votes_per_image: k1 of the query that its selection rests on; None without a query.
    """

    optimizer_steps: int
    releases: dict[str, str]
    votes_per_image: int | None


@dataclass(frozen=True)
class Verification:
    """What `verify` found; `problems` is empty if all is well.

    Attributes:
        epsilon: bounds on ε of everything reserved, for `unit` and `adjacency`.
        replace_one_epsilon: the same if one unit is replaced; infinite if there is no bound.
        outside_epsilon: what was computed on sensitive data outside ε: declared, so no problem.
        selftests: what the machines were checked for; a check that failed is a problem.
    """

    epsilon: Epsilon
    replace_one_epsilon: float
    planned_epsilon: float
    delta: float
    unit: str
    adjacency: str
    private: bool
    queries_reserved: int
    queries_completed: int
    steps_reserved: int
    outside_epsilon: tuple[str, ...]
    selftests: tuple[Selftest, ...]
    problems: tuple[str, ...]


def verify(path: Path, made: Made) -> Verification:
    """Recomputes ε from the ledger, from the very numbers in it, and checks its structure.

    Args:
        path: the ledger.
        made: what the run has made; hashes are compared with those that the ledger completed.

    Raises:
        UserError: the ledger is missing, damaged or of another version, or holds no plan.
    """
    history = History.read(path)
    plan, reserved = history.plan_in_force(), history.spent()
    bounds = history.epsilon(plan.delta)
    walk = _Walk()
    for entry in history.entries:
        walk.take(entry)
    problems = [*walk.problems, *_held_against(made, walk, plan)]
    if plan.is_private:
        problems += [f"not private: {reason}" for reason in history.not_private_because]
    problems += [
        f"the self-test on {test.device} failed: {', '.join(test.failed)}"
        for test in history.selftests
        if test.failed
    ]
    if bounds.upper > plan.epsilon:
        problems.append(f"ε is {rounded_up(bounds.upper)}, above the planned {plan.epsilon:g}")
    return Verification(
        epsilon=bounds,
        replace_one_epsilon=history.replace_one_epsilon(plan.delta),
        planned_epsilon=plan.epsilon,
        delta=plan.delta,
        unit=history.unit,
        adjacency=history.adjacency,
        private=not history.not_private_because,
        queries_reserved=sum(isinstance(part, Gaussian) for part in reserved),
        queries_completed=len(walk.completed("query")),
        steps_reserved=sum(part.steps for part in reserved if isinstance(part, SubsampledGaussian)),
        outside_epsilon=tuple(history.outside_epsilon),
        selftests=tuple(history.selftests),
        problems=tuple(problems),
    )


class _Walk:
    """Goes through the entries in order and notes what does not follow from those before."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.covered = 0
        self.votes_per_image: int | None = None
        self._completions: list[Completion] = []
        self._plan: Plan | None = None
        self._query_is_open = False

    def completed(self, purpose: str) -> Sequence[str]:
        """The hashes of what was released for `purpose`."""
        return [done.artifact_sha256 for done in self._completions if done.purpose == purpose]

    def take(self, entry: Entry) -> None:
        """Notes what is wrong with the next entry."""
        content, before = entry.content, len(self.problems)
        if isinstance(content, Plan):
            self._take_plan(content)
        elif isinstance(content, QueryReservation):
            self._take_query(content)
        elif isinstance(content, StepReservation):
            self._take_steps(content)
        elif isinstance(content, Completion):
            self._take_completion(content)
        for index in range(before, len(self.problems)):
            self.problems[index] = f"line {entry.number + 1}: {self.problems[index]}"

    def _take_plan(self, plan: Plan) -> None:
        self._plan = plan
        if plan.sample_rate_threshold != str(rate_threshold(plan.finetune.sample_rate)):
            self.problems.append("the sampler's threshold is not that of the planned sample rate")

    def _take_query(self, query: QueryReservation) -> None:
        self._query_is_open = True
        plan = self._plan
        if plan is None or plan.query_noise_multiplier is None:
            self.problems.append("a query was reserved, but none was planned")
        elif query.mechanism.noise_multiplier != plan.query_noise_multiplier:
            self.problems.append("the query's σ is not the planned one")
        elif query.noise_std != query.due_noise_std:
            self.problems.append("the query's noise is not σ_q·√(votes an image)")
        self.votes_per_image = query.votes_per_image

    def _take_steps(self, steps: StepReservation) -> None:
        first, mechanism, plan = steps.first_step, steps.mechanism, self._plan
        if first > self.covered:
            self.problems.append(f"steps {self.covered} to {first - 1} were never reserved")
        # A network that goes on from step `first` takes all later steps anew.
        self.covered = first + mechanism.steps
        if plan is None:
            self.problems.append("steps were reserved, but none were planned")
            return
        if mechanism.noise_multiplier != plan.finetune.noise_multiplier:
            self.problems.append("the steps' σ is not the planned one")
        rates = (mechanism.sample_rate, steps.sample_rate_threshold)
        if rates != (plan.finetune.sample_rate, plan.sample_rate_threshold):
            self.problems.append("the steps' sample rate is not the planned one")

    def _take_completion(self, done: Completion) -> None:
        if done.purpose == "query" and not self._query_is_open:
            self.problems.append("a query was completed that was not reserved")
        if done.purpose == "query":
            self._query_is_open = False
        if done.steps is not None and done.steps > self.covered:
            self.problems.append(
                f"a network of {done.steps} steps was completed, only {self.covered} were reserved"
            )
        if done.artifact_sha256 in self.completed(done.purpose):
            self.problems.append(f"the same {done.purpose} result was completed twice")
        self._completions.append(done)


def _held_against(made: Made, walk: _Walk, plan: Plan) -> list[str]:
    """What the run has made that the ledger does not bear out."""
    problems = []
    if made.optimizer_steps > walk.covered:
        problems.append(
            f"the model took {made.optimizer_steps} steps, only {walk.covered} were reserved"
        )
    problems += [
        f"the {purpose} result is not one that this ledger completed"
        for purpose, digest in made.releases.items()
        if digest not in walk.completed(purpose)
    ]
    return problems + _query_held_against(made, walk, plan)


def _query_held_against(made: Made, walk: _Walk, plan: Plan) -> list[str]:
    """What is wrong with the one query on which the selection rests, or with there being one."""
    planned, wanted = plan.query_noise_multiplier is not None, made.votes_per_image is not None
    if planned != wanted:
        return [
            "the selection rests on a query, but none was planned"
            if wanted
            else "the selection asks nothing, but a query was planned"
        ]
    problems = []
    if wanted and made.optimizer_steps and "query" not in made.releases:
        problems.append("the query result that the selection rests on is missing")
    if "query" in made.releases and walk.completed("query")[-1:] != [made.releases["query"]]:
        problems.append("the query result is not the last one that this ledger completed")
    if wanted and walk.votes_per_image not in (None, made.votes_per_image):
        problems.append(
            f"the query had {walk.votes_per_image} votes an image, not {made.votes_per_image}"
        )
    return problems
