import pytest
import torch

from privimage.diffusion.samplers import SamplerSettings
from privimage.progress import Reporter, Stopped
from privimage.synthesis.sample import Order, synthesise, uniform_labels
from privimage.threads import Workers

SETTINGS = SamplerSettings(name="heun", steps=3)


def _order(**changes):
    order = {
        "labels": uniform_labels(3, 4),
        "shape": (1, 4, 4),
        "no_label": 3,
        "piece": 5,
        "seed": 7,
    }
    order["device"] = torch.device("cpu")
    return Order(**{**order, **changes})


def _denoise(x, sigma, labels):
    return labels[:, None, None, None] / 3 + 0.1 * x / (1 + sigma[:, None, None, None])


def _make(folder, threads=2, denoise=_denoise, reporter=None, **changes):
    workers = Workers(threads)
    try:
        reporter = reporter or Reporter(quiet=True)
        order = _order(**changes)
        pieces = list(synthesise(denoise, order, SETTINGS, folder, workers, reporter))
        assert all(len(piece) <= order.piece for piece in pieces)
        return torch.cat(pieces)
    finally:
        workers.close()


def test_labels_are_uniform():
    assert uniform_labels(3, 2).tolist() == [0, 1, 2, 0, 1, 2]
    assert uniform_labels(0, 3).tolist() == [0, 0, 0]


def test_images_follow_the_seed_and_not_the_threads(tmp_path):
    one, two, other = (
        _make(tmp_path / name, threads, seed=seed)
        for name, threads, seed in (("a", 1, 7), ("b", 2, 7), ("c", 2, 8))
    )
    assert one.shape == (12, 1, 4, 4)
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    means = one.float().mean(dim=(1, 2, 3))
    assert means[2] > means[1] > means[0]


def test_a_stopped_synthesis_goes_on_with_what_is_missing(tmp_path):
    whole = _make(tmp_path / "whole")
    with pytest.raises(Stopped):
        _make(tmp_path / "parts", 1, reporter=Reporter(quiet=True, max_seconds=0.0))
    calls = []

    def counting(x, sigma, labels):
        calls.append(len(x))
        return _denoise(x, sigma, labels)

    assert torch.equal(_make(tmp_path / "parts", 1, counting), whole)
    # Five images were there already; the seven others take five evaluations each.
    assert sum(calls) == 7 * 5
