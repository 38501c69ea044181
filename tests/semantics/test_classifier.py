"""The classifier of the public images learns from batches of any size."""

import pytest
import torch
from torch import nn

from privimage.data import ImageSet
from privimage.semantics import classifier
from privimage.semantics.classifier import ClassifierSettings, ClassifierTraining

SETTINGS = ClassifierSettings(steps=4, batch_size=10, learning_rate=0.1)


class Noting(nn.Sequential):
    """A linear classifier that notes how many images it sees at once."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(16, 3))
        self.rows = []

    def forward(self, images):
        self.rows.append(len(images))
        return super().forward(images)


def images():
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8, generator=random)
    return ImageSet(pixels, torch.arange(30) % 3, ("a", "b", "c"))


def trained(model, steps=3):
    training = ClassifierTraining(model, images(), torch.arange(30), SETTINGS, 0)
    for index in range(steps):
        training.step(index)
    return model


@pytest.mark.parametrize(("pixels", "rows"), [(160, [10]), (96, [5, 5]), (48, [3, 3, 2, 2])])
def test_a_batch_in_pieces_teaches_what_it_teaches_as_a_whole(monkeypatch, pixels, rows):
    whole = trained(Noting())
    monkeypatch.setattr(classifier, "MOST_PIXELS", pixels)
    pieces = trained(Noting())
    assert pieces.rows == rows * 3
    torch.testing.assert_close(pieces[1].weight, whole[1].weight)
    assert (whole[1].weight - Noting()[1].weight).abs().max() > 1e-2
