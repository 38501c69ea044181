"""What several test files share: runs of a recipe that takes seconds, and Hypothesis's profiles."""

import math

import pytest
from hypothesis import settings
from tiny import TINY

from privimage import pipeline, recipe
from privimage.pipeline.schedule import Scope
from privimage.pipeline.training import Machine
from privimage.progress import Reporter

# Of two runs of the same code both pass or neither; "explore" draws other examples every time.
settings.register_profile("explore", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


@pytest.fixture
def tiny():
    """A factory: the digits preset cut down to seconds, with some values replaced."""
    return lambda **changes: recipe.preset(
        "digits", TINY | {name.replace("__", "."): value for name, value in changes.items()}
    )


class Impatient(Reporter):
    """Asks the running loop to stop when it is asked for the `patience`-th time."""

    def __init__(self, patience):
        super().__init__(quiet=True)
        self._patience = patience

    @property
    def must_stop(self):
        self._patience -= 1
        return self._patience <= 0


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The recipe and the folder of a finished run; tests that use it leave it as it is."""
    path = tmp_path_factory.mktemp("run") / "digits"
    chosen = recipe.preset("digits", TINY)
    pipeline.train(chosen, path, Machine("cpu", 2), Reporter(quiet=True))
    return chosen, path


@pytest.fixture
def train():
    """Runs a recipe quietly on two threads."""

    def run(chosen, path, from_stage=None, patience=math.inf, until=None):
        scope = Scope(from_stage, until)
        pipeline.train(chosen, path, Machine("cpu", 2), Impatient(patience), scope)

    return run
