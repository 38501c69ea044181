"""An evaluation in tables and sentences for a person on a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from privimage.evaluate.result import Estimate, Evaluation, NearDuplicates
from privimage.evaluate.scores import NAMES
from privimage.evaluate.settings import LABELS

Value = TypeVar("Value")

_OUTSIDE = "sensitive images (OUTSIDE ε)"


def accuracy_table(found: Evaluation) -> Table:
    """Accuracies on real test images by kind of classifier, with their intervals."""
    before = found.pretrained
    columns = {
        "before DP fine-tuning": None if before is None else before.accuracy,
        "synthetic": found.synthetic.accuracy,
        _OUTSIDE: found.ceiling,
    }
    shown = {title: column for title, column in columns.items() if column is not None}
    table = _table("accuracy on real test images, by what was trained on (95 % interval)")
    for title in shown:
        table.add_column(title, justify="right")
    for kind, accuracy in in_order(found.synthetic.accuracy, LABELS):
        cells = [_with_interval(column[kind].over_test_images) for column in shown.values()]
        table.add_row(accuracy.label, *cells)
    return table


def in_order(
    found: Mapping[str, Value] | None, order: Iterable[str]
) -> Iterator[tuple[str, Value]]:
    """The items of what was found, by the order that people know."""
    yield from ((name, found[name]) for name in order if found and name in found)


def score_table(found: Evaluation) -> Table:
    """Scores of all images, and beside real images at the same N."""
    scores = found.synthetic.scores or {}
    before = found.pretrained.scores if found.pretrained else None
    first = scores["fid"]
    title = f"scores of {first.n_synthetic} synthetic on {first.n_real} real images"
    if first.floor is not None:
        title += f"; on the right those at N = {first.floor.n}, with the floor"
    table = _table(title)
    if before is not None:
        table.add_column("before", justify="right")
    table.add_column("synthetic", justify="right")
    if first.floor is not None:
        table.add_column("synthetic", justify="right")
        table.add_column("real/real", justify="right")
    for name in NAMES:
        score = scores[name]
        cells = [] if before is None else [_number(before[name].value)]
        cells.append(_number(score.value))
        if score.floor is not None:
            cells += [_number(score.floor.synthetic.value), _number(score.floor.real.value)]
        table.add_row(f"{score.label} {'↓' if score.lower_is_better else '↑'}", *cells)
    return table


def sentences(found: Evaluation) -> Iterator[str]:
    """Near duplicates, then what belongs beside the numbers."""
    for duplicates in (found.synthetic.near_duplicates, found.sensitive_duplicates):
        if duplicates is not None:
            yield _near_duplicates(duplicates)
    yield from (f"Note: {caveat}." for caveat in found.caveats)


def _near_duplicates(found: NearDuplicates) -> str:
    low, median = found.synthetic[0], found.synthetic[found.quantiles.index(0.5)]
    line = (
        f"Nearest {found.against} image, in grey levels: synthetic images {low:.1f} at least, "
        f"median {median:.1f}"
    )
    if found.test is None or found.closer_than_test is None:
        return f"{line}."
    low, median = found.test[0], found.test[found.quantiles.index(0.5)]
    return (
        f"{line}; test images {low:.1f} and {median:.1f}. {found.closer_than_test:.1%} of the "
        "synthetic images are nearer than the nearest 1 % of the test images."
    )


def _with_interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _table(title: str) -> Table:
    """A table whose first column says what a row is; as narrow as can be."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    return table
