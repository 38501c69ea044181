"""The command `evaluate`: measures the images of a run, or of any image set, on real ones."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from privimage import durable, evaluate, pipeline, recipe
from privimage.data import ImageShape
from privimage.data.decode import look
from privimage.data.formats import open_source
from privimage.dp import History, Ledger
from privimage.errors import UserError
from privimage.evaluate import Parts
from privimage.pipeline import measurement, preflight, summary
from privimage.pipeline.measurement import SYNTHETIC_ROLE
from privimage.pipeline.schedule import Scope
from privimage.pipeline.training import Machine
from privimage.progress import Reporter, Stopped
from privimage.recipe import Recipe
from privimage.release import privacy_statement
from privimage.report import write_report
from privimage.run.context import Run
from privimage.run.folder import RunFolder

_NOTHING_KEPT = "nothing of it is kept: with --out FILE the same command would go on."


def assess(
    target: Path,
    overrides: Mapping[str, Any],
    machine: Machine,
    reporter: Reporter,
    result: Path | None = None,
) -> None:
    """Measures the images at `target` and says what was found.

    Of a run whose last stage is still to be done it is that stage, which also measures images from
    before DP fine-tuning. Of any other it leaves the folder as it is; only what lies outside ε
    (`evaluation.ceiling`, `evaluation.sensitive_duplicates`) writes a line of its ledger, before
    the sensitive images are touched, and the report anew.

    Args:
        target: a run's folder, whose recipe is then taken, or an image set.
        overrides: dotted names of recipe values, such as {"data.test": "test.parquet"}.
        machine: device and threads.
        reporter: the terminal and the clock.
        result: JSON file to write, in the structure of metrics.json. Beside it lies what a stopped
            call has finished, for the next one to go on from.

    Raises:
        UserError: a mistake, found before anything is computed.
        Stopped: the reporter asked for it; without `result`, nothing is kept.
    """
    folder = RunFolder(target)
    is_run = (target / "recipe.toml").exists()
    chosen = recipe.override(folder.recipe() if is_run else _recipe_of(target), overrides)
    if not chosen.data.test:
        raise UserError("no real images to test on; name them with --test PATH")
    preflight.refuse_sensitive_as_public(chosen.data)
    if is_run and not folder.is_done("evaluation"):
        pipeline.train(chosen, target, machine, reporter, Scope(only="evaluation"))
        if result is not None:
            metrics = folder.stage("evaluation") / "metrics.json"
            durable.write_bytes(result, metrics.read_bytes())
        return
    run = Run(chosen, folder, reporter, machine.workers(), machine.torch_device())
    if is_run:
        synthetic = measurement.made_images(run)
    else:
        names = chosen.data.classes or None
        synthetic = measurement.load_synthetic(run, str(target), names)
        run.declared = {"names": list(synthetic.names), "public_size": 0}
    kept = None if result is None else result.with_name(f".{result.name}.parts")
    with ExitStack() as stack:
        ledger = None
        if is_run and (chosen.evaluation.ceiling or chosen.evaluation.sensitive_duplicates):
            stack.enter_context(_reported_anew(folder, reporter))
            unit = History.read(folder.ledger).unit
            ledger = stack.enter_context(Ledger(folder.ledger, unit))
        try:
            found = measurement.measure(run, synthetic, None, ledger, Parts(kept))
        except Stopped as stopped:
            raise stopped if kept else Stopped(str(stopped), _NOTHING_KEPT) from None
        if result is not None and kept is not None:
            promise = privacy_statement(History.read(folder.ledger)) if is_run else {}
            durable.write_json(result, promise | evaluate.as_json(found))
            durable.remove_folder(kept)
        summary.say_evaluation(found, reporter)


@contextmanager
def _reported_anew(folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Takes the run's report away while its ledger grows, and then writes it from the ledger.

    So whatever happens, no report leaves out what was computed outside ε.
    """
    durable.remove_file(folder.report)
    try:
        yield
    finally:
        try:
            write_report(folder.path)
        except UserError as error:
            reporter.warn(f"no report was written: {error}")


def _recipe_of(target: Path) -> Recipe:
    """The default recipe, with the form of the first image that can be opened."""
    for entry in open_source(SYNTHETIC_ROLE, target).entries():
        try:
            facts = look(entry.content)
        except (OSError, ValueError):
            continue
        shape = ImageShape(max(facts.width, facts.height), 1 if facts.mode == "L" else 3)
        settings = recipe.DataSettings(image_size=shape.size, channels=shape.channels)
        return Recipe("none", data=settings)
    raise UserError(f"{SYNTHETIC_ROLE}: '{target}' holds no image that can be decoded")
