"""Whose image it is: where a set names persons, and which number each of them gets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from privimage.errors import UserError


@dataclass(frozen=True)
class PersonKey:
    """Where the name of an image's person stands: in a column, or in a folder on its path.

    Attributes:
        column: of a Parquet file or a `labels.csv`, or an array in a NumPy archive; "" for folders.
        level: of the folder, 1 for the outermost; 0 for a column.
    """

    column: str = ""
    level: int = 0

    @classmethod
    def parse(cls, text: str) -> "PersonKey":
        """`column:NAME` or `folder:LEVEL`.

        Raises:
            UserError: it is neither.
        """
        kind, _, value = text.partition(":")
        if kind == "column" and value:
            return cls(column=value)
        if kind == "folder" and value.isdecimal() and int(value):
            return cls(level=int(value))
        raise UserError(
            f"--person '{text}': expected column:NAME, such as column:patient_id, or folder:LEVEL, "
            "where folder:1 is the outermost folder"
        )

    def __str__(self) -> str:
        return f"column:{self.column}" if self.column else f"folder:{self.level}"


def person_and_class(folders: Sequence[str], key: PersonKey | None) -> tuple[str, str]:
    """Whose an image is and of which class, by the folders on its way; "" for neither.

    The class is the folder right around the image, but for that of its person.
    """
    rest, person = list(folders), ""
    if key is not None and key.level <= len(rest):
        person = rest.pop(key.level - 1)
    return person, rest[-1] if rest else ""


def numbered(names: Iterable[str]) -> torch.Tensor:
    """The number of each image's person, int64 [images], by the persons' first images.

    Formal guarantee: which images share a number is decided by their own names alone: by equal
    text, white space around it aside. An image without a name is a person of its own
    (tests/data/test_persons.py::test_an_image_without_a_name_is_a_person_of_its_own).
    """
    number_of: dict[str | int, int] = {}
    return torch.tensor(
        [
            number_of.setdefault(name.strip() or image, len(number_of))
            for image, name in enumerate(names)
        ],
        dtype=torch.int64,
    )


def no_column(name: str, where: object, column: str, known: Iterable[str]) -> UserError:
    """The sentence for a column or array of persons that is not there."""
    return UserError(
        f"{name}: '{where}' has no '{column}' to name the persons (--person column:{column}); it "
        f"has {', '.join(known)}"
    )


def refuse_persons(name: str, where: object, key: PersonKey | None) -> None:
    """Raises UserError if somebody asks for persons where the format names none in that way."""
    if key is not None:
        raise UserError(
            f"{name}: '{where}' names no persons by {key}; a column is read from Parquet, .npz and "
            "labels.csv, a folder level from folders and archives"
        )


def too_deep(name: str, where: object, key: PersonKey) -> UserError:
    """The sentence for a folder level that no image has."""
    return UserError(
        f"{name}: '{where}': no image lies {key.level} folders deep, so --person {key} names "
        "nobody; folder:1 is the outermost folder"
    )
