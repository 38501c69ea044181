import pytest
import torch
from hypothesis import given, strategies

from privimage.diffusion.ema import Ema, ema_decay


def test_decay_warms_up_to_its_limit():
    assert ema_decay(1) == 2 / 11
    assert ema_decay(2) == 3 / 12
    assert ema_decay(8989) < 0.999
    assert ema_decay(8990) == 0.999
    assert ema_decay(10**6) == 0.999
    assert ema_decay(100, limit=0.5) == 0.5


@given(strategies.lists(strategies.floats(-10, 10), min_size=1, max_size=20))
def test_average_is_the_recursion(values):
    ema = Ema({"w": torch.zeros(3, dtype=torch.float64)})
    expected = 0.0
    for n, value in enumerate(values, start=1):
        ema.update({"w": torch.full((3,), value, dtype=torch.float64)})
        decay = min(0.999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["w"].tolist() == pytest.approx([expected] * 3, abs=1e-12)
    assert ema.updates == len(values)


def test_average_is_a_copy_and_leaves_the_parameters_alone():
    parameter = torch.nn.Parameter(torch.ones(2))
    ema = Ema({"w": parameter})
    ema.update({"w": parameter.detach() * 3})
    assert torch.equal(parameter, torch.ones(2))
    assert not ema.average["w"].requires_grad
    assert ema.average["w"][0] > 1


def test_restored_average_goes_on_bit_by_bit():
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(5, generator=random) for _ in range(6)]
    whole, first, second = (Ema({"w": torch.zeros(5)}) for _ in range(3))
    for value in values:
        whole.update({"w": value})
    for value in values[:3]:
        first.update({"w": value})
    second.restore(first.average, first.updates)
    for value in values[3:]:
        second.update({"w": value})
    assert torch.equal(whole.average["w"], second.average["w"])
    assert whole.updates == second.updates == 6
