"""Foretelling: what is measured, in how large steps, and what is said of it."""

import time

import pytest
import torch

from privimage.pace import Stopwatch
from privimage.pipeline.forecast import Forecast, in_words

CPU = torch.device("cpu")


def _work(seconds):
    """Keeps a core busy: sleep is no work."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_time_of_a_row_is_that_of_a_large_step():
    sizes = []

    def step_of(rows):
        sizes.append(rows)
        # A fixed part, which a step of few rows would spread over few.
        return lambda: _work(2e-3 + 1e-5 * rows)

    watch = Stopwatch(CPU, 0.1)
    found = watch.a_row(step_of, 1000)
    assert sizes[0] == 8
    assert 50 < sizes[-1] <= 1000
    # Others' work stretches it, nothing shortens it; by the step of eight it would be 26e-5.
    assert found > 1e-5
    assert found < 0.5 * 26e-5 or watch.cores < 0.5
    assert watch.spent > 0.05


def test_little_work_is_measured_little():
    calls = []
    Stopwatch(CPU, 10.0).a_row(lambda rows: lambda: calls.append(rows), 100, all_rows=100)
    assert len(calls) <= 4


@pytest.mark.parametrize(("cores", "said"), [(1.9, False), (0.4, True)])
def test_a_busy_machine_widens_the_range_and_is_named(cores, said):
    words = "\n".join(in_words(Forecast({"query": 60.0, "pretrain": 540.0}, 2**30, 4.6, 2, cores)))
    assert "pretrain     about 9 min" in words
    assert ("other programs left it 0.4 cores" in words) == said
    shortest = "2 min" if said else "7 min"
    assert f"together     {shortest} to 16 min, to judge by 5 s of it" in words
