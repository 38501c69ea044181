"""Runs the stages of a recipe that are not done, or says what that would cost and take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from privimage import durable
from privimage.dp import History, Ledger, Plan, usual_memory
from privimage.errors import UserError, check_choice, check_count, check_positive
from privimage.pipeline import preflight, summary
from privimage.pipeline.forecast import Forecast, forecast, in_words
from privimage.pipeline.schedule import ALL, Scope, Todo, schedule
from privimage.progress import Reporter, Stopped
from privimage.recipe import Recipe
from privimage.report import write_report
from privimage.run import spending, vouching
from privimage.run.context import Run
from privimage.run.folder import RunFolder
from privimage.threads import Workers

DEVICES = ("cpu", "cuda")
_WITHOUT = "nothing is lost. Run it again without --from-stage to go on; with it, all begins anew."


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
        check_choice("--device", wanted, DEVICES)
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
        """Bytes for a micro-batch of DP fine-tuning, by default half of what a GPU has free.

        Raises:
            UserError: none are.
        """
        if self.max_memory is None:
            return usual_memory(self.torch_device())
        check_positive("--max-memory", self.max_memory)
        return 1e6 * self.max_memory


def train(
    recipe: Recipe, path: Path, machine: Machine, reporter: Reporter, scope: Scope = ALL
) -> None:
    """Runs the stages that are not done yet; the same call goes on after any interruption.

    Args:
        recipe: what to compute.
        path: the run folder; created if missing.
        machine: device and threads.
        reporter: the terminal and the clock.
        scope: which stages.

    Raises:
        UserError: a mistake, found as early as it can be.
        Stopped: the reporter asked for it; nothing is lost.
    """
    run, todo = _prepared(recipe, path, machine, reporter, scope)
    folder = run.folder
    durable.make_folder(path)
    with Ledger(folder.ledger, recipe.privacy.unit) as ledger:
        if _todo(recipe, folder, scope) != todo:
            raise UserError(
                f"{path}: another process has worked on this run meanwhile; start again to go on "
                "with what it left to do"
            )
        if (plan := _settled(run, ledger, todo)) is not None:
            ledger.set_plan(plan)
        folder.write_declared(run.declared)
        folder.write_recipe(recipe)
        if todo.missing or todo.repeated:
            # It would go on stating the ε of before, beside other images.
            durable.remove_file(folder.report)
        folder.forget(todo.repeated)
        if todo.missing:
            summary.describe(run, ledger)
            if not reporter.quiet:
                _say_forecast(run, forecast(run, todo.missing))
        for number, stage in enumerate(todo.whole, start=1):
            title = f"{number}/{len(todo.whole)} {stage.name}"
            if stage.name in todo.missing:
                reporter.say(title, style="bold")
                with (
                    _saying_how_to_go_on(scope),
                    spending.saying_what_stays_spent(ledger),
                    folder.work(stage.name, recipe, stage.reads, stage.inputs) as partial,
                ):
                    stage.work(run, partial, ledger)
            elif stage in todo.order:
                reporter.say(f"{title}: done before")
        if not folder.is_done("evaluation"):
            return
        summary.conclude(run, ledger)
        if not folder.report.exists():
            write_report(path)


@contextmanager
def _saying_how_to_go_on(scope: Scope) -> Iterator[None]:
    """Says of a stop or a mistake in this block what the same command would undo."""
    try:
        yield
    except Stopped as stopped:
        if scope.from_stage is None:
            raise
        raise Stopped(str(stopped), _WITHOUT) from None
    except UserError as error:
        if scope.from_stage is None:
            raise
        raise UserError(
            f"{error}; without --from-stage this time, which would forget again what is done"
        ) from error


def dry_run(
    recipe: Recipe, path: Path, machine: Machine, reporter: Reporter, scope: Scope = ALL
) -> tuple[Plan | None, Forecast]:
    """Says what `train` would do, what it would cost, and how long it would take; writes nothing.

    Returns:
        What may be spent, None if none of the stages spends anything; and the forecast.

    Raises:
        UserError: as `train`.
    """
    run, todo = _prepared(recipe, path, machine, reporter, scope)
    ledger = run.folder.ledger
    plan = _settled(run, History.read(ledger) if ledger.exists() else None, todo)
    summary.say_sets(run, recipe.privacy.unit)
    for stage in todo.order:
        is_missing = stage.name in todo.missing
        reporter.say(f"{stage.name:<12} {'to do' if is_missing else 'done before'}")
    if plan is not None:
        summary.say_plan(run, plan, recipe.privacy.unit)
    found = forecast(run, todo.missing)
    _say_forecast(run, found)
    return plan, found


def _settled(run: Run, history: History | None, todo: Todo) -> Plan | None:
    """What may be spent on what is to be done; None if that spends nothing.

    Raises:
        UserError: this run may not go on so, whatever it would cost.
    """
    if history is not None:
        history.check_unit(run.recipe.privacy.unit)
        vouching.refuse_other_persons(run.folder, run.recipe, history)
        vouching.refuse_foreign_files(run.folder, history)
    vouching.refuse_other_facts(run, history, todo.repeated)
    # With --until, more may be forgotten than is done.
    spending.refuse_paid_twice(run, history, todo.repeated)
    if not preflight.PRIVATE & {*todo.missing}:
        return None
    return spending.settled(run, history, todo.missing, todo.repeated)


def _say_forecast(run: Run, found: Forecast) -> None:
    for line in in_words(found):
        run.reporter.say(line)


def _prepared(
    recipe: Recipe, path: Path, machine: Machine, reporter: Reporter, scope: Scope
) -> tuple[Run, Todo]:
    """What is to be done, after all was checked that can be before the ledger is opened."""
    folder = RunFolder(path)
    todo = _todo(recipe, folder, scope)
    run = Run(recipe, folder, reporter, machine.workers(), machine.torch_device(), machine.memory())
    folder.refuse_strangers()
    vouching.refuse_without_ledger(folder)
    preflight.check(run, todo.missing)
    return run, todo


def _todo(recipe: Recipe, folder: RunFolder, scope: Scope) -> Todo:
    """What is to be done, on top of stages that were made or begun as the recipe wants them."""
    todo = schedule(recipe, folder, scope)
    for stage in todo.order:
        if stage.name not in todo.repeated:
            folder.refuse_changes(stage.name, recipe, stage.reads)
    return todo
