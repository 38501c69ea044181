"""What a run may spend, and which of its files its ledger must vouch for."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from privimage import dp, durable
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
from privimage.run.folder import RELEASES, STAGE_NAMES, RunFolder

_RESERVATIONS = {"query": QueryReservation, "finetune": StepReservation}
_HEAD_IN_METRICS = re.compile(r'"ledger_head": "([0-9a-f]+)"')
_HEAD_IN_REPORT = re.compile(r'<code id="ledger-head">([0-9a-f]+)</code>')
# The stages that know the sensitive labels: all but the classifier.
_LABELLED = STAGE_NAMES[1:]


def refuse_without_ledger(folder: RunFolder) -> None:
    """Refuses a folder that holds something private, but no ledger.

    Raises:
        UserError: what was spent for it is not known any more.
    """
    if folder.ledger.exists():
        return
    for name in RELEASES:
        if any(path.exists() for path in (folder.stage(name), folder.partial(name))):
            raise UserError(
                f"{folder.ledger} is missing beside the stage '{name}', so ε can't be stated; "
                "restore it from a backup, or begin a new run with --out"
            )


def refuse_foreign_files(folder: RunFolder, ledger: History) -> None:
    """Refuses files whose ledger head or hash is not in the ledger, and what rests on others.

    That is so whether or not they are to be made again: somebody may have seen them, so the ledger
    that paid for them counts.

    Raises:
        UserError: they are of another ledger, or of a later state of this one.
    """
    for path, head in heads(folder):
        if not ledger.knows(head):
            raise UserError(
                f"{ledger.path} is older than {path} or is another run's, so ε can't be stated; "
                "restore the ledger from a backup, or begin a new run with --out"
            )
    for name, path in releases(folder).items():
        if not ledger.completed(name, durable.sha256(path)):
            raise UserError(
                f"{path} is not what {ledger.path} says was released: the ledger is older or the "
                "file was changed; restore it from a backup, or begin a new run with --out"
            )
    for path, name in folder.foreign_inputs():
        raise UserError(
            f"{path} was made from another '{name}' than the one in this run, which its ledger "
            "did not pay for; remove it, or begin a new run with --out"
        )


def refuse_other_persons(folder: RunFolder, recipe: Recipe, ledger: History) -> None:
    """Refuses to spend for persons that are named in another way than those already spent for.

    Raises:
        UserError: one ε would be stated for two meanings of "person".
    """
    if not ledger.spent():
        return
    before, now = folder.recipe().data.person, recipe.data.person
    if before != now:
        raise UserError(
            f"{folder.path}: this run was begun for the persons of --person {before}, not {now}; "
            "begin a new run with --out"
        )


def refuse_other_facts(run: Run, ledger: History | None, repeated: Collection[str]) -> None:
    """Refuses a sensitive set whose public facts are not those that the run goes on from.

    Steps count by person, so the persons stay whatever is repeated; a number that was declared is
    no count of them, and the recipe's to compare.

    Raises:
        UserError: the labels changed under stages that are kept, or the persons under an ε.
    """
    if not run.folder.is_declared:
        return
    before, now = run.folder.declared(), run.declared
    kept = (name for name in _LABELLED if name not in repeated and run.folder.record(name))
    if before["names"] != now["names"] and (stage := next(kept, None)):
        raise UserError(
            f"{run.folder.path}: the labels of --sensitive are not those, or not in the order, "
            f"that the stage '{stage}' was made for; repeat it with --from-stage {stage}, or begin "
            "a new run with --out"
        )
    was_counted = not any(facts.get("public_size_was_declared") for facts in (before, now))
    is_by_person = run.recipe.privacy.unit == "person" and ledger is not None and ledger.spent()
    if is_by_person and was_counted and before["public_size"] != now["public_size"]:
        raise UserError(
            f"{run.folder.path}: this run was begun for {before['public_size']} persons, and "
            f"--sensitive has {now['public_size']} now, so no ε holds for both; restore the set, "
            "or begin a new run with --out"
        )


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


def heads(folder: RunFolder) -> Iterator[tuple[Path, object]]:
    """The files of a run that keep a ledger head, and the head: None where it is missing."""
    for name in RELEASES:
        for stage in (folder.stage(name), folder.partial(name)):
            facts = stage / f"{name}.json"
            if facts.exists():
                yield facts, _head_in(facts)
    for record in sorted(folder.checkpoints("finetune").glob("step-*.json")):
        yield record, _head_in(record)
    for path, form in (
        (folder.stage("evaluation") / "metrics.json", _HEAD_IN_METRICS),
        (folder.report, _HEAD_IN_REPORT),
    ):
        # Nothing private rests on these two: one without a head, whatever it is, can be made anew.
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if found := form.search(text):
            yield path, found[1]


def releases(folder: RunFolder) -> dict[str, Path]:
    """The released files of the finished stages, by stage."""
    return {name: path for name in RELEASES if (path := folder.release(name)).exists()}


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


def _head_in(path: Path) -> object:
    """The ledger's head in a JSON file, at its top or in its `state`; None if there is none.

    Raises:
        UserError: the file is no JSON object.
    """
    value = durable.read_record(path)
    state = value.get("state", value)
    return state.get("ledger_head") if isinstance(state, dict) else None
