"""What labels a set has: as places among declared names, or by its own."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from privimage.data.source import Source, some
from privimage.errors import UserError

SENSITIVE = "--sensitive"
# More are no classes: the column holds identifiers.
_MOST_CLASSES = 100_000


def declared_names(opened: Source, declared: tuple[str, ...] | None, role: str) -> tuple[str, ...]:
    """The declared names of the labels, or else those of the set itself; () without labels.

    Where the images' own places name them, a single image could decide whether a sensitive set has
    labels, so names that are declared for it are there in any case.
    """
    is_decided = role == SENSITIVE and opened.names_by_image and declared
    if not opened.is_labelled and not is_decided:
        return ()
    if declared is None and not opened.names:
        raise UserError(
            f"{role}: '{opened.path}' has labels but no names for them; declare them with "
            "--classes (names, or their number)"
        )
    return opened.names if declared is None else declared


def numbered_as(
    labels: Sequence[int | None], own: tuple[str, ...], names: tuple[str, ...], by_name: bool
) -> torch.Tensor:
    """The set's own labels as places among the declared names, int64 [images].

    By number only where no name is shared, and nothing that is known of the images (`by_name`)
    decides that it is so.
    """
    number_of: dict[int | None, int] = {number: number for number in range(len(names))}
    if by_name or set(own) & set(names):
        place = {name: number for number, name in enumerate(names)}
        number_of = {label: place[name] for label, name in enumerate(own) if name in place}
    return torch.tensor([number_of.get(label, len(names)) for label in labels], dtype=torch.int64)


def tested_as(
    source: str,
    labels: Sequence[int | None],
    own: tuple[str, ...],
    names: tuple[str, ...],
    by_image: bool,
    warn: Callable[[str], None],
) -> torch.Tensor:
    """The labels of a test set as places among `names`, those of the synthetic images.

    A name stands for itself: only where one side has no names, or numerals, numbers are matched,
    and a line says so of a set that has names.

    Raises:
        UserError: none of them is one of `names`.
    """
    by_name = by_image or (bool(own) and _are_numerals(own) == _are_numerals(names))
    numbers = numbered_as(labels, own, names, by_name)
    is_other = (numbers == len(names)).tolist()
    theirs = {label for label, other in zip(labels, is_other, strict=True) if other}
    others = sorted(_spoken(label, own) for label in theirs)
    if all(is_other):
        raise UserError(
            f"--test: none of its labels ({some(others)} in '{source}') is one of the synthetic "
            f"images' ({some([*names])}); give the classes the same names, to the letter"
        )
    if own and not by_name and not {*own} & {*names}:
        pairs = [f"{name} = {one}" for name, one in zip(names, own, strict=False)]
        warn(f"--test: labels of '{source}' are matched by number ({some(pairs)})")
    if others:
        warn(
            f"--test: {sum(is_other)} of {len(labels)} images have a label that the synthetic "
            f"images don't have ({some(others)}); accuracy leaves them out"
        )
    return numbers


def _are_numerals(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def _spoken(label: int | None, own: tuple[str, ...]) -> str:
    """A label as a message calls it."""
    if label is None:
        return "no label"
    return own[label] if 0 <= label < len(own) else str(label)


def all_known(source: str, labels: list[int | None], names: tuple[str, ...]) -> np.ndarray:
    """`labels` as an array, int64, if each has one of `names`."""
    strange = {label for label in labels if label is None or not 0 <= label < len(names)}
    if strange:
        label = min(strange, key=lambda label: -1 if label is None else abs(label))
        wrong = "an image without label" if label is None else f"a label {label} without name"
        raise UserError(f"--public: '{source}' has {wrong}; name every class, or leave it out")
    return np.array(labels, dtype=np.int64)


def numerals(labels: list[int | None]) -> tuple[str, ...]:
    """The names 0, 1, … for public labels that have none."""
    classes = 1 + max((label for label in labels if label is not None), default=-1)
    return tuple(map(str, range(min(classes, _MOST_CLASSES))))
