import pytest
import scipy.stats
import torch
from torch import nn

from privimage.dp import GRID_UNITS, DPAdam, optimizers
from privimage.errors import UserError

_FALSE_ALARM = 1e-6


def _optimizer(sizes=((3, 2), (4,)), **changes):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size)) for size in sizes]
    arguments = {"learning_rate": 0.1, "noise_multiplier": 0.0, "expected_batch_size": 5.0}
    return parameters, DPAdam(parameters, **{**arguments, **changes})


def test_without_noise_it_is_torch_adam_on_the_scaled_mean():
    parameters, optimizer = _optimizer()
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    adam = torch.optim.Adam(twins, lr=0.1)
    for _ in range(5):
        total = torch.randint(-(2**32), 2**32, (10,))
        optimizer.step(total)
        mean = total.double() / GRID_UNITS / 5.0
        twins[0].grad, twins[1].grad = mean[:6].float().view(3, 2), mean[6:].float()
        adam.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-6, atol=1e-7)


def test_an_empty_batch_is_a_step_of_pure_noise(monkeypatch):
    seen = []
    real = optimizers.gaussian_integers
    monkeypatch.setattr(
        optimizers, "gaussian_integers", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    parameters, optimizer = _optimizer(((50_000,),), noise_multiplier=3.0)
    before = parameters[0].detach().clone()
    optimizer.step(torch.zeros(50_000, dtype=torch.int64))
    assert (parameters[0] != before).float().mean() > 0.99
    squares = float((seen[0].double() / GRID_UNITS).square().sum()) / 3.0**2
    low, high = scipy.stats.chi2.ppf([_FALSE_ALARM / 2, 1 - _FALSE_ALARM / 2], 50_000)
    assert low < squares < high
    assert not low < squares * 0.95**2 < high


def test_two_steps_draw_two_noises(monkeypatch):
    seen = []
    real = optimizers.gaussian_integers
    monkeypatch.setattr(
        optimizers, "gaussian_integers", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    _, optimizer = _optimizer(noise_multiplier=1.0)
    for _ in range(2):
        optimizer.step(torch.zeros(10, dtype=torch.int64))
    assert not torch.equal(seen[0], seen[1])


def test_the_model_sees_every_update():
    model = nn.Linear(3, 2)
    optimizer = DPAdam(model.parameters(), 0.1, 0.0, 1.0)
    before = model(torch.ones(1, 3))
    optimizer.step(torch.full((8,), GRID_UNITS))
    torch.testing.assert_close(before - model(torch.ones(1, 3)), torch.full((1, 2), 0.4))


def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened():
    _, one = _optimizer()
    totals = torch.randint(-(2**32), 2**32, (6, 10))
    for total in totals[:3]:
        one.step(total)
    _, other = _optimizer()
    other.restore({name: tensor.clone() for name, tensor in one.state().items()})
    for total in totals[3:]:
        one.step(total)
        other.step(total)
    assert torch.equal(one.flat, other.flat)


def test_the_state_is_saved_before_the_first_step_too():
    _, optimizer = _optimizer()
    assert optimizer.state().keys() == {"parameters"}
    optimizer.restore(optimizer.state())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"expected_batch_size": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        _optimizer(**changes)
