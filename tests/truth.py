"""What per-example gradients are held against, an example at a time; and examples hard to bound."""

import torch


def one_at_a_time(model, losses, batch, draws=1):
    """[examples, P]: the gradient of each example's mean loss over its draws."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.empty(0, sum(p.numel() for p in parameters), dtype=parameters[0].dtype)]
    for first in range(0, len(batch[0]), draws):
        # Contiguous, because of PyTorch 2.13's own channels-last GroupNorm (see `group_norm`).
        example = (tensor[first : first + draws].contiguous() for tensor in batch)
        loss = losses(model, *example).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        pieces = zip(gradients, parameters, strict=True)
        flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pieces]
        rows.append(torch.cat(flat)[None])
    return torch.cat(rows)


def cancelling(x, grad):
    """Tokens whose products add up to zero exactly, but for the rounding of each of them."""
    third = x.shape[1] // 3
    first, second = grad[:, :third], (64 * grad[:, third : 2 * third]).round() / 64
    first = (64 * first).round() / 64
    together = torch.cat([first, second, -(first + second)], 1)
    return x[:, :third].repeat(1, 3, 1), together
