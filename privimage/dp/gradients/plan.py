"""What happens to each layer's gradients, and to how many examples at a time, in so much memory.

A gradient that is kept until the norms are known is written to memory and read twice; one that is
computed again for the sum takes its products a second time, and holds the layer's input and its
output's gradient instead. A ghost's norm takes products of positions by positions in place of the
first time, and an embedding's gradient no more than the rows that were read. So most are kept where
there is room, but for wide layers of few positions and for large tables. Where there is no
room, micro-batches get smaller, which costs the layers' overhead more often, or more gradients are
computed for the sum alone, those first that cost least for the bytes they save: whatever is
predicted to take the least time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from privimage import ops
from privimage.dp.gradients.choices import Choice, LayerPlan, kept_layer
from privimage.dp.gradients.costs import Costs, machine_costs
from privimage.dp.gradients.engine import ExampleGradients, Losses
from privimage.dp.gradients.micro_batch import most_examples
from privimage.dp.gradients.observation import Pass, Use, observe
from privimage.errors import UserError, check_count

_ALLOCATED = 1.8
"""Bytes that a process grows by, at most, for each one in tensors that operators return: what they
need inside and what the allocator leaves unused. Seen: 0.7 to 1.8 (benchmarks/kernels-log.md)."""


@dataclass(frozen=True)
class StepPlan:
    """How `planned_clipped_sum` works; its string is a table.

    Attributes:
        layers: in the order of their use.
        draws: rows an example.
        examples: of a micro-batch.
        overhead: predicted seconds a micro-batch takes beside arithmetic.
        observed: an example's pass.
        sizes: bytes of an example's gradients, by parameter.
        rows_dtype: of kept gradients; None for that of gradients.
    """

    layers: tuple[LayerPlan, ...]
    draws: int
    examples: int
    overhead: float
    observed: Pass = field(repr=False)
    sizes: Mapping[str, float] = field(repr=False)
    rows_dtype: torch.dtype | None = None

    @cached_property
    def recomputed(self) -> frozenset[str]:
        """The parameters whose gradients are not kept, but computed for the sum."""
        again = (layer for layer in self.layers if layer.choice != "keep")
        return frozenset(n for one in again for n in (one.weight, one.bias) if n is not None)

    @cached_property
    def ghosts(self) -> frozenset[str]:
        """The weights whose gradients' norms are bounds by Gram matrices."""
        return frozenset(layer.weight for layer in self.layers if layer.choice == "ghost")

    @cached_property
    def bytes_an_example(self) -> float:
        """Predicted growth of the process for each example of a micro-batch."""
        again = dict.fromkeys(self.recomputed, 0.0)
        own = {layer.weight: layer.bytes[layer.choice] for layer in self.layers}
        return _ALLOCATED * self.observed.peak({**self.sizes, **again, **own})

    @cached_property
    def bytes_fixed(self) -> float:
        """Predicted growth whatever the size.

        That is the sum, in integers twice as wide as float32, and what all examples share.
        """
        wide = 4 if self.rows_dtype == torch.bfloat16 else 2
        return _ALLOCATED * (wide * sum(self.sizes.values()) + self.observed.shared)

    @property
    def bytes(self) -> float:
        """Predicted growth of the process during a micro-batch."""
        return self.bytes_fixed + self.examples * self.bytes_an_example

    @property
    def seconds_an_example(self) -> float:
        """Predicted, of all that the plan decides."""
        each = sum(layer.seconds[layer.choice] for layer in self.layers)
        return each + self.overhead / self.examples

    def choosing(self, name: str, choice: Choice) -> "StepPlan":
        """The same plan, with another choice for the layers whose weight's name starts so.

        Raises:
            UserError: no such layer, or one that does not have this choice.
        """
        chosen = [layer for layer in self.layers if layer.weight.startswith(name)]
        if not chosen:
            raise UserError(
                f"no planned layer '{name}'; known are {[x.weight for x in self.layers]}"
            )
        layers = (x.choosing(choice) if x in chosen else x for x in self.layers)
        return replace(self, layers=tuple(layers))

    def __str__(self) -> str:
        lines = [f"{'layer':<34} {'shape':<18} {'positions':>9} {'choice':<9} {'us':>8} {'KB':>8}"]
        for layer in self.layers:
            cost = (
                f"{1e6 * layer.seconds[layer.choice]:8.1f} {layer.bytes[layer.choice] / 1e3:8.1f}"
            )
            shape = "x".join(map(str, layer.shape))
            lines.append(
                f"{layer.weight:<34} {shape:<18} {layer.positions:>9} {layer.choice:<9} {cost}  "
                f"{layer.reason}"
            )
        lines.append(
            f"micro-batches of {self.examples} examples x {self.draws} draws: "
            f"{self.bytes / 1e6:.0f} MB; an example: {self.bytes_an_example / 1e6:.1f} MB, and "
            f"{1e3 * self.seconds_an_example:.2f} ms of weight gradients and overhead"
        )
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example: Sequence[int] | Sequence[torch.Tensor],
    *,
    draws: int = 1,
    max_memory: float | None = None,
    examples: int | None = None,
    losses: Losses | None = None,
    costs: Costs | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    rows_dtype: torch.dtype | None = None,
) -> StepPlan:
    """Plans from shapes alone, by one forward and backward pass over made-up data.

    Args:
        model: as for `ExampleGradients`.
        example: the shape of one example's input; or, with `losses`, made-up tensors
            [draws, ...] of one example, as `losses(model, *tensors)` takes them.
        draws: rows an example.
        max_memory: bytes by which the process may grow during a micro-batch, beside what the
            libraries take once; None for no limit.
        examples: the largest micro-batch; None for what suits the device.
        losses: as for `ExampleGradients`; by default the sum of what the model returns.
        costs: default those of this machine, which `privimage doctor` shows, or of its GPU.
        memory_format: as for `ExampleGradients`.
        rows_dtype: of kept gradients, by default float32. On a GPU torch.bfloat16 halves what is
            written and read for them; each value is rounded, by up to 2^-9 of itself, before its
            norm is taken and it is added.

    Raises:
        UserError: as `ExampleGradients`, one example does not fit into `max_memory`, or gradients
            can't be kept in `rows_dtype` here.
    """
    check_count("draws", draws)
    device = next(model.parameters()).device
    examples = most_examples(device, draws) if examples is None else examples
    check_count("examples", examples)
    tensors = [each for each in example if isinstance(each, torch.Tensor)]
    if not tensors:
        tensors = [torch.zeros(draws, *(int(size) for size in example), device=device)]
    gradients = ExampleGradients(model, memory_format)
    width = _width(rows_dtype, gradients)
    observed = observe(gradients, losses or _sum_of_outputs, tensors, draws)
    costs = costs or machine_costs(device)
    if rows_dtype == torch.bfloat16:
        costs = replace(costs, keep=costs.keep / 2)  # It is traffic.
    names = (name for use in observed.uses for name in (use.weight, use.bias) if name)
    counted = Counter([*names, *observed.others])
    if device.type != "cpu":
        observed = observed.written_first()
    native = ops.has_kernels(device)
    layers = tuple(
        kept_layer(
            use,
            costs,
            examples,
            _obstacle(use, counted, native=native),
            _no_bound(device),
            width,
        )
        for use in observed.uses[::-1]
    )
    sizes = {name: float(width * shape.numel()) for name, shape in gradients.shapes.items()}
    overhead = costs.layer * len(gradients.module_sizes)
    found = StepPlan(layers, draws, examples, overhead, observed, sizes, rows_dtype)
    return _within(found, float("inf") if max_memory is None else max_memory)


