"""kill -9 at random moments of real DP fine-tuning: the ledger never says less than was done."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kills.py")


def _trial(*options):
    result = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *options], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_a_killed_run_never_understates_and_never_exceeds_its_budget():
    found = _trial("--kills", "15")
    assert found["kills"] == 15
    assert found["under_reports"] == 0
    assert found["over_budget"] == 0
    assert found["reserved"] >= found["begun"] > 0


def test_the_count_finds_a_ledger_that_is_written_afterwards():
    assert _trial("--kills", "5", "--record-afterwards")["under_reports"] > 0
