"""Does an example's loss or gradient depend on the other examples of its batch?"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from privimage.dp.gradients.chance import seeded
from privimage.dp.gradients.engine import (
    ExampleGradients,
    Losses,
    count_examples,
    mean_over_draws,
)
from privimage.errors import UserError


def check_independence(
    gradients: ExampleGradients, losses: Losses, *dummy_batch: torch.Tensor, draws: int = 1
) -> None:
    """Checks, on made-up data, that no example's loss or gradient depends on another example.

    Every example is seen among the others, in two places, and among copies of itself, in the same
    places of a batch of the same shape and with the same random numbers. If there are no random
    numbers, which differ from place to place, the two places must agree, too, for a place tells who
    else is there. Among the others it is seen twice, which must be the same but for what a GPU adds
    up in another order every time, or else something of earlier examples is kept. Also runs into
    every use of a parameter that has no rule, before sensitive data is touched.

    Args:
        gradients: of the model.
        losses: as `gradients` takes them.
        dummy_batch: as `gradients` takes it, two examples or more that differ; no sensitive data.
        draws: rows an example.

    Raises:
        UserError: examples are mixed or remembered, the model or a module of losses changes its
            buffers, or as `ExampleGradients`.
    """
    count = count_examples(dummy_batch, draws)
    if all(map(torch.equal, dummy_batch, _copies(dummy_batch, 0, count))):
        raise UserError("the dummy batch needs two examples or more that differ")
    buffers = [buffer.clone() for _, buffer in _buffers(gradients, losses)]
    orders = dummy_batch, _reversed(dummy_batch, count)
    seen = [[_observe(gradients, losses, each, draws) for _ in range(2)] for each in orders]
    for before, (name, after) in zip(buffers, _buffers(gradients, losses), strict=True):
        if not torch.equal(before, after):
            raise UserError(f"buffer '{name}' changes with the data; make it constant")
    if _repeats_itself(gradients.device):
        for twice in seen:
            _check_memory(*twice)
    for example in range(count):
        among_copies = _observe(gradients, losses, _copies(dummy_batch, example, count), draws)
        for twice, place in zip(seen, (example, count - 1 - example), strict=True):
            for one, again, other in zip(*twice, among_copies, strict=True):
                _check_agreement(one[place], other[place], again[place])
    (among_others, again), (moved, _) = seen
    other_numbers = _observe(gradients, losses, dummy_batch, draws, seed=1)
    if all(map(_agree, among_others, other_numbers, again)):
        for one, other in zip(among_others, moved, strict=True):
            _check_place(one, other.flip(0))


def _buffers(gradients: ExampleGradients, losses: Losses) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of the model and, if the losses are a module or a method of one, theirs."""
    yield from gradients.model.named_buffers()
    owner = getattr(losses, "__self__", losses)
    if isinstance(owner, nn.Module):
        yield from ((f"losses.{name}", buffer) for name, buffer in owner.named_buffers())


def _repeats_itself(device: torch.device) -> bool:
    """Whether the same pass gives the same numbers, up to the rounding of one sum."""
    return device.type == "cpu"


def _observe(
    gradients: ExampleGradients,
    losses: Losses,
    batch: Sequence[torch.Tensor],
    draws: int,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses [examples] and gradients [examples, P] of `batch`, from a random seed."""
    seen: list[torch.Tensor] = []

    def noted(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
        seen.append(losses(model, *batch))
        return seen[-1]

    with seeded(seed, gradients.device):
        # The losses may change their batch in place.
        rows = gradients(noted, *map(torch.clone, batch), draws=draws)
    return mean_over_draws(seen[0].detach(), len(rows), draws), rows


def _copies(batch: Sequence[torch.Tensor], example: int, count: int) -> list[torch.Tensor]:
    """A batch of the same shape in which every example is this one."""
    draws = len(batch[0]) // max(count, 1)
    rows = slice(example * draws, (example + 1) * draws)
    return [tensor[rows].repeat(count, *[1] * (tensor.dim() - 1)) for tensor in batch]


def _reversed(batch: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """The examples from the last to the first, each with its draws as they were."""
    return [tensor.unflatten(0, (count, -1)).flip(0).flatten(0, 1) for tensor in batch]


def _agree(one: torch.Tensor, other: torch.Tensor, again: torch.Tensor) -> bool:
    """Equal up to the rounding of sums in another order, relative to the largest value.

    A GPU may add up in another order every time, and `again` shows what that does to `one`. More
    than rounding it can't be.
    """
    largest = one.abs().max()
    chance = torch.minimum((one - again).abs().max(), 1e-3 * largest)
    rounding = torch.maximum(chance, torch.finfo(one.dtype).eps * largest)
    return bool((one - other).abs().max() <= 16 * rounding)


def _check_agreement(one: torch.Tensor, other: torch.Tensor, again: torch.Tensor) -> None:
    """Raises UserError unless they agree."""
    if not _agree(one, other, again):
        raise UserError(
            "an example's loss or gradient changes with the other examples of its batch, or is not "
            "finite; look for means, sorts or norms over the first dimension, and for parameters "
            "that are broadcast along it"
        )


def _check_memory(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> None:
    """Raises UserError unless the second call of the same gave what the first did."""
    if not all(_agree(one, other, one) for one, other in zip(first, second, strict=True)):
        raise UserError(
            "an example's loss or gradient changes from call to call on the same batch, or is not "
            "finite: it depends on earlier examples, which are another batch's then, or on numbers "
            "that no seed of PyTorch decides; look for running means, queues and counters"
        )


def _check_place(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal but for rounding, which may differ from place to place, and may be all there is."""
    if not (one - other).abs().max() <= 1e-2 * one.abs().max() + 1e-6:
        raise UserError(
            "an example's loss or gradient changes with its place in the batch, which depends on "
            "who else was sampled; look for what is made or read row by row, and not from the data"
        )
