"""The cards of images and of a network: a README.md with the header that Hugging Face reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from privimage.release.statement import not_covered, promise

# Of numbers of up to three digits, of four, and so on.
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")


@dataclass(frozen=True)
class Contents:
    """What the card is about.

    Attributes:
        form: "parquet", "folder", "zip" or "npz".
        file: name of the file beside the card; empty for a folder of images.
        count: number of images.
        size: bytes that they take up.
        names: of the labels; empty for an unlabelled set.
    """

    form: str
    file: str
    count: int
    size: int
    names: tuple[str, ...]


def data_card(contents: Contents, statement: Mapping[str, Any]) -> str:
    """The card as Markdown below a YAML header.

    Args:
        contents: what it is about.
        statement: `privacy_statement` with the recipe's hash.
    """
    header = yaml.safe_dump(
        _header(contents, statement), allow_unicode=True, sort_keys=False, width=100
    )
    return _render("card.md.j2", statement, header=header, contents=contents)


def model_card(statement: Mapping[str, Any]) -> str:
    """The card of the network's folder; `statement` as in `data_card`."""
    return _render("model_card.md.j2", statement)


def _render(template: str, statement: Mapping[str, Any], **more: Any) -> str:
    # Markdown, not HTML; what is put in are numbers, hashes and sentences of ours.
    environment = Environment(  # noqa: S701
        loader=PackageLoader("privimage.release", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        statement=statement,
        promise=promise(statement),
        not_covered=not_covered(statement),
        kind=_kind(statement),
        how=" with noise (DP-SGD)" if statement["private"] else "",
        version=version("privimage"),
        **more,
    )


def _kind(statement: Mapping[str, Any]) -> str:
    """What is said after the name of the thing in a title."""
    return " under differential privacy" if statement["private"] else ", not private"


def _header(contents: Contents, statement: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub shows and searches, and how its library opens the files."""
    features: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
    if contents.names:
        names = {str(label): name for label, name in enumerate(contents.names)}
        features.append({"name": "label", "dtype": {"class_label": {"names": names}}})
    split = {"name": "train", "num_bytes": contents.size, "num_examples": contents.count}
    private = ["differential-privacy"] if statement["private"] else []
    header: dict[str, Any] = {
        "pretty_name": f"Synthetic images{_kind(statement)}",
        "task_categories": [
            "image-classification" if contents.names else "unconditional-image-generation"
        ],
        "size_categories": [_size_category(contents.count)],
        "tags": ["synthetic", *private, "privimage"],
        "dataset_info": {"features": features, "splits": [split]},
    }
    if contents.form == "parquet":
        files = [{"split": "train", "path": contents.file}]
        header["configs"] = [{"config_name": "default", "data_files": files}]
    return header


def _size_category(count: int) -> str:
    return _SIZES[min(max(len(str(count)) - 3, 0), len(_SIZES) - 1)]
