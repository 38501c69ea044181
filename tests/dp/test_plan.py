"""What is kept, what is computed again and how many at a time, by shapes and memory alone."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from privimage.dp import ClipRule, ExampleGradients, plan, planned_clipped_sum
from privimage.dp.gradients.costs import Costs
from privimage.dp.gradients.observation import Pass, _LiveBytes
from privimage.errors import UserError
from privimage.ops._library import is_native

COSTS = Costs(
    multiply_add=5e-12, keep=6e-10, norm=2e-10, sum=2e-10, outer=2.05e-10, gram=2e-11, layer=1e-4
)
ROOM = dataclasses.replace(COSTS, keep=0.0)  # Nothing but memory speaks for computing again.
native = pytest.mark.skipif(not is_native, reason="the native operators are not built")


def wide():
    """Many parameters and few activations."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def deep():
    """Many activations and few parameters."""
    pairs = [(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU()) for _ in range(4)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def words():
    """A table of which an example reads few rows."""
    return nn.Sequential(nn.Embedding(3000, 64), nn.Linear(64, 8))


def pixel():
    """Convolutions of one pixel copy their weights to another memory format, once for all."""
    return nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1))


INPUTS = {
    "wide": torch.randn(7, 64),
    "deep": torch.randn(7, 4, 16, 16),
    "words": torch.arange(7 * 40).view(7, 40),
    "pixel": torch.randn(7, 32, 1, 1),
}


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def test_what_is_used_twice_is_kept():
    found = plan(Tied(), [4], costs=COSTS, max_memory=1e9)
    assert [layer.choice for layer in found.layers] == ["keep", "keep"]
    assert "used more than once" in str(found)
    with pytest.raises(UserError, match=r"no choice for 'layer.weight': used more than once"):
        found.choosing("layer", "recompute")


def test_with_room_everything_is_kept_at_the_largest_size():
    for limit in (None, 1e9):
        found = plan(wide(), [64], costs=ROOM, examples=32, max_memory=limit)
        assert (found.examples, found.recomputed) == (32, frozenset())
        assert "there is room" in str(found)
        assert "256x64" in str(found)


@native
def test_less_memory_means_gradients_computed_again_and_smaller_micro_batches():
    free = plan(wide(), [64], costs=ROOM)
    tight, seen = free, []
    for share in (0.5, 0.1, 0.05, 0.04):
        limit = share * free.bytes
        tight = plan(wide(), [64], costs=ROOM, max_memory=limit)
        assert tight.bytes <= limit
        seen.append((tight.examples, len(tight.recomputed)))
    assert tight.examples < 64
    assert len(set(seen)) > 2
    assert {layer.choice for layer in tight.layers} == {"ghost"}
    assert "saves 64 KB an example for" in str(tight)
    with pytest.raises(UserError, match=r"one example takes .* more than the 0\.0 of max_memory"):
        plan(wide(), [64], costs=COSTS, max_memory=10.0)


@native
def test_without_a_limit_only_wide_layers_of_few_positions_are_computed_again():
    """Reading and writing memory takes longer there than the products do."""
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 2))
    found = plan(model, [1024], costs=COSTS)
    assert found.recomputed == {"0.weight", "0.bias"}
    assert found.ghosts == {"0.weight"}
    dear = dataclasses.replace(COSTS, gram=1e-6)
    found = plan(model, [1024], costs=dear)
    assert (found.recomputed, found.ghosts) == ({"0.weight", "0.bias"}, frozenset())
    dear = dataclasses.replace(COSTS, outer=1e-9)
    assert not plan(model, [1024], costs=dear).recomputed
    tokens = nn.Sequential(nn.Linear(1024, 1024))
    assert not plan(tokens, [256, 1024], costs=COSTS).recomputed


