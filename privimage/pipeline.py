"""The seven stages in order: what is skipped, resumed or refused."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from privimage import data, durable, spending, stages, summary
from privimage.dp import DEFAULT_MEMORY, Gaussian, History, Ledger, Mechanism, Plan
from privimage.errors import UserError, check_choice, check_count, check_positive
from privimage.forecast import Forecast, forecast, in_words
from privimage.progress import Reporter
from privimage.recipe import Recipe
from privimage.report import write_report
from privimage.run import RunFolder
from privimage.semantics.query import check_votes
from privimage.semantics.selection import check_enough_classes
from privimage.stages import Run
from privimage.threads import Workers

_SHAPE = ("data.image_size", "data.channels")
_PUBLIC = ("data.public", *_SHAPE, "seed")
_SENSITIVE = ("data.sensitive", "data.classes", "data.public_size", "data.person", "privacy.unit")
_LEAST_FREE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Machine:
    """How fast a run goes and what it takes, and nothing of what it computes but its rounding.

    Attributes:
        device: cpu or cuda; None for what is there.
        threads: None for all cores.
        max_memory: MB by which a micro-batch of DP fine-tuning, one a thread, may grow the process.
    """

    device: str | None = None
    threads: int | None = None
    max_memory: float | None = None

    def torch_device(self) -> torch.device:
        """The device, by default what is there.

        Raises:
            UserError: it is not known, or not there.
        """
        wanted = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_choice("--device", wanted, ("cpu", "cuda"))
        if wanted == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this torch sees no GPU; use --device cpu")
        return torch.device(wanted)

    def workers(self) -> Workers:
        """As many as there are threads, by default the machine's cores.

        Raises:
            UserError: there are none.
        """
        if self.threads is not None:
            check_count("--threads", self.threads)
        return Workers(self.threads)

    def memory(self) -> float:
        """Bytes for a micro-batch of DP fine-tuning.

        Raises:
            UserError: none are.
        """
        if self.max_memory is None:
            return DEFAULT_MEMORY
        check_positive("--max-memory", self.max_memory)
        return 1e6 * self.max_memory


@dataclass(frozen=True)
class Stage:
    """A stage's name, its work, and the recipe values that decide its result."""

    name: str
    work: Callable[[Run, Path, Ledger], None]
    reads: tuple[str, ...]


STAGES = (
    Stage("classifier", stages.classify, (*_PUBLIC, "classifier")),
    Stage("query", stages.query, (*_SENSITIVE, *_SHAPE, "query")),
    Stage("selection", stages.select, ("selection",)),
    Stage("pretrain", stages.pretrain_network, (*_PUBLIC, "network", "pretrain")),
    Stage(
        "finetune",
        stages.finetune_network,
        (*_SENSITIVE, *_SHAPE, "network", "privacy", "finetune"),
    ),
    Stage("synthetic", stages.synthesise_images, ("seed", "synthesis")),
    Stage("evaluation", stages.evaluate_images, ("seed", "data.test", *_SHAPE, "evaluation")),
)


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


def train(
    recipe: Recipe,
    path: Path,
    machine: Machine,
    reporter: Reporter,
    from_stage: str | None = None,
    until: str | None = None,
) -> None:
    """Runs the stages that are not done yet; the same call goes on after any interruption.

    Args:
        recipe: what to compute.
        path: the run folder; created if missing.
        machine: device and threads.
        reporter: the terminal and the clock.
        from_stage: forget this stage and the later ones first; what they cost stays spent.
        until: the last stage to do; None for all.

    Raises:
        UserError: a mistake, found as early as it can be.
        Stopped: the reporter asked for it; nothing is lost.
    """
    whole = stages_of(recipe)
    order = _up_to(whole, until)
    repeated = _repeated(whole, from_stage)
    folder = RunFolder(path)
    for stage in order:
        if stage not in repeated:
            folder.refuse_changes(stage.name, recipe, stage.reads)
    spending.refuse_without_ledger(folder)
    run = Run(recipe, folder, reporter, machine.workers(), machine.torch_device(), machine.memory())
    missing = _missing(order, repeated, folder)
    _check_before_touching(run, missing)
    durable.make_folder(path)
    with Ledger(folder.ledger, recipe.privacy.unit) as ledger:
        spending.refuse_other_persons(folder, recipe, ledger)
        spending.refuse_foreign_files(folder, ledger)
        names = [stage.name for stage in missing]
        if {"query", "finetune"} & {*names}:
            spending.settle(run, ledger, names, [stage.name for stage in repeated])
            folder.write_declared(run.declared)
        folder.write_recipe(recipe)
        folder.forget([stage.name for stage in repeated])
        if missing:
            summary.describe(run, ledger)
        for number, stage in enumerate(order, start=1):
            if stage not in missing:
                reporter.say(f"{number}/{len(order)} {stage.name}: done before")
                continue
            reporter.say(f"{number}/{len(order)} {stage.name}", style="bold")
            with folder.work(stage.name, recipe, stage.reads) as partial:
                stage.work(run, partial, ledger)
        if not folder.is_done("evaluation"):
            return
        summary.conclude(run, ledger)
        if missing or not (path / "report.html").exists():
            write_report(path)


