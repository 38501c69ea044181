import math

import pytest
import torch

from privimage.data import ImageSet
from privimage.errors import UserError
from privimage.evaluate import EvaluationSettings, Parts, Resources, accuracies
from privimage.evaluate import epochs as module
from privimage.progress import Reporter, Stopped
from privimage.threads import Workers

KINDS = ("cnn", "mlp", "logistic")
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


def _found(sets, test, workers, seed=0, **changes):
    settings = EvaluationSettings(
        **{"classifiers": tuple(KINDS), "repeats": 1, "epochs": 4} | changes
    )
    resources = Resources(torch.device("cpu"), workers, Reporter(quiet=True))
    return accuracies(sets, test, settings, seed, resources, Parts())


def _accuracies(*arguments, **changes):
    """The accuracies alone, by kind."""
    return [
        {kind: accuracy.over_test_images.value for kind, accuracy in found.items()}
        for found in _found(*arguments, **changes)
    ]


def test_an_easy_set_is_learnt_and_shuffled_labels_are_not(workers):
    training, test = _halves(200, 0), _halves(400, 1)
    easy, shuffled = _accuracies([training, _shuffled(training, 3)], test, workers)
    assert set(easy) == set(shuffled) == set(KINDS)
    for kind in KINDS:
        assert easy[kind] > 0.95
        # The accuracy by chance is 1/4; classes are learnt as wholes, so it spreads more widely
        # than a binomial of 400, but one class of four learnt more is already 1/2.
        assert shuffled[kind] < 0.45


def test_a_seed_decides_everything(workers):
    training, test = _halves(80, 0, noise=400.0), _halves(300, 1, noise=400.0)
    first = _accuracies([training], test, workers)
    torch.rand(3)
    assert _accuracies([training], test, Workers(1)) == first
    others = [_accuracies([training], test, workers, seed)[0] for seed in (1, 2)]
    assert any(other["cnn"] != first[0]["cnn"] for other in others)


def test_each_set_is_judged_alone(workers):
    first, second, test = _halves(80, 0), _shuffled(_halves(80, 1), 2), _halves(100, 3)
    together = _accuracies([first, second], test, workers)
    assert together == [_accuracies([images], test, workers)[0] for images in (first, second)]


def test_the_state_of_torch_is_left_as_it_was(workers):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _accuracies([_halves(40, 0)], _halves(40, 1), workers)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("images_per_label", [1, 2, 3, 9, 19])
@pytest.mark.parametrize("labels", [2, 4])
def test_the_smallest_sets_have_an_accuracy_too(workers, images_per_label, labels):
    names = NAMES[:labels]
    training, test = _halves(images_per_label * labels, 0, names), _halves(40, 1, names)
    (found,) = _accuracies([training], test, workers, epochs=1)
    assert all(0 <= accuracy <= 1 for accuracy in found.values())


@pytest.mark.parametrize("counts", [(1, 0), (30, 0), (30, 1), (90, 3)])
def test_one_sided_labels_have_an_accuracy_too(workers, counts):
    test = _halves(40, 1, NAMES[:2])
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    training = ImageSet(_halves(len(labels), 0).images, labels, NAMES[:2])
    (found,) = _accuracies([training], test, workers, epochs=1)
    if counts[1] == 0:
        assert found["logistic"] == found["mlp"] == 0.5
    assert all(math.isfinite(accuracy) for accuracy in found.values())


