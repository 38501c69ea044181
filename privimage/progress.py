"""What a stage says to its user: lines, progress bars with an ETA, and when it must stop."""

import time
from collections.abc import Iterator

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

_LINE_INTERVAL_S = 10.0
# Columns of a terminal below which a bar leaves no room for the numbers beside it.
_NARROW = 72
_WIDEST = 1000


class Stopped(Exception):
    """A loop stopped at a step boundary because it was asked to.

    Attributes:
        advice: what is left of the work, and how to go on.
    """

    def __init__(
        self, text: str, advice: str = "nothing is lost. Run the same command again to go on."
    ) -> None:
        super().__init__(text)
        self.advice = advice


class Reporter:
    """Prints for a person on a terminal, in plain lines for a log, or only warnings (`quiet`).

    `max_seconds` is the time after which `must_stop` turns true; `request_stop` turns it true at
    once (the command line calls it on Ctrl-C).
    """

    def __init__(self, quiet: bool = False, max_seconds: float | None = None) -> None:
        self.quiet = quiet
        self._console = Console(soft_wrap=True, highlight=False)
        self._errors = Console(stderr=True, soft_wrap=True, highlight=False)
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._stop_requested = False

    def say(self, text: object = "", style: str | None = None) -> None:
        """Prints a line (or a rich table) unless quiet; brackets in it are brackets.

        A table that is wider than the terminal is wrapped by it: rich would cut its numbers.
        """
        if not self.quiet:
            if isinstance(text, Table):
                options = self._console.options.update(max_width=_WIDEST)
                text.width = Measurement.get(self._console, options, text).maximum
            self._console.print(text, style=style, markup=False)

    def warn(self, text: str) -> None:
        """Prints a line to standard error, quiet or not."""
        self._errors.print(f"warning: {text}", markup=False)

    def request_stop(self) -> None:
        """Asks the running loop to stop at its next step boundary."""
        self._stop_requested = True

    @property
    def must_stop(self) -> bool:
        """Whether a loop should stop at its next step boundary."""
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return self._stop_requested or out_of_time

    def steps(self, label: str, total: int, start: int = 0) -> Iterator[int]:
        """Yields `start` … `total - 1`, showing how far the loop is and when it will end."""
        if self.quiet:
            yield from range(start, total)
        elif self._console.is_terminal and not self._console.is_dumb_terminal:
            yield from self._bar(label, total, start)
        else:
            yield from self._lines(label, total, start)

    def stoppable_steps(self, label: str, total: int) -> Iterator[int]:
        """`steps` of a loop that keeps nothing when it stops.

        Raises:
            Stopped: it was asked for, between two steps.
        """
        for step in self.steps(label, total):
            if self.must_stop:
                raise Stopped(f"{label} stopped after {step} of {total} steps")
            yield step

    def _bar(self, label: str, total: int, start: int) -> Iterator[int]:
        numbers = (MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
        title = TextColumn("{task.description:<24}")
        columns: tuple[ProgressColumn, ...] = (title, BarColumn(), *numbers, TimeElapsedColumn())
        if self._console.width < _NARROW:
            title = TextColumn("{task.description}", table_column=Column(no_wrap=False))
            columns = (*numbers, title)
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=total, completed=start)
            for step in range(start, total):
                yield step
                bar.advance(task)

    def _lines(self, label: str, total: int, start: int) -> Iterator[int]:
        began = last = time.monotonic()
        for step in range(start, total):
            yield step
            now = time.monotonic()
            if now - last >= _LINE_INTERVAL_S or step + 1 == total:
                left = (now - began) / (step + 1 - start) * (total - step - 1)
                self.say(f"{label}: {step + 1}/{total}, {left:.0f} s to go")
                last = now
