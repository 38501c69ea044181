"""Privacy bugs planted into the production code: the check named beside each must find it.

A bug that survives is a hole in the checks; the code as it is passes all of them.
"""

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


def test_no_bug_is_named_twice():
    assert len(BUGS) == len(finetuning.BUGS) + len(bookkeeping.BUGS)


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
