"""From losses to the clipped sum as a plan says: gradients are kept, or computed for the sum.

What is kept lies in a few tensors, each of which comes into being in the backward pass, when it is
first written to and the activations that lay there are gone. Of a layer that is computed again only
the input and the gradient of the output are held until all norms are known. Its norm is that of the
very values that the second computation adds, bit for bit, or a bound of it.
"""

from collections.abc import Sequence

import torch

from privimage.dp.clipping import ClipRule
from privimage.dp.gradients.engine import ExampleGradients, Losses, count_examples
from privimage.dp.gradients.kept import Arena, Kept
from privimage.dp.gradients.later import HeldUse, Later
from privimage.dp.gradients.plan import StepPlan
from privimage.errors import UserError

_ARENAS = 16
"""Tensors for all that is kept: each takes some calls, and stands for all of it from the first."""


def planned_clipped_sum(
    gradients: ExampleGradients,
    losses: Losses,
    *batch: torch.Tensor,
    plan: StepPlan,
    rule: ClipRule,
    examples: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """`rule.sum` of the gradients of a batch, in the memory that `plan` allows.

    Formal guarantee: as `clipped_sum`, since norms, scales and rounding see the same values
    (tests/dp/test_recompute.py::test_one_example_moves_the_sum_by_at_most_the_clip), kept or
    computed again (tests/dp/test_recompute.py::test_the_choice_changes_no_bit), or a norm is a
    bound of theirs (tests/dp/test_ghost_bound.py::test_the_bound_is_never_below_what_is_added);
    examples are scaled one by one, so micro-batches change it only as far as they change a forward
    pass.

    Args:
        gradients: of the model that was planned for.
        losses: as for `ExampleGradients`.
        batch: as there, with `plan.draws` rows an example.
        plan: from `privimage.dp.plan`.
        rule: how gradients are clipped.
        examples: the first so many are added up, the others only fill the batch; default all. A
            tensor leaves the number open for `record`, and every example is computed.

    Returns:
        int64 [parameters], in units of C / `GRID_UNITS`.

    Raises:
        UserError: as `ExampleGradients`; more `examples` than the batch has; a layer that the plan
            computes again is used otherwise than when it was planned.
    """
    count = count_examples(batch, plan.draws)
    wanted = count if examples is None else examples
    computed = count if isinstance(wanted, torch.Tensor) else wanted
    if not 0 <= computed <= count:
        raise UserError(f"examples: expected at most the {count} of the batch, got {computed}")
    # The first micro-batch writes all of it.
    allocate = torch.empty if computed else torch.zeros
    total = allocate(gradients.size, dtype=torch.int64, device=gradients.device)
    for first in range(0, computed, plan.examples):
        rows = slice(first * plan.draws, (first + plan.examples) * plan.draws)
        piece = [tensor[rows] for tensor in batch]
        _add(gradients, losses, piece, plan, rule, wanted - first, total, accumulate=first > 0)
    return total


def check_plan(
    gradients: ExampleGradients, losses: Losses, *batch: torch.Tensor, plan: StepPlan
) -> None:
    """Runs a plan once on made-up data, whose gradients must be finite.

    Args:
        gradients: as for `planned_clipped_sum`, like all that follow.
        losses: as there.
        batch: of few examples.
        plan: as there.

    Raises:
        UserError: as there, for changes in place by way of `.data` as well.
    """
    count = count_examples(batch, plan.draws)
    kept, later = _divided(gradients, count, plan, by_module=False)
    for slot in later.values():
        slot.keeps_copies = True
    gradients.write_into({**kept, **later}, losses, *batch, draws=plan.draws)
    for arena in dict.fromkeys(slot.arena for slot in kept.values()):
        arena.squares()
    for slot in later.values():
        slot.taken()


def _add(
    gradients: ExampleGradients,
    losses: Losses,
    batch: Sequence[torch.Tensor],
    plan: StepPlan,
    rule: ClipRule,
    added: int | torch.Tensor,
    total: torch.Tensor,
    *,
    accumulate: bool,
) -> None:
    """Writes the clipped sum of the first `added` examples of one micro-batch, or adds it."""
    count, by_module = count_examples(batch, plan.draws), rule.clipping == "per_layer"
    kept, later = _divided(gradients, count, plan, by_module=by_module)
    gradients.write_into({**kept, **later}, losses, *batch, draws=plan.draws)
    arenas = dict.fromkeys(slot.arena for slot in kept.values())
    uses = [use for slot in later.values() if (use := slot.taken()) is not None]
    modules = len(gradients.module_sizes) if by_module else 1
    squares = total.new_zeros(modules, count, dtype=torch.float64)
    parts: list[Arena | HeldUse] = [*arenas, *uses]
    for part in parts:
        squares[part.module] += part.squares()
    scales = rule.scales(squares) * (torch.arange(count, device=squares.device) < added)
    for part in parts:
        part.add_to(total, scales[part.module], accumulate=accumulate)
    for name, slot in later.items():
        if not (slot.used or accumulate):
            total[gradients.places[name]] = 0


def _divided(
    gradients: ExampleGradients, count: int, plan: StepPlan, *, by_module: bool
) -> tuple[dict[str, Kept], dict[str, Later]]:
    """Where the gradients of a micro-batch go, by the parameter's name: those kept, and the others.

    An arena holds neighbours in the model's order, whole modules, only one if that is asked for.
    """
    arena: Arena | None = None
    kept: dict[str, Kept] = {}
    later: dict[str, Later] = {}
    dtype, device, places = gradients.dtype, gradients.device, gradients.places
    rows_dtype = plan.rows_dtype or dtype
    # On a GPU one sum over all layers is one launch, and blocks that are free are taken again.
    limit = gradients.size // (1 if device.type == "cuda" else _ARENAS)
    end, path, module = -1, None, -1
    for name, shape in gradients.shapes.items():
        owner = name.rpartition(".")[0]
        begins, path = owner != path, owner
        module = module + begins if by_module else 0
        if name in plan.recomputed:
            later[name] = Later(
                *(name, shape, places[name]),
                count=count,
                dtype=dtype,
                module=module,
                by_gram=name in plan.ghosts,
            )
            continue
        first = places[name].start
        is_full = arena is not None and begins and arena.size >= limit
        if arena is None or first != end or arena.module != module or is_full:
            arena = Arena(first, count, rows_dtype, device, module)
        arena.hold(name, shape)
        kept[name], end = Kept(name, arena), places[name].stop
    return kept, later
