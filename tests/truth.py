"""What per-example gradients are held against: ordinary autograd, an example at a time."""

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
