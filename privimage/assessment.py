"""The command `evaluate`: measures the images of a run, or of any image set, on real ones."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from privimage import data, durable, evaluate, recipe, stages, summary
from privimage.data import ImageSet, ImageShape
from privimage.data.decode import look
from privimage.data.formats import open_source
from privimage.dp import History, Ledger
from privimage.errors import UserError
from privimage.pipeline import Machine
from privimage.progress import Reporter
from privimage.recipe import Recipe
from privimage.release import privacy_statement
from privimage.run import RunFolder
from privimage.stages import SYNTHETIC_ROLE, Run


def assess(
    target: Path,
    overrides: Mapping[str, Any],
    machine: Machine,
    reporter: Reporter,
    result: Path | None = None,
) -> None:
    """Measures the images at `target` and says what was found; a run's folder stays as it is.

    Only what lies outside ε (`evaluation.ceiling`, `evaluation.sensitive_duplicates`) writes into a
    run: a line of its ledger, before the sensitive images are touched.

    Args:
        target: a run's folder, whose recipe is then taken, or an image set.
        overrides: dotted names of recipe values, such as {"data.test": "test.parquet"}.
        machine: device and threads.
        reporter: the terminal and the clock.
        result: JSON file to write, in the structure of metrics.json.

    Raises:
        UserError: a mistake, found before anything is computed.
        Stopped: the reporter asked for it; nothing is kept.
    """
    folder = RunFolder(target)
    is_run = (target / "recipe.toml").exists()
    chosen = recipe.override(folder.recipe() if is_run else _recipe_of(target), overrides)
    if not chosen.data.test:
        raise UserError("no real images to test on; name them with --test PATH")
    run = Run(chosen, folder, reporter, machine.workers(), machine.torch_device())
    if is_run:
        synthetic = _made_by(run)
    else:
        names = chosen.data.classes or None
        synthetic = data.load_sensitive(str(target), run.shape, names, SYNTHETIC_ROLE)
        run.declared = {"names": list(synthetic.names), "public_size": 0}
    settings = chosen.evaluation
    with ExitStack() as stack:
        ledger = None
        if is_run and (settings.ceiling or settings.sensitive_duplicates):
            unit = History.read(folder.ledger).unit
            ledger = stack.enter_context(Ledger(folder.ledger, unit))
        found = stages.assess(run, synthetic, None, ledger)
    if result is not None:
        promise = privacy_statement(History.read(folder.ledger)) if is_run else {}
        durable.write_json(result, promise | evaluate.as_json(found))
    summary.say_evaluation(found, reporter)


def _made_by(run: Run) -> ImageSet:
    """The synthetic images of a finished run."""
    if not run.folder.is_done("synthetic"):
        raise UserError(f"{run.folder.path}: this run has made no synthetic images yet")
    return stages.made_images(run)


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
