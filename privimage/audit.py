"""A run's folder held against its ledger, for anybody who wants to check what is claimed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privimage import dp, durable
from privimage.dp import History, Ledger, Made, Selftest
from privimage.promise import epsilon_sentence
from privimage.run import results, vouching
from privimage.run.folder import RunFolder


def show(path: Path) -> Iterator[str]:
    """The run's ledger in lines that a person reads.

    Raises:
        UserError: there is no run, or its ledger is damaged.
    """
    return dp.narrate(History.read(_folder(path).ledger))


def verify(path: Path) -> dict[str, Any]:
    """Recomputes a run's ε from its ledger and holds it against what the run has made.

    Returns:
        `dp.Verification` as JSON; `epsilon` is the upper bound, null where there is none. With
        the `ledger_head`, and the `recipe_sha256` that the data card states.

    Raises:
        UserError: there is no run, or its ledger is damaged.
    """
    folder = _folder(path)
    recipe = folder.recipe()
    # Read before the ledger, which a run in progress extends first.
    heads = list(vouching.heads(folder))
    hashes = {name: durable.sha256(file) for name, file in vouching.releases(folder).items()}
    votes = recipe.query.votes_per_image if recipe.selection.mode == "semantic" else None
    result = dp.verify(folder.ledger, Made(_optimizer_steps(folder), hashes, votes))
    changed = [f"{file} is not what its stage wrote" for file in folder.changed_files()]
    changed += [
        f"{stage} was made from another '{name}' than the one in this run"
        for stage, name in folder.foreign_inputs()
    ]
    history = History.read(folder.ledger)
    changed += [
        f"{file} was made under a ledger that is newer than this one, or another run's"
        for file, head in heads
        if not history.knows(head)
    ]
    if recipe.privacy.unit != result.unit:
        changed.append(f"the run is by {recipe.privacy.unit}, its ledger by {result.unit}")
    bounds = result.epsilon
    fields = asdict(result) | {
        "epsilon": bounds.upper,
        "epsilon_lower": bounds.lower,
        "epsilon_estimate": bounds.estimate,
        "problems": [*result.problems, *changed],
        "ledger_head": history.head,
        "recipe_sha256": recipe.sha256,
    }
    return {name: _finite(value) for name, value in fields.items()}


def compose(paths: Sequence[Path], delta: float | None = None) -> dict[str, Any]:
    """The joint ε of several runs on the same people, at one δ.

    Returns:
        `dp.JointPromise` as JSON, with the `runs` and a `sentence`.

    Raises:
        UserError: there is no run, a ledger is damaged, or the runs can't be composed.
    """
    result = dp.compose([_folder(path).ledger for path in paths], delta)
    promise = epsilon_sentence(result.epsilon, result.delta, result.unit)
    sentence = f"All {len(paths)} runs together: {promise}"
    return {**asdict(result), "runs": [str(path) for path in paths], "sentence": sentence}


def check_run(path: Path) -> None:
    """Raises UserError unless there is a run at `path` with a ledger that can be read."""
    History.read(_folder(path).ledger)


def record_selftest(path: Path, selftest: Selftest) -> None:
    """Writes into the ledger of the run at `path` what its machine was checked for.

    Raises:
        UserError: there is no run or no ledger, it is damaged, or another process works on it.
    """
    ledger = _folder(path).ledger
    with Ledger(ledger, History.read(ledger).unit) as open_ledger:
        open_ledger.record_selftest(selftest)


def _folder(path: Path) -> RunFolder:
    """The run at `path`; one without a recipe is no run."""
    folder = RunFolder(path)
    folder.recipe()
    return folder


def _optimizer_steps(folder: RunFolder) -> int:
    """Fine-tuning steps that the newest weights have taken."""
    if (taken := results.steps_taken(folder)) is not None:
        return taken
    records = folder.checkpoints("finetune").glob("step-*.json")
    return max(
        (int(durable.read_record(record, step=int)["step"]) for record in records), default=0
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value
