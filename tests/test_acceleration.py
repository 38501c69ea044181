"""What a GPU is given: networks that compile as one graph; on a CPU everything as it is written."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from privimage import acceleration
from privimage.acceleration import accelerated, in_turns, inference, mixed_precision
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.unet import UNet, UNetShape

SHAPE = UNetShape(8, 1, 8, (1, 2), (4,), 3, blocks_per_level=1)
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)


def batch():
    random = torch.Generator().manual_seed(0)
    levels = torch.rand(2, generator=random) + 0.1
    return torch.randn(2, 1, 8, 8, generator=random), levels, torch.tensor([0, 3])


@pytest.mark.parametrize("kind", [UNet, CompactUNet])
def test_a_denoiser_compiles_without_a_graph_break(kind):
    torch.manual_seed(0)
    network = kind(SHAPE).eval()

    def in_half(*given):
        with torch.autocast("cpu", torch.bfloat16):
            return network(*given)

    torch.compiler.reset()
    compiled = torch.compile(in_half, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = Denoiser(in_half)(*batch())
        torch.testing.assert_close(Denoiser(compiled)(*batch()), expected)
        assert not torch.equal(expected, Denoiser(network)(*batch()))


def test_on_a_cpu_nothing_is_exchanged():
    network = UNet(SHAPE).eval()
    function = torch.sin
    assert accelerated(function, torch.device("cpu")) is function
    with torch.no_grad():
        assert torch.equal(inference(network, 10**4)(*batch()), network(*batch()))
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_any_number_of_networks_is_compiled(monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, backend="eager", **how))
    monkeypatch.setattr(acceleration, "_Replayed", lambda function: function)
    torch.compiler.reset()

    def forward_of(layer):
        def forward(x):
            return layer(x)

        return forward

    for width in range(1, 11):
        forward = accelerated(forward_of(nn.Linear(3, width)), torch.device("cuda"))
        assert forward(torch.ones(2, 3)).shape == (2, width)


def test_few_calls_are_not_compiled(monkeypatch):
    network, asked = UNet(SHAPE).eval(), []
    monkeypatch.setattr(acceleration, "accelerated", lambda *given: asked.append(given))
    few = inference(network, 100)
    assert torch.equal(few(*batch()), network(*batch()))
    assert not few(*batch()).requires_grad
    assert not asked
    inference(network, 10**4)
    assert len(asked) == 1


def test_threads_that_share_a_gpu_take_turns():
    inside, most = [], []

    def function(x):
        inside.append(x)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(x)
        return x

    def at_once(device):
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(in_turns(function, torch.device(device)), range(8)))
        return max(most)

    assert at_once("cuda") == 1 < at_once("cpu")


def test_a_capture_is_in_a_stream_of_the_gpu_in_use(monkeypatch):
    """PyTorch's own stream stays on the GPU of the first capture, and would record nothing."""
    made, captured = [], []

    def stream():
        made.append(Mock())
        return made[-1]

    def graph(_, *, stream, capture_error_mode):
        captured.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    for name in ("CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    given = torch.ones(2)
    for _ in range(2):
        graph_of = acceleration._Graph(torch.neg, (given,))
        assert captured[-1] is made[-1]
        assert torch.equal(graph_of.replay((given,)), -given)
    assert captured[0] is not captured[1]


@pytest.mark.parametrize("device", [CUDA])
def test_a_replay_gives_what_the_function_gives(device):
    weight = torch.full((3,), 2.0, device=device)
    function = accelerated(lambda x, y: x * weight + y, torch.device(device))
    for rows in (2, 5, 2):
        x, y = torch.randn(2, rows, 3, device=device)
        first = function(x, y)
        assert torch.equal(first, x * weight + y)
        weight.mul_(2)  # Products stay exact, so that a fused addition rounds as a separate one.
        assert torch.equal(function(y, x), y * weight + x)
        assert torch.equal(first, x * (weight / 2) + y)
