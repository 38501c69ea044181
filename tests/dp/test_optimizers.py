import copy
import io
import pickle

import pytest
import scipy.stats
import torch
from torch import nn

from privimage.dp import DPSGD, GRID_UNITS, DPAdam, DPAdamW, SecretKey
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError

_FALSE_ALARM = 1e-6


def _optimizer(sizes=((3, 2), (4,)), kind=DPAdam, **changes):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size)) for size in sizes]
    arguments = {"lr": 0.1, "noise_multiplier": 0.0, "expected_batch_size": 5.0}
    return parameters, kind(parameters, **{**arguments, **changes})


def _mean_gradients(total):
    mean = total.double() / GRID_UNITS / 5.0
    return mean[:6].float().view(3, 2), mean[6:].float()


@pytest.mark.parametrize(
    ("kind", "arguments", "plain", "plain_arguments"),
    [
        (DPAdam, {}, torch.optim.Adam, {}),
        (DPAdam, {"betas": (0.8, 0.99)}, torch.optim.Adam, {"betas": (0.8, 0.99)}),
        (DPAdamW, {}, torch.optim.AdamW, {}),
        (DPAdamW, {"weight_decay": 0.3}, torch.optim.AdamW, {"weight_decay": 0.3}),
        (DPSGD, {}, torch.optim.SGD, {}),
        (DPSGD, {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_without_noise_it_is_torchs_on_the_scaled_mean(kind, arguments, plain, plain_arguments):
    parameters, optimizer = _optimizer(kind=kind, **arguments)
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = plain(twins, lr=0.1, **plain_arguments)
    for _ in range(5):
        total = torch.randint(-(2**32), 2**32, (10,))
        optimizer.step(total)
        twins[0].grad, twins[1].grad = _mean_gradients(total)
        other.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [DPAdam, DPAdamW, DPSGD])
def test_learning_rate_schedulers_work(kind):
    parameters, optimizer = _optimizer(kind=kind)
    twins, plain = _optimizer(kind=kind)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for learning_rate in (0.1, 0.05, 0.025):
        total = torch.randint(-(2**32), 2**32, (10,))
        assert optimizer.param_groups[0]["lr"] == learning_rate
        plain.param_groups[0]["lr"] = learning_rate
        optimizer.step(total)
        plain.step(total)
        scheduler.step()
    assert all(map(torch.equal, parameters, twins))


def test_the_average_follows_the_parameters():
    decays = {1: 0.5, 2: 0.75}
    _, optimizer = _optimizer(ema_decay=decays.get)
    expected = optimizer.flat.detach().clone()
    assert torch.equal(optimizer.average, expected)
    for update in (1, 2):
        optimizer.step(torch.randint(-(2**32), 2**32, (10,)))
        expected = decays[update] * expected + (1 - decays[update]) * optimizer.flat.detach()
        torch.testing.assert_close(optimizer.average, expected, rtol=1e-6, atol=1e-6)


def _released(kind=DPSGD, size=50_000, steps=1, **changes):
    """What DPSGD adds to an empty sum, in units of the noise's standard deviation."""
    parameters, optimizer = _optimizer(((size,),), kind, noise_multiplier=3.0, lr=1.0, **changes)
    noises = []
    for _ in range(steps):
        before = parameters[0].detach().clone()
        optimizer.step(torch.zeros(size, dtype=torch.int64))
        noises.append((before - parameters[0].detach()).double() * 5.0 / 3.0)
    return noises


def test_an_empty_batch_is_a_step_of_pure_noise():
    (noise,) = _released()
    squares = float(noise.square().sum())
    low, high = scipy.stats.chi2.ppf([_FALSE_ALARM / 2, 1 - _FALSE_ALARM / 2], len(noise))
    assert low < squares < high
    assert not low < squares * 0.95**2 < high
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.norm.cdf).pvalue > _FALSE_ALARM


def test_two_steps_draw_two_noises():
    noises = [*_released(steps=3), *_released(steps=1)]
    for i, one in enumerate(noises):
        for other in noises[:i]:
            assert abs(float(one @ other)) < 5.5 * len(one) ** 0.5
            assert float((one == other).float().mean()) < 0.01


def test_the_divisor_is_the_expected_batch_whatever_was_sampled():
    """One example more moves the parameters by at most learning rate x C / expected batch."""
    total = torch.randint(-(2**20), 2**20, (10,))
    more = total.clone()
    more[0] += GRID_UNITS
    ends = []
    for clipped in (total, more):
        parameters, optimizer = _optimizer(kind=DPSGD)
        optimizer.step(clipped)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert float((ends[0] - ends[1]).norm()) == pytest.approx(0.1 / 5.0, rel=1e-5)


def test_no_state_holds_the_key():
    key = SecretKey.from_os()
    secret = bytes(key._key.tolist())
    _, optimizer = _optimizer(noise_multiplier=1.0, key=key, ema_decay=lambda _: 0.9)
    optimizer.step(torch.zeros(10, dtype=torch.int64))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    for saved in (buffer.getvalue(), repr(optimizer).encode()):
        assert secret not in saved
        assert secret[:8] not in saved
    names = {"parameters", "step", "exp_avg", "exp_avg_sq", "ema"}
    assert optimizer.tensors().keys() == names
    with pytest.raises(TypeError, match="can't be copied or serialised"):
        pickle.dumps(optimizer)


def test_the_user_s_seed_does_not_reach_the_noise():
    noises = []
    for _ in range(2):
        torch.manual_seed(3)
        noises += _released()
    assert not torch.equal(*noises)


def test_a_test_key_shows(monkeypatch):
    assert _optimizer()[1].is_secret
    monkeypatch.setenv(TEST_KEY, "any")
    assert not _optimizer()[1].is_secret
    assert torch.equal(_released()[0], _released()[0])


def test_one_key_serves_one_optimizer():
    key = SecretKey.from_os()
    _optimizer(key=key)
    with pytest.raises(ValueError, match="in use"):
        _optimizer(key=key)


def test_what_a_graph_would_replay_is_the_step(monkeypatch):
    """A graph keeps the arguments of the first `apply`: its numbers, and where its tensors are."""
    monkeypatch.setenv(TEST_KEY, "any")
    average = {"noise_multiplier": 1.0, "ema_decay": lambda step: step / (step + 10)}
    (parameters, captured), (twins, eager) = _optimizer(**average), _optimizer(**average)
    operator, kept = torch.ops.privimage.private_update, []
    total = torch.zeros(10, dtype=torch.int64)
    monkeypatch.setattr(torch.ops.privimage, "private_update", lambda *given: kept.append(given))
    captured.apply(total)
    monkeypatch.undo()
    tensors = [value for value in kept[0] if torch.is_tensor(value)]
    places = [tensor.data_ptr() for tensor in tensors]
    for step in range(4):
        for optimizer in (captured, eager):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        total.copy_(torch.randint(-(2**32), 2**32, (10,)))
        captured.advance()
        assert [tensor.data_ptr() for tensor in tensors] == places
        operator(*kept[0])
        eager.step(total.clone())
        assert all(map(torch.equal, parameters, twins))
        assert torch.equal(captured.average, eager.average)
    assert captured.tensors()["step"] == 4


def _grouped(key=None, **changes):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size)) for size in ((3, 2), (4,), (2, 130))]
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    groups = [{"params": [parameters[0], frozen]}, {"params": parameters[1:], **changes}]
    arguments = {"lr": 0.1, "noise_multiplier": 1.0, "expected_batch_size": 5.0}
    return parameters, frozen, DPAdamW(groups, key=key, **arguments)


