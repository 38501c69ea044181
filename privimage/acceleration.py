"""How networks compute on the device they are on: the one place that knows what a GPU wants.

There activations are bfloat16, images lie channels last, what is called again and again is compiled
as one graph and replayed as one launch; weights, losses and sums stay float32 or better. Elsewhere
everything runs as it is written.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from types import FunctionType

import torch
from torch import nn

Function = Callable[..., torch.Tensor]
"""Of tensors alone."""

WORTH_COMPILING = 2000
"""Calls: each is some hundreds of launches, tens of milliseconds that a replay does without."""

MOST_PIXELS = 2**19
"""Of the images that a network learns from at once: enough for any GPU, and not too many for its
memory, where a ResNet-50 keeps 13 MB of an image of 32x32 pixels."""


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside, layers compute in bfloat16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def memory_format(images: torch.Tensor) -> torch.Tensor:
    """[rows, channels, height, width] as convolutions on their device read them fastest."""
    return images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On `device`; a GPU gets it when it comes to that, and nobody waits."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def accelerated(function: Function, device: torch.device) -> Function:
    """`function` without gradients: on a GPU compiled without a break, and a CUDA graph a shape.

    Everything but its arguments, such as the weights of a network, is read anew in every call from
    where it was in the first one.
    """
    if device.type != "cuda":
        return function
    if isinstance(function, FunctionType):
        # PyTorch compiles one code eight times at most, and would take all networks' for one.
        code = function.__code__.replace()
        function = FunctionType(code, function.__globals__, closure=function.__closure__)
    return in_turns(_Replayed(torch.compile(function, fullgraph=True, dynamic=False)), device)


def in_turns(function: Function, device: torch.device) -> Function:
    """`function`, with one thread at a time inside on a GPU, whose memory is planned for one."""
    if device.type != "cuda":
        return function
    turn = Lock()

    def alone(*given: torch.Tensor) -> torch.Tensor:
        with turn:
            return function(*given)

    return alone


def inference(network: nn.Module, calls: int) -> Function:
    """The forward pass of `network`, of images and what else it takes, without gradients.

    Accelerated where there are so many calls that it is worth the first one's minute.
    """
    device = next(network.parameters()).device

    def forward(images: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        with mixed_precision(device):
            output: torch.Tensor = network(memory_format(images), *others)
            return output

    return accelerated(forward, device) if calls >= WORTH_COMPILING else torch.no_grad()(forward)


class _Replayed:
    """A function on a GPU, captured when it first meets arguments of a shape."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._captured: dict[tuple[torch.Size, ...], _Graph] = {}

    @torch.no_grad()
    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        """The result, in memory of its own."""
        with torch.cuda.device(given[0].device):
            shapes = tuple(tensor.shape for tensor in given)
            if shapes not in self._captured:
                self._captured[shapes] = _Graph(self._function, given)
            return self._captured[shapes].replay(given)


class _Graph:
    """One launch for all kernels of a function, whose arguments are copied to where they were."""

    def __init__(self, function: Function, given: tuple[torch.Tensor, ...]) -> None:
        self._given = [tensor.clone() for tensor in given]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # Compiles, and loads kernels, which a capture may not.
            for _ in range(2):
                function(*self._given)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # PyTorch's own stream for captures is on the GPU that was captured on first. Other threads
        # may allocate meanwhile.
        capturing = torch.cuda.graph(
            self._graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
        )
        with capturing:
            self._result = function(*self._given)

    def replay(self, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for here, tensor in zip(self._given, given, strict=True):
            here.copy_(tensor)
        self._graph.replay()
        return self._result.clone()
