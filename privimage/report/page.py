"""Puts a run's facts, and nothing that its ε does not cover without saying so, on one HTML page."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from privimage import audit, dp, durable, evaluate
from privimage.data import ImageShape
from privimage.dp import History
from privimage.errors import UserError
from privimage.promise import rounded_up
from privimage.recipe import Recipe
from privimage.release import not_covered, privacy_statement, promise
from privimage.report import deeds, facts, pictures
from privimage.run import results
from privimage.run.folder import RunFolder

# Where the sensitive images lie is nobody's business.
_PLACES = ("data.sensitive", "data.public", "data.test")


def write_report(path: Path) -> Path:
    """Writes `report.html` into the run folder at `path`: self-contained, without scripts.

    Everything on it follows from what the run has released (post-processing) or from public images,
    but for times and memory, which are labelled.

    Returns:
        The file.

    Raises:
        UserError: there is no run, it has no synthetic images yet, or its ledger is damaged.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    if not folder.is_done("synthetic"):
        raise UserError(f"{path}: there are no synthetic images yet; go on with train")
    environment = Environment(
        loader=PackageLoader("privimage.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(_values(folder, recipe))
    # A folder's name, which a class may have, need not be UTF-8.
    durable.write_bytes(folder.report, page.encode(errors="replace"))
    return folder.report


def _values(folder: RunFolder, recipe: Recipe) -> dict[str, Any]:
    history = History.read(folder.ledger)
    statement = privacy_statement(history)
    declared = folder.declared()
    names = tuple(declared["names"])
    shape = ImageShape(recipe.data.image_size, recipe.data.channels)
    plan = history.plan_in_force()
    found = results.evaluation(folder)
    return {
        "name": folder.path.absolute().name,
        "version": version("privimage"),
        "day": history.entries[-1].time[:10],
        "statement": statement,
        "rounded_up": rounded_up,
        "sentence": promise(statement),
        "not_covered": not_covered(statement),
        "declared": declared,
        "names": names,
        "recipe": recipe,
        "plan": plan,
        "deeds": list(deeds.deeds(folder, statement, found)),
        "looks_outside": deeds.looks_outside(found),
        "epsilon_picture": _epsilon_picture(history, statement, plan.epsilon),
        "loss_picture": _loss_picture(folder),
        "query": facts.query_rows(folder, names),
        "fell_back": deeds.FELL_BACK if deeds.fell_back(folder) else "",
        "noise_std": results.query_noise_std(folder) if folder.is_done("query") else None,
        "synthetic": facts.synthetic_rows(folder, shape, names),
        "count": recipe.synthesis.count(len(names)),
        "metrics": [] if found is None else list(facts.metrics(found)),
        "said_of_metrics": [] if found is None else list(evaluate.sentences(found)),
        "costs": list(facts.costs(folder)),
        "verification": audit.verify(folder.path),
        "story": list(dp.narrate(history)),
        "values": {k: v for k, v in recipe.flat().items() if k not in _PLACES},
        "recipe_sha256": recipe.sha256,
    }


def _epsilon_picture(history: History, statement: dict[str, Any], limit: float) -> Any:
    if not statement["private"]:
        return None
    steps, epsilons = facts.epsilon_curve(history)
    labels = ("fine-tuning steps reserved", f"ε at δ = {statement['delta']}")
    return pictures.curve("epsilon", steps, epsilons, labels, limit)


def _loss_picture(folder: RunFolder) -> Any:
    steps, losses = results.pretraining_losses(folder)
    if not steps:
        return None
    return pictures.curve("loss", steps, losses, ("pre-training steps", "loss, public images"))