def test_groups_draw_the_noise_of_their_place(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "any")
    parameters, _, grouped = _grouped()
    twins, whole = _optimizer(((3, 2), (4,), (2, 130)), DPAdamW, noise_multiplier=1.0)
    for _ in range(3):
        total = torch.randint(-(2**32), 2**32, (270,))
        grouped.step(total)
        whole.step(total)
        assert all(map(torch.equal, parameters, twins))
    assert grouped.tensors().keys() == whole.tensors().keys()
    assert all(map(torch.equal, grouped.tensors().values(), whole.tensors().values()))


def test_a_group_has_options_of_its_own_and_what_is_frozen_stays():
    parameters, frozen, optimizer = _grouped(lr=1e-9, weight_decay=0.0)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step(torch.zeros(270, dtype=torch.int64))
    assert (parameters[0] - before[0]).abs().min() > 1e-3
    assert (parameters[1] - before[1]).abs().max() < 1e-6
    assert torch.equal(frozen, torch.ones(2))
    with pytest.raises(ValueError, match="all its groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_groups_go_on_as_if_nothing_had_happened(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "any")
    (_, _, one), (_, _, other) = _grouped(), _grouped()
    totals = torch.randint(-(2**32), 2**32, (2, 270))
    one.step(totals[0])
    other.step(torch.zeros(270, dtype=torch.int64))
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()})
    one.step(totals[1])
    other.step(totals[1])
    assert torch.equal(one.flat, other.flat)


