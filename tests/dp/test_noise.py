import os

import numpy as np
import scipy.stats
import torch

from privimage.dp import noise

_FALSE_ALARM = 1e-6


def test_noise_is_gaussian_and_another_scale_is_rejected():
    std = 2.0**30
    values = noise.gaussian_integers(200_001, std).double().numpy() / std
    normal = scipy.stats.norm.cdf
    assert scipy.stats.kstest(values, normal).pvalue > _FALSE_ALARM
    assert scipy.stats.kstest(values * 0.95, normal).pvalue < _FALSE_ALARM
    squares = float((values**2).sum())
    low, high = scipy.stats.chi2.ppf([_FALSE_ALARM / 2, 1 - _FALSE_ALARM / 2], len(values))
    assert low < squares < high
    assert not low < squares * 0.97**2 < high


def test_neighbouring_values_are_uncorrelated():
    values = noise.gaussian_integers(100_000, 1000.0).double().numpy()
    for lag in (1, 2, 50_000):
        assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 0.025
    assert abs(np.corrcoef(values[1:], values[1:])[0, 1]) > 0.025


def test_two_draws_differ_and_owe_nothing_to_a_seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = noise.gaussian_integers(1000, 1e6)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert (first != noise.gaussian_integers(1000, 1e6)).float().mean() > 0.99
    assert noise.secret_generator().initial_seed() != noise.secret_generator().initial_seed()


def test_extreme_words_stay_finite(monkeypatch):
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr(os, "urandom", lambda count, byte=byte: byte * count)
        values = noise.gaussian_integers(4, 2.0**30).double() / 2.0**30
        assert values.abs().max() < 9.6


def test_no_noise_and_no_values():
    assert torch.equal(noise.gaussian_integers(5, 0.0), torch.zeros(5, dtype=torch.int64))
    assert noise.gaussian_integers(0, 1.0).shape == (0,)
