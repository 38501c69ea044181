import math

import pytest
import torch

from privimage.data import ImageSet
from privimage.errors import UserError
from privimage.evaluate import accuracies
from privimage.evaluate import classifiers as module
from privimage.progress import Reporter
from privimage.threads import Workers

KINDS = {"cnn", "mlp", "logistic"}
NAMES = ("left", "right", "top", "bottom")


def _halves(count, seed, names=NAMES, noise=60.0):
    """Images of which one half is bright, the label saying which."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(names)
    images = torch.zeros(count, 1, 8, 8)
    for row, label in enumerate(labels.tolist()):
        part = [(..., slice(4)), (..., slice(4, 8)), (slice(4), ...), (slice(4, 8), ...)][label]
        images[row, 0][part] = 150.0
    images += noise * torch.rand(images.shape, generator=random)
    return ImageSet(images.to(torch.uint8), labels, tuple(names))


def _shuffled(images, seed):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return ImageSet(images.images, images.labels[order], images.names)


@pytest.fixture(scope="module")
def workers():
    return Workers(2)


@pytest.fixture
def few_epochs(monkeypatch):
    monkeypatch.setattr(module, "_EPOCHS", 4)


def _accuracies(sets, test, workers, seed=0):
    return accuracies(sets, test, seed, workers, Reporter(quiet=True))


@pytest.mark.usefixtures("few_epochs")
def test_an_easy_set_is_learnt_and_shuffled_labels_are_not(workers):
    training, test = _halves(200, 0), _halves(400, 1)
    easy, shuffled = _accuracies([training, _shuffled(training, 2)], test, workers)
    assert set(easy) == set(shuffled) == KINDS
    for kind in KINDS:
        assert easy[kind] > 0.95
        # The accuracy by chance is 1/4; classes are learnt as wholes, so it spreads more widely
        # than a binomial of 400, but one class of four learnt more is already 1/2.
        assert shuffled[kind] < 0.45


@pytest.mark.usefixtures("few_epochs")
def test_a_seed_decides_everything(workers):
    training, test = _halves(80, 0, noise=400.0), _halves(300, 1, noise=400.0)
    first = _accuracies([training], test, workers)
    torch.rand(3)
    assert _accuracies([training], test, Workers(1)) == first
    others = [_accuracies([training], test, workers, seed)[0] for seed in (1, 2)]
    assert any(other["cnn"] != first[0]["cnn"] for other in others)


@pytest.mark.usefixtures("few_epochs")
def test_each_set_is_judged_alone(workers):
    first, second, test = _halves(80, 0), _shuffled(_halves(80, 1), 2), _halves(100, 3)
    together = _accuracies([first, second], test, workers)
    assert together == [_accuracies([images], test, workers)[0] for images in (first, second)]


@pytest.mark.usefixtures("few_epochs")
def test_the_state_of_torch_is_left_as_it_was(workers):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _accuracies([_halves(40, 0)], _halves(40, 1), workers)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("images_per_label", [1, 2, 3, 9, 19])
@pytest.mark.parametrize("labels", [2, 4])
def test_the_smallest_sets_have_an_accuracy_too(monkeypatch, workers, images_per_label, labels):
    monkeypatch.setattr(module, "_EPOCHS", 1)
    names = NAMES[:labels]
    training, test = _halves(images_per_label * labels, 0, names), _halves(40, 1, names)
    (found,) = _accuracies([training], test, workers)
    assert all(0 <= accuracy <= 1 for accuracy in found.values())


@pytest.mark.parametrize("counts", [(1, 0), (30, 0), (30, 1), (90, 3)])
def test_one_sided_labels_have_an_accuracy_too(monkeypatch, workers, counts):
    monkeypatch.setattr(module, "_EPOCHS", 1)
    test = _halves(40, 1, NAMES[:2])
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    training = ImageSet(_halves(len(labels), 0).images, labels, NAMES[:2])
    (found,) = _accuracies([training], test, workers)
    if counts[1] == 0:
        assert found["logistic"] == found["mlp"] == 0.5
    assert all(math.isfinite(accuracy) for accuracy in found.values())


@pytest.mark.usefixtures("few_epochs")
def test_constant_images_and_colours_are_no_trouble(workers):
    grey = ImageSet(
        torch.full((40, 3, 8, 8), 9, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b")
    )
    (found,) = _accuracies([grey], grey, workers)
    assert all(abs(accuracy - 0.5) < 1e-6 for accuracy in found.values())


@pytest.mark.usefixtures("few_epochs")
def test_test_images_without_a_declared_label_count_as_wrong(workers):
    training, test = _halves(120, 0), _halves(100, 1)
    labels = test.labels.clone()
    labels[:50] = len(NAMES)
    (found,) = _accuracies([training], ImageSet(test.images, labels, NAMES), workers)
    assert all(0.45 < accuracy <= 0.5 for accuracy in found.values())


@pytest.mark.parametrize("names", [(), ("left", "right"), NAMES[::-1]])
def test_a_test_set_of_other_labels_is_refused(workers, names):
    test = ImageSet(_halves(40, 1).images, torch.zeros(40, dtype=torch.int64), names)
    with pytest.raises(UserError, match=r"--test: its labels must be .*left, right, top, bottom"):
        _accuracies([_halves(40, 0)], test, workers)
