"""A text classifier of an embedding and an LSTM, trained privately on made-up sentences."""

import torch
from torch import nn
from torch.nn import functional as F

from privimage.dp import DPAdam, Privacy, PrivateEngine


class Classifier(nn.Module):
    """Words -> states -> the largest of each feature; word 0 fills up short sentences."""

    def __init__(self, words: int = 50, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 2)

    def forward(self, sentences: torch.Tensor) -> torch.Tensor:
        """[rows, words] -> [rows, classes]."""
        return self.head(self.lstm(self.words(sentences))[0].amax(1))


def main(epochs: int = 20, rate: float = 0.1) -> float:
    """Learns whether word 1 is in a sentence; returns the accuracy on public sentences."""
    sentences = torch.randint(2, 50, (1000, 12)) * (torch.rand(1000, 12) < 0.8)
    labels = torch.arange(1000) % 2
    sentences[labels == 1, 3] = 1
    model = Classifier()
    privacy = Privacy.for_epsilon(8.0, 1e-4, rate, steps=int(epochs / rate), max_grad_norm=0.5)
    optimizer = DPAdam(model.parameters(), lr=1e-2)
    losses = lambda model, x, y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    engine = PrivateEngine(model, optimizer, losses, (sentences[:800], labels[:800]), privacy)
    for _ in range(privacy.steps):
        engine.step()
    return (model(sentences[800:]).argmax(1) == labels[800:]).double().mean().item()
