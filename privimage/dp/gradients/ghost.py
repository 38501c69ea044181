"""Norms of linear layers' gradients by Gram matrices, rounded up to what is really added."""

import torch

from privimage import ops


def ghost_squares(x: torch.Tensor, grad: torch.Tensor, *, with_bias: bool) -> torch.Tensor:
    """The square of a bound of the norm of each example's gradient, which is never computed.

    Let x_t (with a 1 behind it where there is a bias) and g_t be an example's values at position
    t = 1 … T, over all its draws, and B = Σ |x_t| |g_t|. What is added is not G = Σ g_t x_t' but
    Ĝ, computed by `ops.recomputed_sum` in the type of x, of unit roundoff u. Its norm is at most

        √(Q + n 2^-52 B²) + γ B + F,    γ = (T + 2) u / (1 - (T + 2) u).

    - Q is Σ <x_t, x_s> <g_t, g_s> over all pairs, as `ops.gram_sums` has it in float64; of exact
      numbers it is |G|². Whatever the order of the sums, a term of it passes through at most
      n = inputs + outputs + T² + 8 roundings of 2^-53, so Q is off by n 2^-53 Σ |x_t| |x_s| |g_t|
      |g_s| = n 2^-53 B²; twice that pays for B's own roundings and for terms of higher order.
    - A value of Ĝ is a sum of T products. Whatever its order, with or without fused multiply-adds,
      a product passes through at most T roundings, since adding to zero is exact; so the value is
      off by T u / (1 - T u) Σ |x_ti| |g_to| (Higham, Accuracy and Stability of Numerical
      Algorithms, 3.1), and Ĝ in norm by as much of B. T + 2 pays for the roundings of B.
    - F pays for underflow. Let e be the smallest normal number. A product or sum that underflows,
      or is flushed to zero, is off by at most e, and so is an input that is flushed
      (`torch.set_flush_denormal`): of Ĝ that makes e (√inputs Σ |g_t| + √outputs Σ |x_t| +
      2 T √(inputs outputs)), and F is twice that, for what Q and B miss. Squares of float64
      underflow earlier; then e is 2^-511.

    Where B is more than half of what the type of x holds, a value of Ĝ could overflow: then, as
    where something is not finite, the result is not finite, and the example adds nothing.

    Formal guarantee: a row is a function of its example alone, bit for bit, and not below the
    squared norm of what `ops.recomputed_sum` scales and adds
    (tests/dp/test_ghost.py::test_the_bound_is_never_below_what_is_added).

    Args:
        x: float32 or float64 [examples, T, inputs], what the layer was given.
        grad: [examples, T, outputs], gradient of its output.
        with_bias: whether a bias is added to the sum as well.

    Returns:
        float64 [examples].
    """
    gram, reach, x_lengths, grad_lengths = ops.gram_sums(x, grad, with_bias)
    positions, inputs, outputs = x.shape[1], x.shape[2] + with_bias, grad.shape[2]
    limits = torch.finfo(x.dtype)
    unit, least = limits.eps / 2, max(limits.tiny, 2.0**-511)
    roundings = inputs + outputs + positions**2 + 8
    share = (positions + 2) * unit
    if share > 0.5:
        return torch.full_like(gram, torch.inf)
    floor = inputs**0.5 * grad_lengths + outputs**0.5 * x_lengths
    floor = 2 * least * (floor + 2 * positions * (inputs * outputs) ** 0.5)
    norms = (gram.clamp(min=0) + roundings * 2.0**-52 * reach.square()).sqrt()
    norms = (norms + share / (1 - share) * reach + floor) * (1 + 2.0**-40)
    return torch.where(reach <= limits.max / 2, norms, torch.inf).square()