def dry_run(
    recipe: Recipe, path: Path, machine: Machine, reporter: Reporter
) -> tuple[Plan, Forecast]:
    """Says what `train` would do, what it would cost, and how long it would take; writes nothing.

    Raises:
        UserError: as `train`.
    """
    order, folder = stages_of(recipe), RunFolder(path)
    for stage in order:
        folder.refuse_changes(stage.name, recipe, stage.reads)
    run = Run(recipe, folder, reporter, machine.workers(), machine.torch_device(), machine.memory())
    missing = _missing(order, [], folder)
    _check_before_touching(run, missing)
    names = [stage.name for stage in missing]
    noise, plan, spent = None, None, list[Mechanism]()
    if folder.ledger.exists():
        history = History.read(folder.ledger)
        plan, spent = history.plan, history.spent()
    if recipe.selection.mode == "semantic":
        noise = recipe.query.noise_multiplier(recipe.privacy.epsilon)
    if plan is None or {"query", "finetune"} <= {*names}:
        asked = [Gaussian(noise)] if noise is not None and "query" in names else []
        plan = spending.calibrated(recipe, noise, [*spent, *asked])
    for stage in order:
        reporter.say(f"{stage.name:<12} {'to do' if stage in missing else 'done before'}")
    found = forecast(run, run.public_size)
    summary.say_plan(run, plan, recipe.privacy.unit)
    for line in in_words(found):
        reporter.say(line)
    return plan, found


def _missing(order: list[Stage], repeated: list[Stage], folder: RunFolder) -> list[Stage]:
    return [stage for stage in order if stage in repeated or not folder.is_done(stage.name)]


def _up_to(order: list[Stage], until: str | None) -> list[Stage]:
    """The stages up to `until`; all of them if it is None."""
    if until is None:
        return order
    names = [stage.name for stage in order]
    check_choice("--until", until, names)
    return order[: names.index(until) + 1]


def _repeated(order: list[Stage], from_stage: str | None) -> list[Stage]:
    """The stages to forget: `from_stage` and those after it."""
    if from_stage is None:
        return []
    names = [stage.name for stage in order]
    check_choice("--from-stage", from_stage, names)
    return order[names.index(from_stage) :]


def _check_before_touching(run: Run, missing: list[Stage]) -> None:
    """Finds what is wrong with recipe, public data, disk and declarations before any privacy cost.

    Raises:
        UserError: says what.
    """
    settings, names = run.recipe.data, {stage.name for stage in missing}
    if not settings.sensitive:
        raise UserError("no sensitive images given; name them with --sensitive PATH")
    if run.recipe.selection.mode != "none" and not settings.public:
        raise UserError(
            "no public images given; name them with --public PATH, or use --selection none"
        )
    _check_disk(run.folder.path)
    if kind := durable.network_file_system(run.folder.path):
        run.reporter.warn(
            f"{run.folder.path} is on a network file system ({kind}), where the ledger's lock and "
            "its writes may not hold; start the run on one machine only, or use a local disk"
        )
    data.check_source("--sensitive", settings.sensitive, settings.person_key)
    data.check_source("--public", settings.public)
    data.check_source("--test", settings.test)
    if {"query", "finetune"} & names:
        _declare(run)
        # Building the shape is the check.
        _ = run.network_shape
    if {"classifier", "pretrain"} & names:
        # Loading is the check: an empty, unlabelled or one-class set is refused here.
        len(run.public)
    if run.recipe.selection.mode == "semantic" and "query" in names:
        check_votes(run.recipe.query, len(run.public.names))
        labels = max(len(run.names), 1)
        check_enough_classes(labels, len(run.public.names), run.recipe.selection.classes_per_label)
    if "evaluation" in names:
        _check_evaluation(run)


def _check_evaluation(run: Run) -> None:
    """Loading is the check, of the test images and of the features' weights."""
    settings = run.recipe.evaluation
    if run.recipe.data.test:
        len(run.test)
        if settings.features:
            stages.load_features(run)
    elif settings.ceiling:
        raise UserError("evaluation.ceiling needs images to test on; name them with --test PATH")


def _declare(run: Run) -> None:
    """Writes down what is public about the sensitive set, and checks δ against its size."""
    settings, privacy = run.recipe.data, run.recipe.privacy
    size, delta = settings.public_size or len(run.sensitive.by_unit()), privacy.delta
    if delta >= 1 / size:
        raise UserError(
            f"delta is {delta:g}, but must lie below 1 / {size} (one over the number of sensitive "
            f"{privacy.unit}s): give --delta, such as {1 / (size * math.log(max(size, 3))):.0e}"
        )
    run.declared = {
        "names": list(run.sensitive.names),
        "public_size": size,
        "public_size_was_declared": settings.public_size > 0,
        "unit": privacy.unit,
        "person": settings.person,
    }


def _check_disk(path: Path) -> None:
    """Refuses a folder that can't be created or has no room, before any work is done for it."""
    parent = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: no permission to write in '{parent}'; choose another --out")
    if shutil.disk_usage(parent).free < _LEAST_FREE_BYTES:
        raise UserError(f"{path}: less than {_LEAST_FREE_BYTES >> 20} MB free on its disk")
