"""A model or loss that mixes the examples of a batch is found before data is touched."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privimage.dp import ExampleGradients, check_independence
from privimage.dp.gradients import independence
from privimage.dp.gradients.chance import seeded
from privimage.errors import UserError


def row_sums(model, x):
    return model(x).sum(1)


class Mixing(nn.Module):
    """A linear layer and then something over the batch."""

    def __init__(self, mix):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.mix = mix

    def forward(self, x):
        return self.mix(self.layer(x))


@pytest.mark.parametrize(
    "mix",
    [
        lambda h: h - h.mean(0),
        lambda h: h + 1e-3 * h.square().sum(),
        lambda h: F.batch_norm(h, None, None, training=True),
        lambda h: h.sort(0).values,
        lambda h: h.roll(1, 0),
        lambda h: h * h.detach().std(),
    ],
)
@pytest.mark.parametrize("draws", [1, 2])
def test_mixing_without_a_layer_is_found(mix, draws):
    engine = ExampleGradients(Mixing(mix))
    losses = lambda m, x: m(x).square().sum(1)  # noqa: E731
    with pytest.raises(UserError, match="changes with the other examples"):
        check_independence(engine, losses, torch.randn(3 * draws, 3), draws=draws)


@pytest.mark.parametrize(
    "losses",
    [
        lambda m, x: F.softmax(m(x[:, :3]).sum(1), dim=0),
        # As many tokens as rows, tokens first: the shapes fit, the examples don't.
        lambda m, x: m(x.view(6, 6, 1).expand(6, 6, 3).transpose(0, 1)).sum((0, 2)),
        # Tokens first and then in one dimension, which is as long as rows first would be.
        lambda m, x: (
            m(x.view(12, 3)).view(6, 6).sum(1)
            + m(x.view(6, 2, 3).transpose(0, 1).reshape(12, 3)).view(2, 6, 3).sum((0, 2))
        ),
    ],
)
def test_mixing_in_the_losses_is_found(losses):
    with pytest.raises(UserError, match="changes with the other examples"):
        check_independence(ExampleGradients(nn.Linear(3, 3)), losses, torch.randn(6, 6))


@pytest.mark.parametrize("draws", [1, 2])
def test_what_belongs_to_a_place_in_the_batch_is_found(draws):
    """Where an example stands depends on who else is there."""
    noise, model = torch.randn(64, 3), nn.Linear(3, 2)
    losses = lambda m, x: m(x + noise[: len(x)]).square().sum(1)  # noqa: E731
    with pytest.raises(UserError, match="changes with its place in the batch"):
        check_independence(ExampleGradients(model), losses, torch.randn(3 * draws, 3), draws=draws)
    own = lambda m, x: m(x + noise[:draws].repeat(len(x) // draws, 1)).square().sum(1)  # noqa: E731
    check_independence(ExampleGradients(model), own, torch.randn(3 * draws, 3), draws=draws)


@pytest.mark.parametrize("falls", [True, False])
def test_rows_that_change_places_are_found_behind_random_numbers(falls):
    """A layer's rows would be taken for those of other examples."""

    def losses(model, x):
        order = x[:, 0].argsort(descending=True)
        return model(x[order])[order.argsort()].square().sum(1)

    x = torch.arange(12.0).view(4, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    with pytest.raises(UserError, match="changes with the other examples"):
        check_independence(ExampleGradients(model), losses, x.flip(0) if falls else x)


def test_random_numbers_of_each_row_pass():
    """Whole models are in test_models.py."""
    dropout = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))
    check_independence(ExampleGradients(dropout), row_sums, torch.randn(5, 3))


def test_the_check_leaves_the_random_state_one_at_a_time():
    x, engine = torch.randn(2, 3), ExampleGradients(nn.Sequential(nn.Linear(3, 1), nn.Dropout()))
    before = torch.get_rng_state()
    check_independence(engine, row_sums, x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("x", [torch.randn(1, 3), torch.ones(3, 3), torch.ones(0, 3)])
def test_a_check_that_could_not_fail_is_refused(x):
    with pytest.raises(UserError, match="two examples or more that differ"):
        check_independence(ExampleGradients(nn.Linear(3, 3)), row_sums, x)


def test_a_buffer_that_learns_from_the_data_is_found():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x):
            self.seen += x.sum(0)
            return super().forward(x)

    with pytest.raises(UserError, match=r"buffer '0\.seen' changes with the data"):
        check_independence(ExampleGradients(nn.Sequential(Counting())), row_sums, torch.randn(3, 3))


class Rounding(torch.autograd.Function):
    """Passes gradients on, with other last bits each time, as a sum by atomics does.

    Two calls in a row differ by no less than a third of the most that calls can.
    """

    calls = itertools.count()

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 + 1e-4 * (0.618 * next(Rounding.calls) % 1))


@pytest.mark.parametrize(
    ("mix", "problem"),
    [
        (lambda h: h, None),
        (lambda h: h + 0.1 * h.mean(0), "changes with the other examples"),
        (lambda h: h * torch.linspace(1, 2, len(h))[:, None], "changes with its place"),
    ],
)
def test_another_rounding_each_time_hides_nothing(mix, problem, monkeypatch):
    monkeypatch.setattr(independence, "_repeats_itself", lambda _: False)  # As no GPU does.
    model = Mixing(lambda h: mix(Rounding.apply(h).square()))
    refused = pytest.raises(UserError, match=problem) if problem else contextlib.nullcontext()
    with refused:
        check_independence(ExampleGradients(model), row_sums, torch.randn(4, 3))


def test_numbers_that_no_seed_decides_are_refused():
    random = np.random.default_rng(0)
    losses = lambda m, x: m(x).square().sum(1) * float(1 + random.random())  # noqa: E731
    with pytest.raises(UserError, match="changes from call to call"):
        check_independence(ExampleGradients(nn.Linear(3, 3)), losses, torch.randn(4, 3))


@pytest.mark.parametrize("momentum", [0.5, 1e-2, 1e-3, 1e-4])
def test_losses_that_remember_earlier_examples_are_refused(momentum):
    """What a batch leaves behind would move the gradients of the next one, unclipped."""
    mean = torch.zeros(())

    def losses(model, x):
        values = model(x).square().sum(1)
        mean.lerp_(values.detach().mean(), momentum)
        return values * (1 + mean)

    with pytest.raises(UserError, match=r"changes from call to call.* running means"):
        check_independence(ExampleGradients(nn.Linear(3, 3)), losses, torch.randn(4, 3))


def test_a_buffer_of_the_losses_that_learns_is_found():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, model, x):
            values = model(x)
            self.mean = self.mean + 1e-9 * values.detach().mean(0)
            return (values - self.mean).square().sum(1)

        def losses(self, model, x):
            return self(model, x)

    for losses in (Centred(), Centred().losses):
        with pytest.raises(UserError, match=r"buffer 'losses\.mean' changes with the data"):
            check_independence(ExampleGradients(nn.Linear(3, 3)), losses, torch.randn(3, 3))


def test_numbers_from_a_seed_leave_gpus_alone_that_are_not_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds them all"))
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        with seeded(7, torch.device("cpu")):
            found.append(torch.rand(3))
    assert torch.equal(*found)
    assert torch.equal(before, torch.get_rng_state())
