"""One optimiser step in its two stages: what all methods share, the ordinary step, and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn

from privimage.acceleration import accelerated
from privimage.diffusion.fused_norms import FusedNorms
from privimage.dp import (
    GRID_UNITS,
    ClipRule,
    DPAdam,
    ExampleGradients,
    plan,
    planned_clipped_sum,
    record,
)
from step.models import Setting

MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 1e-4
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Step:
    """A whole step of one method on one micro-batch.

    Attributes:
        gradient: forward and backward pass; of private methods the norms, clipping and the sum.
        update: from what `gradient` returned: noise if it is private, Adam, average of the weights.
        summed: what `gradient` returned as a vector [parameters]; of private methods alone.
        predicted: bytes that `gradient` is to take, where a plan says so.
    """

    gradient: Callable[[], Any]
    update: Callable[[Any], None]
    summed: Callable[[Any], torch.Tensor] | None = None
    predicted: float | None = None

    def __call__(self) -> None:
        """The step."""
        self.update(self.gradient())


class Update:
    """Fused Adam and the average of the weights, as every method but ours uses them."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self.adam = torch.optim.Adam(self.parameters, LEARNING_RATE, fused=True)
        self._average = [parameter.detach().clone() for parameter in self.parameters]

    def __call__(self) -> None:
        """From the parameters' `grad`, which is forgotten afterwards."""
        self.adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self.parameters, 1 - EMA_DECAY)
        self.adam.zero_grad()

    def with_noise(self, sums: list[torch.Tensor], examples: int) -> None:
        """From clipped sums: as `__call__`, with the noisy mean as `grad`."""
        for parameter, total in zip(self.parameters, sums, strict=True):
            noise = torch.randn_like(total) * (NOISE_MULTIPLIER * MAX_GRAD_NORM)
            parameter.grad = (total + noise) / examples
        self()


def in_format(
    batch: tuple[torch.Tensor, ...], memory_format: torch.memory_format
) -> list[torch.Tensor]:
    """The same batch, its images laid out so."""
    return [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in batch]


def ordinary(
    setting: Setting, memory_format: torch.memory_format, *, is_compiled: bool = False
) -> Step:
    """The step of a training without privacy."""
    network = setting.network().to(memory_format=memory_format)
    update, batch = Update(network), in_format(setting.batch(), memory_format)
    run = torch.compile(network) if is_compiled else network

    def gradient() -> None:
        setting.losses(run, *batch).mean().backward()

    return Step(gradient, lambda _: update())


def recorded(setting: Setting) -> Step:
    """The same with channels last, recorded as ours is: what of our time is saved by that alone?"""
    network = setting.network().to(memory_format=torch.channels_last)
    update, batch = Update(network), in_format(setting.batch(), torch.channels_last)

    def gradients(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(setting.losses(network, *given).mean(), update.parameters)

    graph = record(gradients, *batch)

    def gradient() -> None:
        for parameter, found in zip(update.parameters, graph(*batch), strict=True):
            parameter.grad = found

    return Step(gradient, lambda _: update())


def captured(setting: Setting) -> Step:
    """The ordinary step with all the care that ours gets on a GPU.

    One graph of operators with channels last, weights included, and our group normalisation, there
    compiled and captured; the gradient, the weights and their average are one vector each.
    """
    network, batch = setting.network(), in_format(setting.batch(), torch.channels_last)
    parameters = list(network.parameters())
    flat = nn.Parameter(torch.cat([_channels_last(p.detach()).flatten() for p in parameters]))
    pieces = flat.detach().split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        rows = piece.view(_channels_last(parameter).shape)
        parameter.data = rows.movedim(-1, 1) if rows.dim() == 4 else rows
    update = Update(nn.ParameterList([flat]))

    def gradients(*given: torch.Tensor) -> torch.Tensor:
        with FusedNorms():
            losses = setting.losses(network, *given)
        found = torch.autograd.grad(losses.mean(), parameters)
        return torch.cat([_channels_last(each).flatten() for each in found])

    graph = accelerated(record(gradients, *batch), batch[0].device)

    def gradient() -> None:
        flat.grad = graph(*batch)

    return Step(gradient, lambda _: update())


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's [outputs, inputs, height, width] -> [outputs, height, width, inputs]."""
    return weight.movedim(1, -1) if weight.dim() == 4 else weight


def ours(
    setting: Setting,
    max_memory: float | None = None,
    *,
    is_recorded: bool = True,
    rows_dtype: torch.dtype | None = None,
) -> Step:
    """Our step, as the plan has it for so many bytes (None: as many as it takes).

    Recorded as `privimage train` has it, or call by call as `PrivateEngine` does.
    """
    network, batch = setting.network(), setting.batch()
    gradients = ExampleGradients(network, torch.channels_last)
    chosen = plan(
        network,
        setting.batch(1),
        draws=setting.draws,
        max_memory=max_memory,
        examples=setting.examples,
        losses=setting.losses,
        memory_format=torch.channels_last,
        rows_dtype=rows_dtype,
    )
    adam = DPAdam(
        network.parameters(),
        LEARNING_RATE,
        NOISE_MULTIPLIER,
        setting.examples,
        ema_decay=lambda update: EMA_DECAY,
    )

    def sums(*micro_batch: torch.Tensor) -> torch.Tensor:
        return planned_clipped_sum(
            gradients, setting.losses, *micro_batch, plan=chosen, rule=ClipRule(MAX_GRAD_NORM)
        )

    rows = chosen.examples * setting.draws
    micro_batches = list(zip(*(tensor.split(rows) for tensor in batch), strict=True))
    # One graph a size: the last one may be smaller.
    graphs = {
        size: accelerated(record(sums, *first), batch[0].device) if is_recorded else sums
        for size, first in {len(each[0]): each for each in micro_batches}.items()
    }

    def gradient() -> torch.Tensor:
        return reduce(torch.Tensor.add_, (graphs[len(each[0])](*each) for each in micro_batches))

    def summed(total: torch.Tensor) -> torch.Tensor:
        return total.double() * (MAX_GRAD_NORM / GRID_UNITS)

    return Step(gradient, adam.step, summed, chosen.bytes)
