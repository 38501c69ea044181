"""A recorded micro-batch: the same sum bit for bit, of today's parameters, in one graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privimage.acceleration import accelerated
from privimage.dp import GRID_UNITS, ClipRule, ExampleGradients, plan, planned_clipped_sum, record
from privimage.dp.gradients.costs import Costs
from privimage.ops._library import is_native

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)
COSTS = Costs(
    multiply_add=5e-12, keep=6e-10, norm=2e-10, sum=2e-10, outer=2.05e-10, gram=1e-11, layer=1e-4
)


class Net(nn.Module):
    """A network with every kind of operator that a UNet has, and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(4, 8)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.q, self.k, self.v, self.o = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.twice = nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, labels):
        h = F.silu(self.norm(self.stem(x)))
        h = h + self.twice(self.twice(self.table(labels)))[:, :, None, None]
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        h = h + self.o(F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(h.shape))
        return self.last(h)


def losses(model, x, labels):
    return (model(x, labels) - x).square().mean((1, 2, 3))


def losses_in_half(model, x, labels):
    with torch.autocast("cpu", torch.bfloat16):
        return losses(model, x, labels)


def batch(seed, device="cpu"):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 6, 6, generator=random)
    return x.to(device), torch.arange(8, device=device) % 4


def summed(model, again=None, rule=ClipRule(0.1), losses=losses):  # noqa: B008
    """The clipped sum of a micro-batch of four examples, as a function of tensors alone."""
    gradients = ExampleGradients(model, torch.channels_last)
    one = [tensor[:2] for tensor in batch(0, next(model.parameters()).device)]
    chosen = plan(model, one, draws=2, examples=4, losses=losses, costs=COSTS)
    if again is not None:
        chosen = chosen.choosing(again, "recompute")

    def function(x, labels, counted):
        return planned_clipped_sum(
            gradients, losses, x, labels, plan=chosen, rule=rule, examples=counted
        )

    return function


@pytest.mark.parametrize(
    "rule", [ClipRule(0.1), ClipRule(0.1, "per_layer")], ids=lambda r: r.clipping
)
@pytest.mark.parametrize("again", [None, "stem", "table"])
def test_a_recorded_sum_is_the_sum_bit_for_bit(again, rule):
    if again and not is_native:
        pytest.skip("the native operators are not built")
    function = summed(Net(), again, rule)
    recorded = record(function, *batch(0), torch.tensor(4))
    for seed, counted in ((1, 4), (2, 3), (3, 0)):
        given = *batch(seed), torch.tensor(counted)
        assert torch.equal(recorded(*given), function(*batch(seed), counted))
        assert bool(recorded(*given).any()) == (counted > 0)


def test_autocast_is_recorded():
    function, plain = summed(Net(), losses=losses_in_half), summed(Net())
    recorded = record(function, *batch(0), torch.tensor(4))
    given = *batch(1), torch.tensor(4)
    assert torch.equal(recorded(*given), function(*given))
    assert not torch.equal(recorded(*given), plain(*given))


def test_a_recorded_sum_sees_the_parameters_of_today():
    model = Net()
    function = summed(model)
    recorded = record(function, *batch(0), torch.tensor(4))
    given = *batch(1), torch.tensor(4)
    before = recorded(*given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(recorded(*given), function(*given))
    assert not torch.equal(recorded(*given), before)


def test_a_recorded_sum_compiles_without_a_graph_break():
    function = summed(Net())
    recorded = record(function, *batch(0), torch.tensor(4))
    torch.compiler.reset()
    compiled = torch.compile(recorded, fullgraph=True, backend="aot_eager")
    given = *batch(1), torch.tensor(3)
    assert torch.equal(compiled(*given), function(*given))


def test_what_depends_on_values_is_not_recorded():
    with pytest.raises(RuntimeError, match=r"tracing|data-dependent|item"):
        record(lambda x: x * 2 if x.sum() > 0 else x, torch.ones(3))


def test_a_method_is_recorded():
    class Scaled:
        def times(self, x, y):
            return x * y

    x, y = torch.randn(2, 3)
    assert torch.equal(record(Scaled().times, x, y)(y, y), y * y)


def test_recording_computes_nothing():
    vast = torch.ones(1).expand(1 << 20, 1 << 20)
    recorded = record(lambda x: (x + 1).sum(1), vast)
    assert torch.equal(recorded(torch.ones(2, 3)), torch.tensor([6.0, 6.0]))


@pytest.fixture
def _repeatable():
    """Else cuDNN may add gradients of activations up in any order, and round factors to 11 bits."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.usefixtures("_repeatable")
@pytest.mark.parametrize("device", [CUDA])
def test_on_a_gpu_it_is_compiled_and_captured_and_the_same_up_to_rounding(device):
    function = summed(Net().to(device))
    given = [(*batch(seed, device), torch.tensor(n, device=device)) for seed, n in ((1, 4), (2, 3))]
    recorded = accelerated(record(function, *given[0]), torch.device(device))
    for one in (*given, *given):
        found, expected = recorded(*one), function(*one)
        assert (found - expected).double().norm() <= 1e-3 * GRID_UNITS
        assert expected.double().norm() > 0.5 * GRID_UNITS
    assert torch.equal(recorded(*given[0]), recorded(*given[0]))
