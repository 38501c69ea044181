"""GroupNorm waits for the SiLU that follows; whatever else follows gets what it would have got."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privimage.dp.gradients.engine import ExampleGradients
from privimage.dp.rules import pending
from privimage.errors import UserError


class Normed(nn.Module):
    """A convolution, a normalisation, and what a test does with it."""

    def __init__(self, use):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.GroupNorm(2, 6)
        self.use = use

    def forward(self, x):
        return self.use(self.norm(self.conv(x)))


def total(model, x):
    return model(x).flatten(1).sin().sum(1)


def expected(model, x):
    rows = []
    for one in x.split(1):
        gradients = torch.autograd.grad(total(model, one).sum(), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def in_place(y):
    y.mul_(2)
    return y


@pytest.mark.parametrize(
    "use",
    [
        F.silu,
        nn.SiLU(),
        lambda y: F.silu(input=y),
        lambda y: F.silu(y, inplace=True),
        lambda y: y,
        lambda y: y + 0,
        lambda y: torch.cat([F.silu(y), y], dim=1),
        lambda y: torch.stack([y, *[y, F.silu(y)]]).sum(0),
        lambda y: in_place(y) * F.silu(y),
        lambda y: y.clone()[:, :, 1:],
        lambda y: F.silu(y) + F.silu(y),
        lambda y: y.view(y.shape[0], -1) * y.size(1),
    ],
)
def test_what_follows_gets_the_result(use):
    model, x = Normed(use).double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    nn.init.normal_(model.norm.weight)
    torch.testing.assert_close(ExampleGradients(model)(total, x), expected(model, x))


def test_silu_is_computed_together_with_it(monkeypatch):
    def plain(self):
        raise AssertionError("computed alone")

    monkeypatch.setattr(pending.Pending, "plain", plain)
    model, x = Normed(F.silu), torch.randn(3, 2, 5, 5)
    torch.testing.assert_close(ExampleGradients(model)(total, x), expected(model, x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return 2 * y

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def in_another_thread(y):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: 2 * y).result()


@pytest.mark.parametrize("input_of", [lambda x, scale: x, lambda x, scale: scale])
def test_what_it_takes_in_may_not_change_while_it_waits(input_of):
    """The result would be that of the new values; nothing else keeps the old ones."""

    def normed(model, x):
        scale = 2 * model.weight
        y = F.group_norm(x, 2, scale)
        input_of(x, scale).add_(1)
        return y.flatten(1).sin().sum(1)

    engine = ExampleGradients(nn.GroupNorm(2, 6))
    with pytest.raises(UserError, match="normalisation takes in is changed in place before its re"):
        engine(normed, torch.randn(3, 6, 5))


@pytest.mark.parametrize("use", [Doubled.apply, in_another_thread])
def test_a_use_that_the_engine_cannot_see_is_refused(use):
    with pytest.raises(UserError, match=r"a normalised result is used where .* can't see it"):
        ExampleGradients(Normed(use))(total, torch.randn(3, 2, 5, 5))
