"""Norms of layers' gradients by Gram matrices, rounded up to what is really added."""

import torch

from privimage import ops


def ghost_squares(
    x: torch.Tensor,
    grad: torch.Tensor,
    examples: int,
    taps: tuple[int, int],
    geometry: ops.ConvGeometry,
    *,
    with_bias: bool,
) -> torch.Tensor:
    """The square of a bound of the norm of each example's gradient, which is never computed.

    Let u_t be the D = inputs x taps values of an example that position t = 1 … T of the output
    reads, over all its draws, with exact zeros for what lies beyond the image and a 1 behind them
    where there is a bias (then D is one more). A linear layer has one tap. Let g_t be the gradient
    of the output there, and B = Σ |u_t| |g_t|. What is added is not G = Σ g_t u_t' but Ĝ, computed
    by `ops.recomputed_sum` in the type of x, of unit roundoff u. Its norm is at most

        √(Q + n 2^-52 B²) + γ B + F,    γ = (T + 2) u / (1 - (T + 2) u).

    - Q is Σ <u_t, u_s> <g_t, g_s> over all pairs, as `ops.gram_sums` has it in float64; of exact
      numbers it is |G|². There <u_t, u_s> is a sum over taps of products of two pixels, and those
      are sums over inputs, in pieces. Whatever the order of all these sums, with or without fused
      multiply-adds, a term passes through at most n = 2 (D + outputs) + T² + 8 roundings of 2^-53:
      2 inputs and 2 outputs in the products of vectors, since there are no more pieces than values;
      one a tap and one for the bias, with those of the inputs at most 2 D + 3 together; one for the
      product of both, and T² over the pairs, since adding to zero is exact. So Q is off by n 2^-53
      times the sizes of all terms, which come to at most Σ |u_t| |u_s| |g_t| |g_s| = B²; twice that
      pays for B's own roundings and for terms of higher order.
    - A value of Ĝ is a sum of T products, fewer where a tap reaches beyond the image. Whatever its
      order, with or without fused multiply-adds, a product passes through at most T roundings,
      since adding to zero is exact; so the value is off by T u / (1 - T u) Σ |u_ti| |g_to| (Higham,
      Accuracy and Stability of Numerical Algorithms, 3.1), and Ĝ in norm by as much of B. T + 2
      pays for the roundings of B.
    - F pays for underflow. Let e be the smallest normal number. A product or sum that underflows,
      or is flushed to zero, is off by at most e, and so is an input that is flushed
      (`torch.set_flush_denormal`): of Ĝ that makes e (√D Σ |g_t| + √outputs Σ |u_t| +
      2 T √(D outputs)), and F is twice that, for what Q and B miss. Squares of float64 underflow
      earlier; then e is 2^-511.

    Where B is more than half of what the type of x holds, a value of Ĝ could overflow: then, as
    where something is not finite, the result is not finite, and the example adds nothing.

    Formal guarantee: a row is a function of its example alone, bit for bit, and not below the
    squared norm of what `ops.recomputed_sum` scales and adds
    (tests/dp/test_ghost_bound.py::test_the_bound_is_never_below_what_is_added).

    Args:
        x: float32 or float64 [examples x draws, inputs, height, width], what the layer was given.
        grad: [examples x draws, outputs, height', width'], gradient of its output.
        examples: divides the rows.
        taps: of the convolution, height and width.
        geometry: stride, padding, dilation, and one group.
        with_bias: whether a bias is added to the sum as well.

    Returns:
        float64 [examples].
    """
    gram, reach, x_lengths, grad_lengths = ops.gram_sums(
        x, grad, examples, taps, with_bias, geometry
    )
    positions = len(grad) // max(examples, 1) * grad.shape[2] * grad.shape[3]
    inputs, outputs = x.shape[1] * taps[0] * taps[1] + with_bias, grad.shape[1]
    limits = torch.finfo(x.dtype)
    unit, least = limits.eps / 2, max(limits.tiny, 2.0**-511)
    roundings = 2 * (inputs + outputs) + positions**2 + 8
    share = (positions + 2) * unit
    if share > 0.5:
        return torch.full_like(gram, torch.inf)
    floor = inputs**0.5 * grad_lengths + outputs**0.5 * x_lengths
    floor = 2 * least * (floor + 2 * positions * (inputs * outputs) ** 0.5)
    norms = (gram.clamp(min=0) + roundings * 2.0**-52 * reach.square()).sqrt()
    norms = (norms + share / (1 - share) * reach + floor) * (1 + 2.0**-40)
    return torch.where(reach <= limits.max / 2, norms, torch.inf).square()
