"""What the finished stages of a run say in JSON, for later stages and for the report.

Each file is read here alone, and refused in a line where it is not what its stage writes.
"""

from dataclasses import dataclass

from privimage import durable, evaluate
from privimage.errors import UserError
from privimage.evaluate import Evaluation
from privimage.run.folder import RunFolder


@dataclass(frozen=True)
class Chosen:
    """How the public classes were chosen, and which of them for which label.

    Attributes:
        mode: "semantic" or "all".
        fell_back: whether the query's counts chose nothing, so that all classes were used.
        label_of: number of a public class to that of the label which it was chosen for.
        chosen: name of a label to the names of its classes.
        public_classes: the names of all that it chose from; None in runs of earlier versions.
    """

    mode: str
    fell_back: bool
    label_of: dict[int, int]
    chosen: dict[str, list[str]]
    public_classes: tuple[str, ...] | None


def public_classes(folder: RunFolder) -> tuple[str, ...]:
    """The public classes as the classifier knows them."""
    path = folder.stage("classifier") / "classifier.json"
    return tuple(durable.read_record(path, classes=list[str])["classes"])


def query_noise_std(folder: RunFolder) -> float:
    """Standard deviation of the noise on each count of the query."""
    path = folder.stage("query") / "query.json"
    return float(durable.read_record(path, noise_std=float)["noise_std"])


def selection(folder: RunFolder) -> Chosen:
    """What the selection has chosen."""
    facts = durable.read_record(
        folder.stage("selection") / "selection.json",
        mode=str,
        fell_back=bool,
        label_of=dict[int, int],
        chosen=dict[str, list[str]],
        public_classes=list[str] | None,
    )
    known = facts.get("public_classes")
    return Chosen(
        facts["mode"],
        facts["fell_back"],
        {int(number): label for number, label in facts["label_of"].items()},
        facts["chosen"],
        None if known is None else tuple(known),
    )


def pretraining_losses(folder: RunFolder) -> tuple[list[int], list[float]]:
    """Steps and the mean loss on public images up to each; empty if it was not kept."""
    path = folder.stage("pretrain") / "losses.json"
    if not path.exists():
        return [], []
    values = durable.read_record(path, steps=list[int], losses=list[float])
    return values["steps"], values["losses"]


def steps_taken(folder: RunFolder) -> int | None:
    """Steps that the finished fine-tuning has taken; None before."""
    path = folder.stage("finetune") / "finetune.json"
    return int(durable.read_record(path, steps=int)["steps"]) if path.exists() else None


def evaluation(folder: RunFolder) -> Evaluation | None:
    """What the evaluation found; None before there was one.

    Raises:
        UserError: it is of another version.
    """
    path = folder.stage("evaluation") / "metrics.json"
    if not path.exists():
        return None
    values = durable.read_record(path)
    try:
        return evaluate.from_json(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
