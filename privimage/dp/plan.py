"""How a model's clipped sum is computed best here: what is kept, what is computed again, how many.

Keeping a layer's gradients costs memory traffic for each value: it is written, read for the norm
and read for the sum. Computing them again for the sum costs their products a second time. Which is
less depends on the positions that a weight sees: few of them make products cheap.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from privimage import ops
from privimage.dp.costs import Costs, machine_costs
from privimage.dp.engine import ExampleGradients, Losses
from privimage.dp.slots import Slot
from privimage.errors import UserError, check_count
from privimage.ops._library import is_native

Choice = Literal["keep", "recompute"]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer's gradients.

    Attributes:
        weight: the parameter's name.
        bias: that of the bias that is used with it, if it is.
        shape: of the weight.
        positions: pixels (or tokens) x draws that an example's gradient sums over.
        seconds: predicted, an example, of each choice beside the gradient itself.
        bytes: held until the sum, an example, of each choice.
        choice: what happens.
        reason: why.
        must_keep: whether computing them again is no choice.
    """

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    positions: int
    seconds: dict[Choice, float]
    bytes: dict[Choice, float]
    choice: Choice
    reason: str
    must_keep: bool = False


@dataclass(frozen=True)
class StepPlan:
    """How `planned_clipped_sum` works; its string is a table.

    Attributes:
        layers: in the order of their use.
        draws: rows an example.
        examples: of a micro-batch.
        activations: bytes that one example's forward pass leaves for the backward pass.
        kept: bytes an example of the parameters that no layer here owns.
    """

    layers: tuple[LayerPlan, ...]
    draws: int
    examples: int
    activations: float
    kept: float
    recomputed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = [
            name
            for layer in self.layers
            if layer.choice == "recompute"
            for name in (layer.weight, layer.bias)
            if name is not None
        ]
        object.__setattr__(self, "recomputed", frozenset(names))

    @property
    def bytes_an_example(self) -> float:
        """Predicted, at the end of the backward pass."""
        return self.activations + self.kept + sum(one.bytes[one.choice] for one in self.layers)

    def choosing(self, name: str, choice: Choice) -> "StepPlan":
        """The same plan, with another choice for the layers whose weight's name starts so.

        Raises:
            UserError: no such layer, or one that can't be computed again.
        """
        chosen = [layer for layer in self.layers if layer.weight.startswith(name)]
        if not chosen:
            raise UserError(
                f"no planned layer '{name}'; known are {[x.weight for x in self.layers]}"
            )
        layers = [
            _chosen(layer, choice, "asked for") if layer in chosen else layer
            for layer in self.layers
        ]
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
        seconds = sum(layer.seconds[layer.choice] for layer in self.layers)
        lines.append(
            f"micro-batches of {self.examples} examples x {self.draws} draws; an example: "
            f"{1e3 * seconds:.2f} ms beside the gradients themselves, "
            f"{self.bytes_an_example / 1e6:.1f} MB, of them {self.activations / 1e6:.1f} MB of "
            "activations"
        )
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example: Sequence[int] | Sequence[torch.Tensor],
    *,
    draws: int = 1,
    max_memory: float | None = None,
    examples: int = 64,
    losses: Losses | None = None,
    costs: Costs | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> StepPlan:
    """Plans from shapes alone, by one forward and backward pass over made-up data.

    Args:
        model: as for `ExampleGradients`.
        example: the shape of one example's input; or, with `losses`, made-up tensors
            [draws, ...] of one example, as `losses(model, *tensors)` takes them.
        draws: rows an example.
        max_memory: bytes for activations and gradients of a micro-batch; it gets so small, down to
            one example, that they fit. None for no limit.
        examples: the largest micro-batch.
        losses: as for `ExampleGradients`; by default the sum of what the model returns.
        costs: default those of this machine, `privimage doctor` shows them.
        memory_format: as for `ExampleGradients`.

    Raises:
        UserError: as `ExampleGradients`, or one example does not fit into `max_memory`.
    """
    check_count("draws", draws)
    check_count("examples", examples)
    tensors = [each for each in example if isinstance(each, torch.Tensor)]
    if not tensors:
        tensors = [torch.zeros(draws, *(int(size) for size in example))]
    gradients = ExampleGradients(model, memory_format)
    uses, activations = _observe(gradients, losses or _sum_of_outputs, tensors, draws)
    costs = costs or machine_costs()
    counted = Counter(name for use in uses for name in (use.weight, use.bias) if name)
    native = is_native and next(model.parameters()).device.type == "cpu"
    layers = tuple(
        _planned(use, costs, examples, _obstacle(use, counted, native=native)) for use in uses
    )
    owned = {name for layer in layers for name in (layer.weight, layer.bias)}
    kept = sum(4.0 * shape.numel() for name, shape in gradients.shapes.items() if name not in owned)
    found = StepPlan(layers, draws, examples, activations, kept)
    return found if max_memory is None else _within(found, max_memory)


