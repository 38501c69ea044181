"""Which files of a run its ledger must vouch for, and which facts it was paid for."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from privimage import durable
from privimage.dp import History
from privimage.errors import UserError
from privimage.recipe import Recipe
from privimage.run.context import Run
from privimage.run.folder import RELEASES, STAGE_NAMES, RunFolder

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


def _head_in(path: Path) -> object:
    """The ledger's head in a JSON file, at its top or in its `state`; None if there is none.

    Raises:
        UserError: the file is no JSON object.
    """
    value = durable.read_record(path)
    state = value.get("state", value)
    return state.get("ledger_head") if isinstance(state, dict) else None
