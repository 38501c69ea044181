"""`torch.nn.MultiheadAttention` with its projections' gradients for each example."""

from typing import Any

import torch
from torch.nn import functional as F

from privimage.dp.rules.examples import Examples
from privimage.dp.rules.linear import linear
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
    """`F.multi_head_attention_forward` on [tokens, rows, width].

    Raises:
        UserError: `is_causal` with tokens added, which PyTorch masks only if no weights are asked
            for; `static_k` and `static_v`.
    """
    bias_k, bias_v, add_zero, dropout, out_weight, out_bias = others
    if options.get("is_causal") and (bias_k is not None or add_zero):
        raise UserError("add_bias_kv and add_zero_attn are not known with is_causal; give a mask")
    if options.get("static_k") is not None or options.get("static_v") is not None:
        raise UserError("static_k and static_v are not supported; leave them out")
    if query.dim() != 3:
        raise UserError(f"its query {list(query.shape)} has no dimension for the examples")
    inputs = (query, key, value)
    if in_weight is None:  # Keys and values have widths of their own.
        weights_of = [options[f"{name}_proj_weight"] for name in "qkv"]
        thirds = _projected_apart(examples, inputs, weights_of, in_bias)
    else:
        thirds = _projected(examples, inputs, in_weight, in_bias)
    q, k, v = thirds
    mask = _mask(num_heads, q, k, options)
    k, v = (_extended(examples, x, add, add_zero) for x, add in ((k, bias_k), (v, bias_v)))
    if mask is not None:
        mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    # [rows, heads, tokens, width / heads] each
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
    """Query, key and value [rows, tokens, width] behind their thirds of the packed projection.

    Each goes through all of it, and a third is used: where all three are the same tensor, as in
    self-attention, nothing is wasted.
    """
    done: dict[int, tuple[torch.Tensor, ...]] = {}
    for x in inputs:
        if id(x) not in done:
            rows = x.transpose(0, 1)
            done[id(x)] = linear(examples, rows, weight, bias).chunk(3, dim=-1)
    return [done[id(x)][i] for i, x in enumerate(inputs)]


def _projected_apart(
    examples: Examples,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weights: list[torch.Tensor],
    bias: torch.Tensor | None,
) -> list[torch.Tensor]:
    """As `_projected`, by a weight each, and one bias for all three."""
    projected = [
        linear(examples, x.transpose(0, 1), weight)
        for x, weight in zip(inputs, weights, strict=True)
    ]
    if bias is None:
        return projected
    shifts = examples.by_row(bias, inputs[0].shape[1], 3).chunk(3, dim=-1)
    return [x + shift for x, shift in zip(projected, shifts, strict=True)]


def _extended(
    examples: Examples, x: torch.Tensor, token: torch.Tensor | None, add_zero: bool
) -> torch.Tensor:
    """Keys or values [rows, tokens, width] and a learned token behind them, and one of zeros."""
    if token is not None:
        x = torch.cat([x, examples.by_row(token, len(x), 3)], dim=1)
    return F.pad(x, (0, 0, 0, 1)) if add_zero else x


def _mask(
    num_heads: int, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor | None:
    """What is added to the scores [rows, heads, queries, keys]: -inf where a mask says True.

    q, k: [rows, tokens, width].
    """
    total = None
    attention, padding = options.get("attn_mask"), options.get("key_padding_mask")
    if attention is not None and attention.dim() == 3:
        attention = attention.unflatten(0, (len(q), num_heads))
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