def _within(found: StepPlan, max_memory: float) -> StepPlan:
    """The plan with as many examples as fit; with less memory an example if not even one does."""
    if found.bytes_an_example > max_memory:
        layers = [
            _chosen(layer, "recompute", "saves memory")
            if layer.bytes["recompute"] < layer.bytes["keep"]
            and layer.choice == "keep"
            and not layer.must_keep
            else layer
            for layer in found.layers
        ]
        found = replace(found, layers=tuple(layers))
    if found.bytes_an_example > max_memory:
        raise UserError(
            f"one example takes {found.bytes_an_example / 1e6:.1f} MB, more than the "
            f"{max_memory / 1e6:.1f} of max_memory; allow more, or use fewer draws"
        )
    return replace(found, examples=min(found.examples, int(max_memory // found.bytes_an_example)))


@dataclass(frozen=True)
class _Use:
    """One use of a weight by a convolution or linear layer; sizes of one example's tensors."""

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    positions: int
    held: int


class _Noting(Slot):
    """A slot that takes no values and notes who would have written them."""

    def __init__(self, name: str, rows: torch.Tensor, uses: list[_Use]) -> None:
        super().__init__(rows)
        self.name = name
        self._uses = uses

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: Slot | None, geometry: ops.ConvGeometry
    ) -> bool:
        """Notes the use."""
        name = bias.name if isinstance(bias, _Noting) else None
        positions = grad.numel() // max(grad.shape[1], 1)
        shape = tuple(self.rows.shape[1:])
        self._uses.append(_Use(self.name, name, shape, positions, x.numel() + grad.numel()))
        return True


def _observe(
    gradients: ExampleGradients, losses: Losses, tensors: list[torch.Tensor], draws: int
) -> tuple[list[_Use], float]:
    """The uses of weights in one example's pass, in order, and the bytes that it saves."""
    uses: list[_Use] = []
    arena = gradients.arena(1)
    slots = {
        name: _Noting(name, slot.rows, uses) for name, slot in gradients.slots_in(arena).items()
    }
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gradients.write_into(slots, losses, *tensors, draws=draws)
    parameters = sum(4 * shape.numel() for shape in gradients.shapes.values())
    return uses[::-1], max(float(sum(saved.values()) - parameters), 0.0)


def _obstacle(use: _Use, counted: Mapping[str, int], *, native: bool) -> str:
    """Why a layer's gradients can't be computed again; empty if they can."""
    if counted[use.weight] > 1 or (use.bias is not None and counted[use.bias] > 1):
        return "used more than once"  # The norm is that of the sum.
    return "" if native else "no native operator here repeats itself bit for bit"


def _planned(use: _Use, costs: Costs, examples: int, obstacle: str) -> LayerPlan:
    """The cheaper choice for a layer."""
    values = torch.Size(use.shape).numel()
    again = use.positions * costs.multiply_add + costs.recompute
    seconds: dict[Choice, float] = {
        "keep": values * costs.keep,
        "recompute": values * again + costs.call / examples,
    }
    held: dict[Choice, float] = {"keep": 4.0 * values, "recompute": 4.0 * use.held}
    cheaper: Choice = "keep" if obstacle else min(seconds, key=lambda choice: seconds[choice])
    other: Choice = "keep" if cheaper == "recompute" else "recompute"
    reason = obstacle or f"{other} takes {seconds[other] / seconds[cheaper]:.1f}x"
    return LayerPlan(
        use.weight,
        use.bias,
        use.shape,
        use.positions,
        seconds,
        held,
        cheaper,
        reason,
        must_keep=bool(obstacle),
    )


def _chosen(layer: LayerPlan, choice: Choice, reason: str) -> LayerPlan:
    if choice == "recompute" and layer.must_keep:
        raise UserError(f"'{layer.weight}' must be kept: {layer.reason}")
    return replace(layer, choice=choice, reason=reason)


def _sum_of_outputs(model: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    """One number a row."""
    output: torch.Tensor = model(*batch)
    return output.flatten(1).sum(1)
