"""What each stage of a run did, in a sentence, and what it saw of the sensitive images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from privimage.evaluate import Evaluation
from privimage.run import results
from privimage.run.folder import STAGE_NAMES, RunFolder

FELL_BACK = "The counts did not rise above the noise, so all public classes were used."
_PUBLIC, _RELEASED = "public images only", "sees only what was released before"
_UNTESTED = "There were no test images; the synthetic images were"


@dataclass(frozen=True)
class Deed:
    """What a stage did.

    Attributes:
        text: a sentence.
        tag: what it saw.
        look: of the tag: "paid" with ε, "outside" ε, or "".
    """

    text: str
    tag: str
    look: str = ""


def deeds(
    folder: RunFolder, statement: Mapping[str, Any], found: Evaluation | None
) -> Iterator[Deed]:
    """What the stages that are done did, in order.

    Args:
        folder: the run's.
        statement: `privacy_statement` of its ledger.
        found: by the evaluation; None before there was one.
    """
    told = {
        "classifier": Deed("A classifier learnt the classes of the public images.", _PUBLIC),
        "query": _query(statement),
        "selection": Deed(_selection(folder, statement), _RELEASED),
        "pretrain": Deed(
            "A diffusion network learnt to draw the chosen public images.",
            "public images, and what was released before",
        ),
        "finetune": _finetune(statement),
        "synthetic": Deed("The network drew the synthetic images.", _RELEASED),
        "evaluation": _evaluation(statement, found),
    }
    return (told[name] for name in STAGE_NAMES if folder.is_done(name))


def fell_back(folder: RunFolder) -> bool:
    """Whether the query's counts chose nothing."""
    return folder.is_done("selection") and results.selection(folder).fell_back


def looks_outside(found: Evaluation | None) -> bool:
    """Whether an evaluation holds figures of the sensitive images."""
    return found is not None and (found.ceiling or found.sensitive_duplicates) is not None


def _sees(statement: Mapping[str, Any], text: str) -> Deed:
    """Of a stage that the ledger has paid for."""
    if statement["private"]:
        return Deed(text, "sees sensitive images, paid for with ε", "paid")
    return Deed(text, "sees sensitive images, nothing hides them", "outside")


def _query(statement: Mapping[str, Any]) -> Deed:
    text = "Each sensitive image voted for the public classes that it resembles"
    if statement["private"]:
        text += "; "
        if statement["unit"] == "person":
            text += "a person's votes together count at most as those of one image, and "
        text += "the counts were released with noise"
    return _sees(statement, f"{text}.")


def _finetune(statement: Mapping[str, Any]) -> Deed:
    text = "The network was fine-tuned on the sensitive images"
    if statement["private"]:
        text += f": every {statement['unit']}'s influence on a step was clipped, and noise added"
    return _sees(statement, f"{text}.")


def _selection(folder: RunFolder, statement: Mapping[str, Any]) -> str:
    if not folder.is_done("selection"):
        return ""
    facts = results.selection(folder)
    if facts.fell_back:
        return FELL_BACK
    if facts.mode == "all":
        return "All public classes were used."
    noisy = "noisy " if statement["private"] else ""
    return f"For each label the public classes with the highest {noisy}counts were chosen."


def _evaluation(statement: Mapping[str, Any], found: Evaluation | None) -> Deed:
    """What the synthetic images were really held against."""
    tested, compared = "", []
    if found is not None:
        scores, near = found.synthetic, found.synthetic.near_duplicates
        if scores.accuracy or scores.scores or (near and near.n_test):
            tested = "measured on images that their owner declared public"
        elif near:
            compared.append("the public ones")
    if not looks_outside(found):
        if tested:
            return Deed(f"The synthetic images were {tested}.", _PUBLIC)
        if compared:
            return Deed(f"{_UNTESTED} compared with the public ones only.", _PUBLIC)
        return Deed("Nothing was measured.", _RELEASED)
    if tested:
        text = f"The synthetic images were {tested}, and on the sensitive ones without noise."
    else:
        with_ = " and ".join([*compared, "the sensitive ones"])
        text = f"{_UNTESTED} compared with {with_}, without noise."
    if statement["private"]:
        return Deed(text, "sees sensitive images, OUTSIDE ε", "outside")
    return _sees(statement, text)
