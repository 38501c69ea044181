"""Opacus' MNIST example with privimage.dp, on the 1,797 digits that come with scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from privimage.dp import DPAdam, Privacy, PrivateEngine


def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One loss an example; their mean is never taken."""
    return F.cross_entropy(model(images), labels, reduction="none")


def main(steps: int = 60) -> float:
    """Trains with ε = 3 on 1,437 digits and returns the accuracy on the other 360."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(classes)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers)

    privacy = Privacy.for_epsilon(3.0, delta=1e-4, sample_rate=0.5, steps=steps)
    optimizer = DPAdam(model.parameters(), lr=5e-3)
    data = images[:1437], labels[:1437]
    engine = PrivateEngine(model, optimizer, losses, data, privacy)
    for _ in range(privacy.steps):
        engine.step()

    accuracy = (model(images[1437:]).argmax(1) == labels[1437:]).double().mean().item()
    print(f"accuracy {accuracy:.1%} at ε = {engine.epsilon(delta=1e-4):.2f}")
    return accuracy


if __name__ == "__main__":
    main()
