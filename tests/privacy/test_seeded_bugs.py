"""Privacy bugs planted into the production code: the check named beside each must find it.

A bug that survives is a hole in the checks; the code as it is passes all of them.
"""

from pathlib import Path

import privacy_checks
import pytest
import torch
from planted_bugs import bookkeeping, finetuning

from privimage import selftest
from privimage.errors import UserError

# Name: where the bug is planted (one place, or every module that knows it by name), and the check.
BUGS = finetuning.BUGS | bookkeeping.BUGS
SELFTESTS = selftest.CHECKS.values()
CHECKS = [value for name, value in vars(privacy_checks).items() if name.startswith("check_")]
CPU = torch.device("cpu")


def _run(check, folder):
    check(CPU if check in SELFTESTS else folder)


# Those that every implementation of DP-SGD should be tried with.
THIRTY = [
    *("no noise", "noise divided by the batch size", "half the noise", "root of the noise"),
    *("noise without the grid's units", "5 % less noise", "no noise on the last bias"),
    *("the same noise for two halves", "one value for all", "uniform noise"),
    *("the same noise in every step", "noise from the user's seed"),
    *("noise of an average over ranks", "the same mask on two ranks"),
    *("no clipping", "clipping by layer", "clipping the batch mean"),
    *("draws clipped apart and summed", "a loss that sees the batch"),
    *("a bias left out of the norm", "a norm in half precision", "one bad example poisons the sum"),
    *("divided by the real batch size", "an average of weights without noise"),
    *("flipped copies as images of their own", "empty batches skipped"),
    *("shuffled batches", "batches of a fixed size", "truncated batches", "drawn again if empty"),
]


def test_the_registry_is_as_large_as_is_said():
    assert len(BUGS) == len(finetuning.BUGS) + len(bookkeeping.BUGS)
    assert len(set(THIRTY)) == 30
    assert set(THIRTY) <= BUGS.keys()
    page = Path(__file__).parents[2] / "PRIVACY.md"
    assert f": {len(BUGS)} privacy bugs" in page.read_text()


@pytest.mark.parametrize("check", [*SELFTESTS, *CHECKS], ids=lambda check: check.__name__)
def test_the_code_as_it_is_passes(check, tmp_path):
    _run(check, tmp_path)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name, tmp_path, monkeypatch):
    places, attribute, bug, check = BUGS[name]
    for place in places if isinstance(places, tuple) else (places,):
        monkeypatch.setattr(place, attribute, bug)
    # The production code may notice by itself: then it refuses in one line.
    with pytest.raises((AssertionError, selftest.Broken, UserError)):
        _run(check, tmp_path)


def test_every_check_finds_something():
    # The operators of a build can't be patched: tests/test_selftest.py gives them another key.
    found = {check for *_, check in BUGS.values()} | {selftest.check_operators}
    assert found == {*SELFTESTS, *CHECKS}
