"""Tables that are read by index, with the gradients of their entries for each example."""

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from privimage import ops
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.slots import Slot, claim, once_differentiable
from privimage.errors import UserError

NOT_SPARSE = "sparse gradients are not supported; leave sparse out"


def embedding(
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    """`F.embedding` of indices [rows, ...]; entry `padding_idx` has gradient 0, as there."""
    if max_norm is not None:
        raise UserError("max_norm changes the table while it is read; leave it out")
    if scale_grad_by_freq:
        raise UserError("scale_grad_by_freq counts over all examples; leave it out")
    if sparse:
        raise UserError(NOT_SPARSE)
    slot, _ = examples.slots_of(weight, None)
    if slot is None:
        return F.embedding(x, weight, padding_idx)
    output: torch.Tensor = _ExampleEmbedding.apply(  # type: ignore[no-untyped-call]
        examples.anchor, x, weight.detach(), slot, padding_idx
    )
    return output


def embedding_bag(
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    offsets: torch.Tensor | None = None,
    mode: str = "mean",
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """`F.embedding_bag` of indices [rows, bag], or of one dimension and [rows] offsets.

    PyTorch hands its arguments over by name; `options` are those of `embedding`.
    """
    if examples.owns(x) or x.dim() != (2 if offsets is None else 1):
        raise UserError("its indices must be data [rows, bag], or [indices] with offsets")
    counted = torch.ones_like(x, dtype=torch.bool)
    if offsets is not None:
        place, counted = _bags(offsets, len(x), include_last_offset)
        x = F.pad(x, (0, 1))[place]
        if per_sample_weights is not None:
            per_sample_weights = F.pad(per_sample_weights, (0, 1))[place]
    examples.check_rows(x)
    found = embedding(examples, x, weight, **options)
    if padding_idx is not None:
        counted = counted & (x != padding_idx % len(weight))
    if mode == "max":
        highest = found.masked_fill(~counted[..., None], float("-inf")).amax(1)
        return highest.where(counted.any(1)[:, None], 0.0)
    shares = counted.to(found.dtype)
    if mode == "mean":
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    if per_sample_weights is not None:
        shares = shares * per_sample_weights
    return (found * shares[..., None]).sum(1)


def _bags(
    offsets: torch.Tensor, size: int, include_last_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each bag's indices are among `size`, [rows, longest bag], and which places count.

    The others say `size`, behind the last.
    """
    ends = offsets[1:]
    if include_last_offset:
        offsets = offsets[:-1]
    else:
        ends = F.pad(ends, (0, 1), value=size)
    lengths = ends - offsets
    if offsets[0] != 0 or (lengths < 0).any() or ends[-1] > size:
        raise UserError(f"its offsets must begin at 0 and rise to at most the {size} indices")
    within = torch.arange(max(int(lengths.max()), 1), device=offsets.device)
    counted = within < lengths[:, None]
    return torch.where(counted, offsets[:, None] + within, size), counted


class _ExampleEmbedding(Function):
    """F.embedding of a table [entries, width] with a slot."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        indices: torch.Tensor,
        weight: torch.Tensor,
        slot: Slot,
        padding_idx: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(indices)
        # From the end or from the start: the gradient's rule counts from the start.
        ctx.slot, ctx.padding = slot, None if padding_idx is None else padding_idx % len(weight)
        return F.embedding(indices, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        nothing = (None,) * 5
        if not ctx.slot.is_open or ctx.slot.take_read(indices, grad, ctx.padding):
            return nothing
        rows = ctx.slot.rows
        wide = torch.promote_types(rows.dtype, torch.float32)
        (taken,) = ops.as_taken(wide, grad)
        slopes = taken.reshape(len(rows), -1, grad.shape[-1])
        read = indices.reshape(len(rows), -1)
        if rows.dtype == wide:
            ops.example_embedding_grad(read, slopes, rows, ctx.padding, claim(ctx.slot))
        else:  # It would round after each position.
            parts = torch.empty_like(rows, dtype=wide)
            ops.example_embedding_grad(read, slopes, parts, ctx.padding)
            ctx.slot.add(parts)
        return nothing
