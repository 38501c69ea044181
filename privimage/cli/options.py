"""Options that several commands have, each declared once, and what becomes of them."""

import json
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from privimage import recipe
from privimage.errors import check_count, check_non_negative
from privimage.pipeline import DEVICES
from privimage.progress import Reporter

FOUND_WRONG = 1
"""The exit status of a check that found something wrong."""


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What the shell offers for the beginning of a value."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _settings() -> list[str]:
    return [f"{name}=" for name in recipe.Recipe("").flat()]


Run = Annotated[Path, typer.Argument(help="Run folder.")]
Test = Annotated[
    str | None,
    typer.Option(help="Real images that you declare public, to test on; default: the run's."),
]
Public = Annotated[str | None, typer.Option(help="Labelled public images.")]
Classes = Annotated[
    str | None, typer.Option(help="Names of the sensitive labels: a,b,c; or how many.")
]
Person = Annotated[
    str | None, typer.Option(help="What names an image's person: column:NAME or folder:LEVEL.")
]
ImageSize = Annotated[int | None, typer.Option(help="Height and width, pixels.")]
Channels = Annotated[int | None, typer.Option(help="1 for grey, 3 for RGB.")]
Seed = Annotated[
    int | None, typer.Option(help="Random seed; DP noise and DP sampling never use it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any recipe value, such as finetune.steps=20.",
        autocompletion=one_of(_settings),
    ),
]
Unit = Annotated[
    str | None,
    typer.Option(
        help="Whom ε protects: image or person.",
        autocompletion=one_of(lambda: recipe.WORDS["privacy.unit"]),
    ),
]
MaxMinutes = Annotated[float | None, typer.Option(help="Stop cleanly after so many minutes.")]
Threads = Annotated[int | None, typer.Option(help="Cores to use; default: all.")]
MaxMemory = Annotated[
    float | None, typer.Option(help="MB that a core's share of a private step may take.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu or cuda; default: cuda if it is there.", autocompletion=one_of(lambda: DEVICES)
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

_VALUES = {
    "sensitive": "data.sensitive",
    "public": "data.public",
    "test": "data.test",
    "classes": "data.classes",
    "public_size": "data.public_size",
    "person": "data.person",
    "unit": "privacy.unit",
    "image_size": "data.image_size",
    "channels": "data.channels",
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
    "selection": "selection.mode",
    "seed": "seed",
    "features": "evaluation.features",
    "weights": "evaluation.weights",
    "classifiers": "evaluation.classifiers",
    "repeats": "evaluation.repeats",
    "ceiling": "evaluation.ceiling",
    "sensitive_duplicates": "evaluation.sensitive_duplicates",
}


def recipe_values(options: Mapping[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Dotted names and values of what was given of a command's `options`, and by --set.

    Raises:
        UserError: a --set is not NAME=VALUE.
    """
    given = {
        name: _read(option, options[option])
        for option, name in _VALUES.items()
        if options.get(option) is not None
    }
    return given | dict(recipe.parse_override(text) for text in settings or [])


def reporter(quiet: bool, max_minutes: float | None) -> Reporter:
    """One that stops a loop after so long, or on a signal.

    Raises:
        UserError: the time is below 0.
    """
    if max_minutes is not None:
        check_non_negative("--max-minutes", max_minutes)
    found = Reporter(quiet, None if max_minutes is None else 60 * max_minutes)
    _stop_cleanly_on_signals(found)
    return found


def print_json(value: Any) -> None:
    """Prints one JSON object, with letters of any alphabet as they are."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _read(option: str, value: Any) -> Any:
    if option == "classes":
        if value.removeprefix("-").isdecimal():
            check_count("--classes", int(value))
            # One more than may be is refused as billions are, which no memory holds.
            return tuple(str(label) for label in range(min(int(value), recipe.MOST_CLASSES + 1)))
        return tuple(name.strip() for name in value.split(","))
    if option == "classifiers":
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _stop_cleanly_on_signals(reporter: Reporter) -> None:
    """The first Ctrl-C or SIGTERM stops at a step boundary, the second at once."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        reporter.warn("stopping at the next step; once more to stop at once")
        reporter.request_stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
