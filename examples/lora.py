"""Low-rank adapters (Hu et al., arXiv 2106.09685) of a frozen public model are all that learns."""

import torch
from torch import nn
from torch.nn import functional as F

from privimage.dp import DPAdamW, Privacy, PrivateEngine


class LoRA(nn.Module):
    """A frozen linear layer and a low-rank update of it."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(layer.in_features, rank) / rank)
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs] -> [rows, outputs]."""
        return self.layer(x) + x @ self.down @ self.up


def main(steps: int = 30) -> nn.Module:
    """Adapts its two layers at two learning rates, with a schedule."""
    x, y = torch.randn(500, 16), torch.randint(0, 3, (500,))
    model = nn.Sequential(LoRA(nn.Linear(16, 64)), nn.ReLU(), LoRA(nn.Linear(64, 3)))
    privacy = Privacy.for_epsilon(3.0, delta=1e-4, sample_rate=0.1, steps=steps)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-2}]
    optimizer = DPAdamW(groups, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses = lambda model, x, y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    engine = PrivateEngine(model, optimizer, losses, (x, y), privacy)
    for _ in range(steps):
        engine.step()
        scheduler.step()
    return model