def test_constant_images_and_colours_are_no_trouble(workers):
    grey = ImageSet(
        torch.full((40, 3, 8, 8), 9, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b")
    )
    (found,) = _accuracies([grey], grey, workers)
    assert all(abs(accuracy - 0.5) < 1e-6 for accuracy in found.values())


def test_test_images_without_a_declared_label_are_left_out(workers):
    training, test = _halves(120, 0), _halves(100, 1)
    labels = test.labels.clone()
    labels[:50] = len(NAMES)
    (found,) = _found([training], ImageSet(test.images, labels, NAMES), workers)
    (alone,) = _found([training], ImageSet(test.images[50:], labels[50:], NAMES), workers)
    assert found == alone
    assert all(accuracy.n_test == 50 for accuracy in found.values())
    nothing = ImageSet(test.images, torch.full_like(labels, len(NAMES)), NAMES)
    with pytest.raises(UserError, match="labelled images to test on"):
        _found([training], nothing, workers)


@pytest.mark.parametrize("names", [(), ("left", "right"), NAMES[::-1]])
def test_a_test_set_of_other_labels_is_refused(workers, names):
    test = ImageSet(_halves(40, 1).images, torch.zeros(40, dtype=torch.int64), names)
    with pytest.raises(UserError, match=r"--test: its labels must be .*left, right, top, bottom"):
        _accuracies([_halves(40, 0)], test, workers)


def test_repeats_differ_by_their_coins_and_a_method_without_coins_has_one(workers):
    training, test = _halves(80, 0, noise=400.0), _halves(300, 1, noise=400.0)
    (found,) = _found([training], test, workers, repeats=3)
    for kind in ("cnn", "mlp"):
        assert len(set(found[kind].repeats)) > 1
        over = found[kind].over_repeats
        assert over.value == pytest.approx(sum(found[kind].repeats) / 3)
        assert over.low < over.value < over.high
        assert found[kind].over_test_images.value == over.value
    assert len(found["logistic"].repeats) == 1
    assert found["logistic"].over_repeats.low is None
    (once,) = _found([training], test, workers)
    assert once["cnn"].repeats[0] == found["cnn"].repeats[0]


def test_recall_is_by_label_and_what_is_held_out_is_synthetic(workers):
    training, test = _halves(200, 0), _halves(120, 1)
    # A third label, which no test image has, and one that the images belie.
    names = ("left", "right", "top", "never")
    kept = test.labels < 3
    belied = torch.where(test.labels == 2, 0, test.labels)[kept]
    (found,) = _found(
        [ImageSet(training.images, training.labels, names)],
        ImageSet(test.images[kept], belied, names),
        workers,
        classifiers=("cnn",),
        epochs=8,
    )
    recall = found["cnn"].recall
    assert recall["right"] > 0.9
    assert 0.3 < recall["left"] < 0.7
    assert recall["top"] is None
    assert recall["never"] is None
    assert found["cnn"].held_out > 0.9 > found["cnn"].over_test_images.value
    assert (found["cnn"].n_training, found["cnn"].n_test) == (200, 90)


def test_the_epoch_is_chosen_without_the_test_images(workers):
    training = _halves(80, 0, noise=400.0)
    tests = [_halves(60, seed, noise=400.0) for seed in (1, 2)]
    first, second = (
        _found([training], test, workers, classifiers=("cnn",))[0]["cnn"] for test in tests
    )
    assert first.held_out == second.held_out


def test_images_without_a_declared_label_are_not_trained_on(workers):
    training, test = _halves(120, 0), _halves(100, 1)
    labels = training.labels.clone()
    labels[60:] = len(NAMES)
    (found,) = _found(
        [ImageSet(training.images, labels, NAMES)], test, workers, classifiers=("logistic",)
    )
    assert found["logistic"].n_training == 60
    nothing = ImageSet(training.images, torch.full_like(labels, len(NAMES)), NAMES)
    with pytest.raises(UserError, match="labelled images to train on"):
        _found([nothing], test, workers)


@pytest.mark.parametrize("kind", ["resnet9", "wrn40_4"])
def test_the_large_networks_learn_too(workers, kind):
    coloured = [
        ImageSet(images.images.repeat(1, 3, 2, 2), images.labels, images.names)
        for images in (_halves(24, 0), _halves(24, 1))
    ]
    (found,) = _found([coloured[0]], coloured[1], workers, classifiers=(kind,), epochs=1)
    assert 0 <= found[kind].over_test_images.value <= 1
    assert found[kind].label in ("ResNet-9", "WRN-40-4")


def test_training_stops_between_batches(workers):
    reporter = Reporter(quiet=True)
    reporter.request_stop()
    settings = EvaluationSettings(classifiers=("cnn",), repeats=1)
    resources = Resources(torch.device("cpu"), workers, reporter)
    with pytest.raises(Stopped, match="training CNN stopped after 0 of 30"):
        accuracies([_halves(40, 0)], _halves(40, 1), settings, 0, resources, Parts())


def test_images_are_mirrored_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_NOISE", 0.0)
    image = torch.zeros(200, 1, 8, 8) - 1
    image[..., 2:6, 1:3] = 1.0
    for flip in (False, True):
        seen = module._augmented(image, flip, torch.Generator().manual_seed(0))
        is_right = seen[..., 4:].mean(dim=(1, 2, 3)) > seen[..., :4].mean(dim=(1, 2, 3))
        assert (60 < is_right.sum() < 140) == flip
        assert bool(is_right.any()) == flip
