"""The seven stages in their order, and which of them a call is about."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privimage.dp import Ledger
from privimage.errors import UserError, check_choice
from privimage.pipeline import stages
from privimage.recipe import Recipe
from privimage.run.context import Run
from privimage.run.folder import RunFolder

_SHAPE = ("data.image_size", "data.channels")
_PUBLIC = ("data.public", *_SHAPE, "seed")
_SENSITIVE = ("data.sensitive", "data.classes", "data.public_size", "data.person", "privacy.unit")

Work = Callable[[Run, Path, Ledger], None]


@dataclass(frozen=True)
class Stage:
    """A stage's name, the command that does it alone, its work, and what it reads.

    Attributes:
        reads: the recipe's values.
        inputs: stages whose results no ledger ties to it.
    """

    name: str
    command: str
    work: Work
    reads: tuple[str, ...]
    inputs: tuple[str, ...] = ()


def _without_ledger(work: Callable[[Run, Path], None]) -> Work:
    """The work of a stage that sees no sensitive image, and so has nothing to ask the ledger."""

    @functools.wraps(work)
    def do(run: Run, folder: Path, _: Ledger) -> None:
        work(run, folder)

    return do


STAGES = (
    Stage("classifier", "classify", _without_ledger(stages.classify), (*_PUBLIC, "classifier")),
    Stage("query", "query", stages.query, (*_SENSITIVE, *_SHAPE, "query")),
    Stage(
        "selection",
        "select",
        _without_ledger(stages.select),
        ("data.public", "data.classes", "selection"),
        ("query",),
    ),
    Stage(
        "pretrain",
        "pretrain",
        _without_ledger(stages.pretrain_network),
        (*_PUBLIC, "data.classes", "network", "pretrain"),
        ("selection",),
    ),
    Stage(
        "finetune",
        "finetune",
        stages.finetune_network,
        (*_SENSITIVE, *_SHAPE, "selection.mode", "network", "privacy", "finetune"),
    ),
    Stage("synthetic", "synthesize", stages.synthesise_images, ("seed", "synthesis")),
    Stage(
        "evaluation",
        "evaluate",
        stages.evaluate_images,
        ("seed", "data.test", *_SHAPE, "evaluation"),
    ),
)


@dataclass(frozen=True)
class Scope:
    """Which stages a call is about; by default all that are not done yet.

    Attributes:
        from_stage: forget this stage and the later ones first; what they cost stays spent.
        until: the last stage to do.
        only: the one stage to do; those before it must be done.
    """

    from_stage: str | None = None
    until: str | None = None
    only: str | None = None


ALL = Scope()


@dataclass(frozen=True)
class Todo:
    """The stages of a recipe, those that a call is about, and names: to forget first, to do."""

    whole: list[Stage]
    order: list[Stage]
    repeated: list[str]
    missing: list[str]


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a run of `recipe` goes through.

    Without pre-training there is nothing to select; with all classes there is nothing to ask, and
    nothing that the classifier is needed for.
    """
    left_out = {
        "semantic": set[str](),
        "all": {"classifier", "query"},
        "none": {"classifier", "query", "selection", "pretrain"},
    }[recipe.selection.mode]
    return [stage for stage in STAGES if stage.name not in left_out]


def schedule(recipe: Recipe, folder: RunFolder, scope: Scope) -> Todo:
    """What a call is about.

    Raises:
        UserError: a stage is none of the recipe's, or one before `scope.only` is not done.
    """
    whole = stages_of(recipe)
    names = [stage.name for stage in whole]
    last, first = len(whole), len(whole)
    if scope.until is not None:
        last = _place("--until", scope.until, whole) + 1
    if scope.from_stage is not None:
        first = _place("--from-stage", scope.from_stage, whole)
    if scope.only is not None:
        if scope.only not in names:
            raise UserError(f"--selection {recipe.selection.mode} has no stage '{scope.only}'")
        last = names.index(scope.only) + 1
        _refuse_gaps(folder, whole[:last])
    order, repeated = whole[:last], names[first:]
    missing = [
        stage.name for stage in order if stage.name in repeated or not folder.is_done(stage.name)
    ]
    return Todo(whole, order, repeated, missing)


def _place(option: str, wanted: str, whole: list[Stage]) -> int:
    """Where the stage is that `wanted` names, or the command of which it is."""
    names = [stage.name for stage in whole]
    name = {stage.command: stage.name for stage in whole}.get(wanted, wanted)
    check_choice(option, name, names)
    return names.index(name)


def _refuse_gaps(folder: RunFolder, order: list[Stage]) -> None:
    """Raises UserError if a stage before the last one of `order` is not done."""
    *before, wanted = order
    for stage in before:
        if not folder.is_done(stage.name):
            raise UserError(
                f"{folder.path}: '{stage.name}' comes before '{wanted.name}' and is not done; "
                f"`privimage {stage.command}` does it, `privimage train --until {wanted.name}` all "
                "that is missing"
            )
