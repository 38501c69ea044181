"""What several test files share: a recipe that runs all seven stages in seconds."""

import pytest

from privimage import pipeline, recipe
from privimage.pipeline import Machine
from privimage.progress import Reporter

TINY = {
    "classifier.steps": 60,
    "pretrain.steps": 8,
    "pretrain.batch_size": 32,
    "pretrain.warmup_steps": 2,
    "finetune.steps": 6,
    "finetune.sample_rate": 0.02,
    "finetune.draws": 2,
    "finetune.reservation": 2,
    "network.channels": 8,
    "synthesis.images_per_label": 6,
    "synthesis.batch_size": 20,
    "synthesis.sampler.steps": 3,
}


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
