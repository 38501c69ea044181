"""What a person sees while a run goes on."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from privimage.progress import Reporter


def on_a_terminal(monkeypatch, name, columns):
    """A reporter on a terminal of that many columns, and what it shows there."""
    monkeypatch.setenv("TERM", name)
    shown, reporter = io.StringIO(), Reporter()
    reporter._console = Console(file=shown, force_terminal=True, width=columns, soft_wrap=True)
    return reporter, shown


def test_brackets_in_names_are_printed_as_they_are(capsys):
    Reporter().say("3 ← [, ], [bold]")
    assert capsys.readouterr().out == "3 ← [, ], [bold]\n"


def test_quiet_says_nothing_but_warnings(capsys):
    reporter = Reporter(quiet=True)
    reporter.say("a line")
    reporter.warn("[red] flags")
    assert list(reporter.steps("a loop", 3)) == [0, 1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "warning: [red] flags\n"


def test_a_log_without_terminal_gets_a_last_line_with_the_count(capsys):
    assert list(Reporter().steps("a loop", 5, start=2)) == [2, 3, 4]
    assert capsys.readouterr().out == "a loop: 5/5, 0 s to go\n"


def test_time_is_up_when_the_limit_is_over_or_somebody_asks():
    assert Reporter(max_seconds=0.0).must_stop
    reporter = Reporter(max_seconds=1000.0)
    assert not reporter.must_stop
    reporter.request_stop()
    assert reporter.must_stop


@pytest.mark.parametrize("columns", [40, 120])
def test_a_narrow_terminal_loses_no_number(monkeypatch, columns):
    reporter, shown = on_a_terminal(monkeypatch, "xterm", columns)
    table = Table("what is measured, at length", "before DP fine-tuning", "synthetic")
    table.add_row("a score", "94.7% (91.9–96.8)", "86.7% (82.7–90.0)")
    reporter.say(table)
    assert list(reporter.steps("features of synthetic images", 1200, start=1199)) == [1199]
    text = shown.getvalue()
    for whole in ("94.7% (91.9–96.8)", "86.7% (82.7–90.0)", "1200/1200", "ETA"):
        assert whole in text
    assert "…" not in text


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    reporter, shown = on_a_terminal(monkeypatch, "dumb", 80)
    assert list(reporter.steps("a loop", 2)) == [0, 1]
    assert shown.getvalue() == "a loop: 2/2, 0 s to go\n"
