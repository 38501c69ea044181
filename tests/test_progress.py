"""What a person sees while a run goes on."""

from privimage.progress import Reporter


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
