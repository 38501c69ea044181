import numpy as np
import torch
from sklearn.datasets import load_digits

from privimage.data import digits


def test_every_digit_is_in_one_of_the_two_parts():
    parts = [digits.train(), digits.test()]
    assert [len(part) for part in parts] == [1437, 360]
    together = torch.cat([part.images.flatten(1) for part in parts]).numpy()
    expected = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    order, wanted = np.lexsort(together.T), np.lexsort(expected.T)
    assert np.array_equal(together[order], expected[wanted])


def test_each_part_has_the_labels_of_its_images():
    source = load_digits()
    label_of = {
        image.tobytes(): label
        for image, label in zip(
            np.round(source.data * 255 / 16).astype(np.uint8), source.target, strict=True
        )
    }
    for part in (digits.train(), digits.test()):
        assert part.names == tuple("0123456789")
        for image, label in zip(part.images, part.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_both_parts_have_their_share_of_every_class():
    train, test = (part.labels.bincount() for part in (digits.train(), digits.test()))
    assert (test * 4 - train).abs().max() <= 4


def test_the_split_is_always_the_same():
    first, second = digits.test(), digits.test()
    assert torch.equal(first.images, second.images)
    assert first.labels[:12].tolist() == second.labels[:12].tolist()


def test_ink_counts_become_all_of_the_range():
    counts = np.arange(17).repeat(64)[: 17 * 64].reshape(17, 8, 8)
    images = digits.from_counts(counts)
    assert images.shape == (17, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [round(count * 255 / 16) for count in range(17)]