@native
def test_where_nothing_bounds_a_norm_it_is_computed(monkeypatch):
    """As on a GPU, whose costs these could be: fast products, memory slow beside them."""
    monkeypatch.setattr("privimage.dp.gradients.plan._no_bound", lambda device: "no promise")
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 2))
    gpu = Costs(
        multiply_add=3e-15, keep=3e-12, norm=5e-13, sum=1e-12, outer=1e-12, gram=0.0, layer=2e-6
    )
    found = plan(model, [1024], costs=gpu)
    assert (found.recomputed, found.ghosts) == ({"0.weight", "0.bias"}, frozenset())
    with pytest.raises(UserError, match=r"'ghost' is no choice for '0.weight': no promise"):
        found.choosing("0", "ghost")
    tokens = nn.Sequential(nn.Linear(1024, 1024))
    assert not plan(tokens, [1024, 1024], costs=gpu).recomputed


def test_without_kernels_everything_is_kept(monkeypatch):
    monkeypatch.setattr("privimage.ops.has_kernels", lambda device: False)
    found = plan(wide(), [64], costs=COSTS)
    assert not found.recomputed
    with pytest.raises(UserError, match="no native operator here repeats itself bit for bit"):
        found.choosing("1", "recompute")


@native
def test_what_saves_nothing_is_kept():
    """Activations alone decide here, and computing again would hold on to more of them."""
    free = plan(deep(), [4, 16, 16], costs=COSTS)
    tight = plan(deep(), [4, 16, 16], costs=COSTS, max_memory=free.bytes / 4)
    assert 1 <= tight.examples < free.examples
    assert not tight.recomputed


@native
def test_the_cheapest_for_its_bytes_is_computed_again_first():
    """A linear layer behind a mean has one position, a convolution as large 256."""
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(32, 144)
    )
    free = plan(model, [16, 16, 16], costs=COSTS)
    prices = {layer.weight: layer.price for layer in free.layers}
    assert prices["3.weight"] < prices["0.weight"] == math.inf
    # Overhead that costs nothing speaks for smaller micro-batches, a dear one for larger ones.
    for layer, recomputed in ((0.0, frozenset()), (1.0, {"3.weight", "3.bias"})):
        costs = dataclasses.replace(COSTS, layer=layer, keep=0.0)
        found = plan(model, [16, 16, 16], costs=costs, max_memory=free.bytes / 4)
        assert found.recomputed == recomputed


@native
@pytest.mark.parametrize("choice", ["keep", "recompute", "ghost"])
@pytest.mark.parametrize("make", [wide, deep, words, pixel])
def test_predicted_bytes_are_those_of_the_tensors(make, choice):
    """The most that tensors take while a sum is computed, but for the allocator's share."""
    model, x = make(), INPUTS[make.__name__]
    options = {"losses": lambda m, x: m(x).flatten(1).sum(1), "costs": COSTS, "examples": 7}
    chosen = plan(model, [x[:1]], **options)
    for layer in chosen.layers:
        chosen = chosen.choosing(layer.weight, choice if choice in layer.seconds else "recompute")
    gradients = ExampleGradients(model)
    live = _LiveBytes()
    live.ignore([*model.parameters(), x])
    with live:
        planned_clipped_sum(
            gradients, lambda m, x: m(x).flatten(1).sum(1), x, plan=chosen, rule=ClipRule(1.0)
        )
    assert 0.85 * chosen.bytes <= 1.8 * live.most() <= 1.15 * chosen.bytes


def test_a_peak_is_what_lives_and_what_was_left_behind():
    seen = Pass((), (("a", 10), ("b", 8), ("c", 3)), 1)
    assert seen.peak({}) == 10
    assert seen.peak({"a": 4.0, "b": 1.0}) == 12
    assert seen.peak({"a": 4.0, "b": 6.0, "c": 5.0}) == 16
    assert seen.written_first().peak({"a": 4.0, "b": 6.0, "c": 5.0}) == 25


def test_planning_leaves_the_random_state_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    plan(model, [4], costs=COSTS)
    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_layer_is_refused():
    found = plan(nn.Sequential(nn.Linear(4, 4)), [4], costs=COSTS)
    with pytest.raises(UserError, match="no planned layer 'other'"):
        found.choosing("other", "keep")
