"""The command line: parse, call, print."""

import shutil
import sys

import typer
from typer.exceptions import TyperException

from privimage.cli import looks, privacy, runs
from privimage.errors import UserError
from privimage.progress import Stopped

_USER_ERROR = 2
# What a shell says of a program that SIGPIPE ended: 128 + 13.
_READER_GONE = 141
# Columns of a terminal below which help in boxes would cut the names of options.
_NARROW = 72

app = typer.Typer(
    help="Labelled synthetic image data sets under differential privacy.",
    no_args_is_help=True,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= _NARROW else None,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for _commands in (runs, privacy, looks):
    app.add_typer(_commands.app)


def main() -> None:
    """Entry point: a user's mistake ends in one line and status 2."""
    try:
        sys.exit(app(standalone_mode=False, prog_name="privimage"))
    except SystemExit as ended:
        # Whoever read our output stopped reading (`| head -1`): typer and rich make it a plain 1.
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(_READER_GONE)
        raise
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_USER_ERROR)
    except TyperException as error:
        if message := error.format_message():
            typer.echo(f"error: {message}", err=True)
        sys.exit(_USER_ERROR)
    except OSError as error:
        # The disk under standard output, say; whoever writes a file says more.
        typer.echo(f"error: {error}", err=True)
        sys.exit(_USER_ERROR)
    except Stopped as stopped:
        typer.echo(f"{stopped}; {stopped.advice}")
