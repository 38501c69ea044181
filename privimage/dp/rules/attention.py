"""`torch.nn.MultiheadAttention` with its projections' gradients for each example."""

from typing import Any

import torch
from torch.nn import functional as F

from privimage.dp.rules.linear import linear
from privimage.dp.rules.slots import Examples
from privimage.errors import UserError


def multi_head_attention(
    examples: Examples,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    width: int,
    num_heads: int,
    in_weight: torch.Tensor | None,
    in_bias: torch.Tensor | None,
    *others: Any,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`F.multi_head_attention_forward` on [tokens, rows, width], projections in one weight.

    The projections of query, key and value are the whole packed one each, of which a third is
    used: where all three are the same tensor, as in self-attention, nothing is wasted.

    Raises:
        UserError: keys or values of another width, or the options `add_bias_kv`, `add_zero_attn`.
    """
    bias_k, bias_v, add_zero, dropout, out_weight, out_bias = others
    if in_weight is None:
        raise UserError("kdim and vdim are not supported; project keys and values by nn.Linear")
    if bias_k is not None or bias_v is not None or add_zero:
        raise UserError("add_bias_kv and add_zero_attn are not supported; leave them out")
    if query.dim() != 3:
        raise UserError(f"its query {list(query.shape)} has no dimension for the examples")
    thirds = _projected(examples, (query, key, value), in_weight, in_bias)
    q, k, v = (third.unflatten(-1, (num_heads, -1)).transpose(1, 2) for third in thirds)
    # [rows, heads, tokens, width / heads] each
    mask = _mask(q, k, options)
    dropout = dropout if options.get("training", True) else 0.0
    weights = None
    if options.get("need_weights", True):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = F.dropout(weights, dropout)
        mixed = weights @ v
        weights = weights.mean(1) if options.get("average_attn_weights", True) else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    rows = mixed.transpose(1, 2).flatten(-2)
    return linear(examples, rows, out_weight, out_bias).transpose(0, 1), weights


def _projected(
    examples: Examples,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Query, key and value [rows, tokens, width] behind their thirds of the packed projection."""
    done: dict[int, tuple[torch.Tensor, ...]] = {}
    for x in inputs:
        if id(x) not in done:
            rows = x.transpose(0, 1)
            done[id(x)] = linear(examples, rows, weight, bias).chunk(3, dim=-1)
    return [done[id(x)][i] for i, x in enumerate(inputs)]


def _mask(q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> torch.Tensor | None:
    """What is added to the scores [rows, heads, queries, keys]: -inf where a mask says True."""
    total = None
    attention, padding = options.get("attn_mask"), options.get("key_padding_mask")
    if attention is not None and attention.dim() == 3:
        attention = attention.unflatten(0, q.shape[:2])
    if padding is not None:
        padding = padding[:, None, None, :]
    for mask in (attention, padding):
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = q.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
            total = mask if total is None else total + mask
    if total is None and options.get("is_causal"):
        total = q.new_full((q.shape[-2], k.shape[-2]), float("-inf")).triu(1)
    return total
