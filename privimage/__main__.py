"""The `privimage` command, also as `python -m privimage`: a warning is a line there."""

import io
import signal
import sys
import warnings
from typing import TextIO


def main() -> None:
    """Entry point; imports the command line when warnings have their form."""
    warnings.showwarning = _in_a_line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A terminal without ε shows a question mark.
            stream.reconfigure(errors="replace")
    # In these seconds nothing is begun that would have to be ended: Ctrl-C ends it without a word.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from privimage.cli import main as command_line

    signal.signal(signal.SIGINT, handler)
    command_line()


def _in_a_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Python's own form would show where in the source it was said."""
    sys.stderr.write(f"warning: {message}\n")


if __name__ == "__main__":
    main()
