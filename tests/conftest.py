"""What several test files share: runs of a recipe that takes seconds."""

import pytest
from tiny import TINY

from privimage import pipeline, recipe
from privimage.pipeline import Machine
from privimage.progress import Reporter


@pytest.fixture
def tiny():
    """A factory: the digits preset cut down to seconds, with some values replaced."""
    return lambda **changes: recipe.preset(
        "digits", TINY | {name.replace("__", "."): value for name, value in changes.items()}
    )


@pytest.fixture
def train():
    """Runs a recipe quietly on two threads."""

    def run(chosen, path, from_stage=None, max_seconds=None):
        reporter = Reporter(quiet=True, max_seconds=max_seconds)
        pipeline.train(chosen, path, Machine("cpu", 2), reporter, from_stage)

    return run
