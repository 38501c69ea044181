"""Micro-batches nobody chose: whole waves on a GPU, no rows for nobody, memory that is there."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from privimage.dp import Privacy, PrivateEngine, most_examples, usual_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """Makes a GPU of so many multiprocessors."""

    def made(multiprocessors):
        found = SimpleNamespace(multi_processor_count=multiprocessors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)

    return made


def test_a_gpu_gets_whole_waves_of_512_rows_or_more(gpu):
    gpu(132)
    assert [most_examples(GPU, draws) for draws in (1, 4, 8, 32)] == [528, 132, 132, 132]
    gpu(28)
    assert [most_examples(GPU, draws) for draws in (1, 8)] == [532, 84]
    assert {most_examples(CPU, draws) for draws in (1, 32)} == {64}


@pytest.mark.parametrize(("expected", "examples"), [(1000, 132), (36, 48), (0.01, 1)])
def test_a_small_batch_is_not_padded_to_a_large_micro_batch(gpu, expected, examples):
    gpu(132)
    assert most_examples(GPU, 8, expected) == examples


@pytest.mark.parametrize(("expected", "examples"), [(0.01, 1), (36, 48), (64, 40), (1000, 63)])
def test_a_large_batch_is_cut_into_equal_parts_on_a_cpu(expected, examples):
    # 64 + 2 x 8 are two times 40 or less; 1000 + 2 x 32 are seventeen times 63.
    assert most_examples(CPU, 1, expected) == examples


@pytest.mark.parametrize(("size", "examples"), [(1e3, 1064), (1e5, 266), (1e6, 63)])
def test_of_small_examples_a_cpu_gets_more(size, examples):
    # Caches take all of the first, 335 of the next, and of the last fewer than the usual 64.
    assert most_examples(CPU, 1, 1000, size) == examples


def test_a_small_model_gets_a_large_batch_in_one_piece():
    models = nn.Linear(4, 3), nn.Conv2d(64, 64, 3, padding=1)
    shapes = (4,), (64, 48, 48)
    made = [
        PrivateEngine(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda model, x: model(x).flatten(1).sum(1),
            torch.zeros(2, *shape),
            Privacy(noise_multiplier=1.0, sample_rate=0.5, steps=1, expected_batch_size=1000.0),
        )
        for model, shape in zip(models, shapes, strict=True)
    ]
    for each in made:
        each.check()
    assert [each.plan.examples for each in made] == [1064, 63]


def test_a_gpu_gives_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8e9, 24e9))
    assert usual_memory(GPU) == 4e9
    assert usual_memory(CPU) == 2**30