def _width(rows_dtype: torch.dtype | None, gradients: ExampleGradients) -> int:
    """Bytes of a value that is kept."""
    if rows_dtype is None:
        return gradients.dtype.itemsize
    row = torch.empty(0, dtype=rows_dtype, device=gradients.device)
    (taken,) = ops.as_taken(gradients.dtype, row)
    if taken.dtype != rows_dtype:
        raise UserError(
            f"rows_dtype: {gradients.dtype} gradients on {gradients.device} can't be kept in "
            f"{rows_dtype}; leave it out (on a GPU, torch.bfloat16 does for float32)"
        )
    return rows_dtype.itemsize


def _within(found: StepPlan, max_memory: float) -> StepPlan:
    """The fastest of the plans that fit: with the first so many layers by price not kept."""
    order = sorted((x for x in found.layers if x.price < float("inf")), key=lambda x: x.price)
    best, least = None, float("inf")
    for count in range(len(order) + 1):
        again = {layer.weight for layer in order[:count]}
        layers = (x.keeping_nothing() if x.weight in again else x for x in found.layers)
        tried = replace(found, layers=tuple(layers))
        least = min(least, tried.bytes_fixed + tried.bytes_an_example)
        fitting = (max_memory - tried.bytes_fixed) / tried.bytes_an_example
        if fitting >= 1:
            tried = replace(tried, examples=int(min(fitting, found.examples)))
            if best is None or tried.seconds_an_example < best.seconds_an_example:
                best = tried
    if best is None:
        raise UserError(
            f"one example takes {least / 1e6:.1f} MB, more than the {max_memory / 1e6:.1f} of "
            "max_memory; allow more, or use fewer draws"
        )
    return best


def _obstacle(use: Use, counted: Mapping[str, int], *, native: bool) -> str:
    """Why a layer's gradients must be kept; empty if they need not."""
    if counted[use.weight] > 1 or (use.bias is not None and counted[use.bias] > 1):
        return "used more than once"  # The norm is that of the sum.
    if use.bias is not None and _module_of(use.bias) != _module_of(use.weight):
        return "its bias is another module's"  # Clipping by layer takes them apart.
    return "" if native else "no native operator here repeats itself bit for bit"


def _no_bound(device: torch.device) -> str:
    """Why a norm there can't be a bound by Gram matrices; empty if it can."""
    return "" if device.type == "cpu" else "how a tensor core rounds is nowhere promised"


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _sum_of_outputs(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    """One number a row."""
    output: torch.Tensor = model(*batch)
    return output.flatten(1).sum(1)