def test_without_noise_of_its_own_it_takes_no_step():
    parameters = [nn.Parameter(torch.ones(3))]
    optimizer = DPAdam(parameters, 0.1)
    assert not optimizer.is_secret
    with pytest.raises(UserError, match=r"PrivateEngine\.step"):
        optimizer.step(torch.zeros(3, dtype=torch.int64))
    assert optimizer.tensors()["step"] == 0
    with pytest.raises(UserError, match="belong together"):
        DPAdam(parameters, 0.1, noise_multiplier=1.0)


@pytest.mark.parametrize("move", [nn.Module.double, lambda m: setattr(m, "weight", m.weight)])
def test_a_model_that_was_moved_away_is_refused(move):
    model = nn.Linear(3, 2)
    optimizer = DPAdam(model.parameters(), 0.1, 0.0, 1.0)
    model.weight.data = model.weight.data.clone()
    move(model)
    with pytest.raises(UserError, match="moved or converted after its optimiser was made"):
        optimizer.step(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ([nn.Parameter(torch.ones(2), requires_grad=False)], "no trainable parameter"),
        ([{"params": [w := nn.Parameter(torch.ones(2))]}, {"params": [w]}], "given twice"),
        ([w, {"params": [w]}], "not both"),
        ([nn.Parameter(torch.ones(2).double())], "torch.float64 on cpu"),
        ([{"params": [w], "lr": -0.1}], "lr must be .* at least 0, got -0.1"),
        ([{"params": [w], "weight_decay": 0.1}], "DPSGD has no 'weight_decay', only lr, momentum"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters, problem):
    with pytest.raises(UserError, match=problem):
        DPSGD(parameters, 0.1)


def test_groups_of_a_torch_optimizer_may_be_given():
    groups = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(2))], "lr_scale": 2}]
    ).param_groups
    assert DPSGD(groups, 0.1).param_groups[0]["lr"] == 1e-3


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
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()})
    for total in totals[3:]:
        one.step(total)
        other.step(total)
    assert torch.equal(one.flat, other.flat)


def test_torchs_own_state_goes_on_too():
    parameters, one = _optimizer(ema_decay=lambda _: 0.9)
    totals = torch.randint(-(2**32), 2**32, (6, 10))
    for total in totals[:3]:
        one.step(total)
    twins, other = _optimizer(ema_decay=lambda _: 0.9)
    with torch.no_grad():
        for twin, parameter in zip(twins, parameters, strict=True):
            twin.copy_(parameter)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for total in totals[3:]:
        one.step(total)
        other.step(total)
    assert torch.equal(one.flat, other.flat)
    assert torch.equal(one.average, other.average)


@pytest.mark.parametrize(
    ("saved", "loading", "problem"),
    [
        ({"kind": DPSGD}, {}, r"has lr, momentum for 1 vectors, this optimiser lr, betas, eps, w"),
        ({}, {"kind": DPSGD}, r"has lr, betas, .* this optimiser lr, momentum;"),
        ({"sizes": ((3, 3),)}, {}, r"exp_avg \[9\], .* this optimiser exp_avg \[10\]"),
        ({"ema_decay": lambda _: 0.9}, {}, r"in group 0 has ema \[10\], exp_avg \[10\], "),
        ({}, {"ema_decay": lambda _: 0.9}, r"this optimiser ema \[10\], .* ema_decay"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(saved, loading, problem):
    state = _optimizer(**saved)[1].state_dict()
    _, optimizer = _optimizer(**loading)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UserError, match=problem):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == str(before)


def test_a_state_of_torchs_own_adam_or_of_other_groups_is_refused():
    parameters, optimizer = _optimizer()
    for groups in ([{"params": parameters}], [{"params": [p]} for p in parameters]):
        other = torch.optim.Adam(groups)
        with pytest.raises(UserError, match="make model and optimiser"):
            optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_not_copied(copied):
    _, optimizer = _optimizer()
    with pytest.raises(TypeError, match="keep its state_dict"):
        copied(optimizer)


@pytest.mark.parametrize("given", [(), (lambda: 0.0,)])
def test_a_step_without_a_sum_is_told_where_it_comes_from(given):
    _, optimizer = _optimizer()
    with pytest.raises(UserError, match=r"PrivateEngine\.step, or by step\(clipped_sum\)"):
        optimizer.step(*given)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1, "kind": DPAdamW},
        {"momentum": -0.1, "kind": DPSGD},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": 2.0**29},
        {"expected_batch_size": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        _optimizer(**changes)


@pytest.mark.parametrize("kind", [DPAdam, DPSGD])
def test_a_learning_rate_that_became_nan_takes_no_step(kind):
    _, optimizer = _optimizer(kind=kind)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(UserError, match="lr must be a finite number"):
        optimizer.step(torch.zeros(10, dtype=torch.int64))
    assert optimizer.flat.isfinite().all()
