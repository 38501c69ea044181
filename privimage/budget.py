"""What a plan costs, or what a budget buys, answered before any data is touched."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from privimage import dp, durable
from privimage.dp import Epsilon, Gaussian, Mechanism, SubsampledGaussian
from privimage.errors import UserError, check_choice, check_count, check_positive, check_probability
from privimage.promise import rounded_up

_MOST_STEPS = 10**9
_QUERY_NOISES = (2.0, 5.0, 10.0, 20.0, 50.0)
_WORTH = 1.05
_POINTS = 24


@dataclass(frozen=True)
class Question:
    """A plan with at most one number missing; `target_epsilon` stands in for that.

    Attributes:
        delta: δ.
        sample_rate: probability with which a step takes each image, or each person.
        steps: DP-SGD steps.
        noise_multiplier: standard deviation of a step's noise over its sensitivity.
        query_noise: the same of the query; None for no query.
        target_epsilon: ε to keep to.
        unit: whom ε protects, "image" or "person": whom a step samples and what is added or
            removed; it changes the words, not the numbers.
    """

    delta: float
    sample_rate: float | None = None
    steps: int | None = None
    noise_multiplier: float | None = None
    query_noise: float | None = None
    target_epsilon: float | None = None
    unit: str = "image"

    def __post_init__(self) -> None:
        check_choice("--unit", self.unit, dp.UNITS)
        dp.check_delta(self.delta)
        if self.sample_rate is not None:
            check_probability("--sample-rate", self.sample_rate)
        if self.steps is not None:
            check_count("--steps", self.steps)
        for name in ("noise_multiplier", "query_noise", "target_epsilon"):
            value = getattr(self, name)
            if value is not None:
                check_positive(f"--{name.replace('_', '-')}", value)

    @property
    def query(self) -> list[Mechanism]:
        """The query, if there is one."""
        return [] if self.query_noise is None else [Gaussian(self.query_noise)]


@dataclass(frozen=True)
class Answer:
    """A whole plan and its ε.

    Attributes:
        question: what was asked.
        plan: its steps; None for a query alone.
        epsilon: bounds on ε of everything.
        found: name and value of what was missing, if anything.
    """

    question: Question
    plan: SubsampledGaussian | None
    epsilon: Epsilon
    found: dict[str, float]

    @property
    def mechanisms(self) -> list[Mechanism]:
        """Everything that touches the sensitive images."""
        return [*([] if self.plan is None else [self.plan]), *self.question.query]


def answer(question: Question) -> Answer:
    """Fills in what is missing and bounds ε.

    Raises:
        UserError: too little or too much is given, or the target leaves nothing.
    """
    plan, found = _plan(question)
    mechanisms = [*([] if plan is None else [plan]), *question.query]
    return Answer(question, plan, dp.epsilon(mechanisms, question.delta), found)


def as_json(answer: Answer, group_size: int | None = None) -> dict[str, Any]:
    """The answer as one flat object; `epsilon` is the upper bound."""
    facts: dict[str, Any] = {
        "epsilon": answer.epsilon.upper,
        "lower": answer.epsilon.lower,
        "estimate": answer.epsilon.estimate,
        "delta": answer.question.delta,
        "adjacency": dp.adjacency(answer.question.unit),
        **answer.found,
    }
    if group_size is not None:
        epsilon = dp.group_epsilon(answer.mechanisms, answer.question.delta, group_size)
        facts |= {"group_size": group_size, "group_epsilon": epsilon}
    return facts


def explain(answer: Answer, group_size: int | None = None) -> Iterator[str]:
    """The answer in lines of text, what a query is worth among them; slow ones come last."""
    delta, bounds = answer.question.delta, answer.epsilon
    upper = rounded_up(bounds.upper)
    yield f"ε ≤ {upper} at δ = {delta} for {_in_words(answer)}"
    yield f"  between {bounds.lower:.4f} and {upper}, estimated {bounds.estimate:.4f}"
    unit = answer.question.unit
    yield f"  one {unit} added to or removed from the sensitive set"
    replaced = dp.replace_one_epsilon(answer.mechanisms, delta)
    yield f"  ε ≤ {rounded_up(replaced)} if one {unit} is replaced by another"
    if group_size is not None:
        grouped = dp.group_epsilon(answer.mechanisms, delta, group_size)
        by_image = "all images of a person who has up to {}"
        whose = by_image if unit == "image" else "up to {} persons together"
        yield f"  ε ≤ {rounded_up(grouped)} for {whose.format(group_size)}"
    if answer.plan is not None:
        try:
            yield from _worth_of_a_query(answer, answer.plan)
        except UserError as error:
            yield f"What a query is worth beside this plan can't be said: {error}"


def plot(answer: Answer, path: Path) -> None:
    """Draws ε over the steps taken into a PNG file.

    Raises:
        UserError: the plan has no steps, or the file can't be written.
    """
    plan = answer.plan
    if plan is None:
        raise UserError("--plot shows ε over steps: give --sample-rate and --steps")
    counts = sorted({max(1, round(plan.steps * part / _POINTS)) for part in range(_POINTS + 1)})
    question = answer.question
    bounds = dp.epsilon_over_steps(plan, counts, question.delta, question.query)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(
        counts, [point.lower for point in bounds], [point.upper for point in bounds], alpha=0.3
    )
    axes.plot(counts, [point.upper for point in bounds], label="upper bound, which is published")
    if question.target_epsilon is not None:
        axes.axhline(question.target_epsilon, color="black", linestyle=":", label="target")
    axes.set(xlabel="steps", ylabel=f"ε at δ = {question.delta:g}", title=_in_words(answer))
    axes.set_ylim(bottom=0)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    durable.write_bytes(path, picture.getvalue())


def _plan(question: Question) -> tuple[SubsampledGaussian | None, dict[str, float]]:
    """The steps that are planned, and what of them was missing."""
    rate, steps, noise = question.sample_rate, question.steps, question.noise_multiplier
    target = question.target_epsilon
    if rate is None and steps is None and noise is None:
        if question.query_noise is None or target is not None:
            raise UserError("what is planned? give --sample-rate, --steps and --noise-multiplier")
        return None, {}
    if rate is None:
        raise UserError("--sample-rate is missing, the probability that a step takes an image")
    if target is None:
        if steps is None or noise is None:
            raise UserError(
                "give --steps and --noise-multiplier, or --target-epsilon to find one of them"
            )
        return SubsampledGaussian(rate, noise, steps), {}
    if steps is not None and noise is None:
        noise = dp.calibrate_noise_multiplier(target, question.delta, rate, steps, question.query)
        return SubsampledGaussian(rate, noise, steps), {"noise_multiplier": noise}
    if steps is None and noise is not None:
        most = SubsampledGaussian(rate, noise, _MOST_STEPS)
        steps = dp.affordable_steps(target, question.delta, most, question.query)
        if not steps:
            raise UserError(f"an ε of {target:g} does not pay for one step; raise it, or the noise")
        return SubsampledGaussian(rate, noise, steps), {"steps": steps}
    raise UserError("--target-epsilon finds --steps or --noise-multiplier: leave out just one")


def _worth_of_a_query(answer: Answer, plan: SubsampledGaussian) -> Iterator[str]:
    """For several queries their own ε and the DP-SGD noise that keeps the joint ε the same."""
    question, target = answer.question, answer.question.target_epsilon or answer.epsilon.upper

    def noise_with(query: list[Mechanism]) -> float:
        return dp.estimate_noise_multiplier(
            target, question.delta, plan.sample_rate, plan.steps, query
        )

    alone = noise_with([])
    yield f"What a query costs if ε stays at {target:.4g}, for {plan.steps} steps:"
    yield "  query noise   ε of the query   noise multiplier of the steps"
    yield f"  {'no query':>11}   {'':>14}   {alone:.3f}"
    worth = None
    for query_noise in sorted({*_QUERY_NOISES, question.query_noise or _QUERY_NOISES[0]}):
        query: list[Mechanism] = [Gaussian(query_noise)]
        cost, noise = dp.epsilon(query, question.delta).upper, noise_with(query)
        more = f"{noise:.3f}  (+{noise / alone - 1:.1%})" if math.isfinite(noise) else "too dear"
        yield f"  {query_noise:>11g}   {cost:>14.3f}   {more}"
        if worth is None and noise <= _WORTH * alone:
            worth = query_noise
    if worth is not None:
        yield f"  At {worth:g} a query is nearly free: it asks for less than 5 % more noise."


def _in_words(answer: Answer) -> str:
    """The plan, short enough for a title."""
    parts = []
    if answer.plan is not None:
        plan = answer.plan
        parts.append(
            f"{plan.steps} steps (q = {plan.sample_rate:g}, σ = {plan.noise_multiplier:g})"
        )
    if answer.question.query_noise is not None:
        parts.append(f"a query (σ = {answer.question.query_noise:g})")
    return " and ".join(parts)
