"""What is promised for everything that a run's private stages have released, from its ledger."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from privimage.dp import History
from privimage.promise import epsilon_sentence

_NEVER_COVERED = (
    "several runs on the same people, or anything else released about them: each has an ε of its "
    "own, and together they promise less than any one of them (`privimage ledger compose`)",
    "what is true of the sensitive images as a group: the synthetic ones are meant to show it",
    "how long the run took and how much memory and power it used",
    "the test images and the public ones: whoever began the run declared them public, and figures "
    "on the test images carry no noise",
    "anything that somebody computed on the sensitive images outside this run",
)
_ONE = {"image": "an image", "person": "a person"}
_MANY_IMAGES = (
    "a person with several images: the promise is for one image, and weaker for all images of one "
    "person (`privimage budget --group-size`); `privimage train --unit person` protects the person"
)
_AS_NAMED = (
    "a person under two names, who counts as two, and a person seen in somebody else's image"
)


def privacy_statement(history: History, recipe_sha256: str | None = None) -> dict[str, Any]:
    """The promise as JSON; ε is null where nothing is promised.

    `epsilon` is the upper bound of the accountants; `outside_epsilon` is what lies outside it. What
    leaves a run states the recipe's hash as well.

    Raises:
        UserError: the ledger holds no plan, or the accountants disagree.
    """
    plan, reasons = history.plan_in_force(), history.not_private_because
    statement = {
        "epsilon": None if reasons else history.epsilon(plan.delta).upper,
        "delta": plan.delta,
        "unit": history.unit,
        "adjacency": history.adjacency,
        "private": not reasons,
        "not_private_because": reasons,
        "outside_epsilon": history.outside_epsilon,
        "accountant": _accountant(),
        "ledger_head": history.head,
    }
    return statement if recipe_sha256 is None else statement | {"recipe_sha256": recipe_sha256}


def promise(statement: Mapping[str, Any]) -> str:
    """What a statement promises, in a sentence."""
    return epsilon_sentence(statement["epsilon"], statement["delta"], statement["unit"])


def not_covered(statement: Mapping[str, Any]) -> list[str]:
    """What the ε of a statement does not cover, a sentence each; the run's own cases first.

    Nothing, where there is no ε that could cover anything.
    """
    if not statement["private"]:
        return []
    own = [f"computed in this run without noise: {what}" for what in statement["outside_epsilon"]]
    replaced = (
        f"{_ONE[statement['unit']]} replaced by another rather than added or removed: ε is then "
        "about twice as large (`privimage ledger verify` states it)"
    )
    other_images = _MANY_IMAGES if statement["unit"] == "image" else _AS_NAMED
    return [*own, replaced, other_images, *_NEVER_COVERED]


def _accountant() -> str:
    used, second = (f"{name} {version(name)}" for name in ("prv-accountant", "dp-accounting"))
    return f"{used} (upper bound), {second} in agreement"
