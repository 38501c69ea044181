"""An attacker with many canaries in one run: the code withstands it, with too little noise not."""

import math
import os

import pytest
import torch
from planted_bugs.finetuning import fraction_of_the_noise
from scipy import stats
from torch import nn

from privimage import dp
from privimage.dp import auditing
from privimage.dp.auditing import Guesses
from privimage.errors import UserError

ALPHA = 1e-6
# The bound without a Gaussian needs 2 · canaries · δ well below ALPHA.
DELTA = 1e-9
CANARIES, STEPS, NOISE = 1500, 10, 6.0
GUESSES = 750


def _audited():
    """Guesses about canaries of one coordinate each, after real private steps on half of them."""
    random = torch.Generator().manual_seed(int.from_bytes(os.urandom(8)) >> 1)
    included = torch.rand(CANARIES, generator=random) < 0.5
    model = nn.Linear(CANARIES, 1, bias=False)
    nn.init.zeros_(model.weight)
    # Longer than the clipping norm, as an attacker would make them.
    canaries = (3 * torch.eye(CANARIES))[included]
    key = dp.SecretKey.from_os()
    sampling = key.stream(dp.Domain.SAMPLING)
    gradients = dp.ExampleGradients(model)
    optimizer = dp.DPSGD(model.parameters(), 1.0, NOISE, CANARIES, key=key)
    for _ in range(STEPS):
        chosen = dp.poisson_sample(len(canaries), dp.rate_threshold(1.0), sampling)
        parts = gradients(lambda model, x: model(x).flatten(), canaries[chosen])
        optimizer.step(dp.clipped_sum(parts, 1.0))
    return auditing.guess(-optimizer.flat.detach(), included, GUESSES)


def _claim():
    steps = dp.SubsampledGaussian(1.0, NOISE, STEPS)
    return dp.epsilon([steps], DELTA).upper


def test_the_steps_as_they_are_withstand_an_audit():
    claim, guesses = _claim(), _audited()
    assert 3 < claim < 4
    assert guesses.right > GUESSES / 2  # the attack sees something
    assert auditing.gaussian_epsilon_lower_bound(guesses, DELTA, ALPHA) <= claim
    assert auditing.epsilon_lower_bound(guesses, DELTA, ALPHA) <= claim


def test_the_audit_finds_an_eighth_of_the_noise(monkeypatch):
    monkeypatch.setattr(*fraction_of_the_noise(1 / 8))
    guesses = _audited()
    assert auditing.gaussian_epsilon_lower_bound(guesses, DELTA, ALPHA) > 1.5 * _claim()
    assert auditing.epsilon_lower_bound(guesses, DELTA, ALPHA) > _claim()


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("made", [40, 200])
def test_independent_gaussians_are_never_refuted(mu, made):
    """200 canaries, each alone with its noise: the chance of so many right guesses is known."""
    truth = auditing.gaussian_epsilon(mu, DELTA)
    if made == 200:
        # Each guess is right with probability Φ(μ / 2).
        right = int(stats.binom.isf(1e-3, made, stats.norm.cdf(mu / 2)))
    else:
        random = torch.Generator().manual_seed(0)
        counts = []
        for _ in range(4000):
            included = torch.rand(200, generator=random) < 0.5
            scores = mu * included + torch.randn(200, generator=random)
            counts.append(auditing.guess(scores, included, made).right)
        # More than one in a thousand are as many.
        right = sorted(counts)[-8]
    guesses = Guesses(200, made, right)
    assert 0 < auditing.gaussian_epsilon_lower_bound(guesses, DELTA, 1e-3) <= truth + 1e-3


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_refuted_where_its_binomial_says(epsilon):
    """Of so many right guesses, one more would be less likely than one in a thousand."""
    right = int(stats.binom.isf(1e-3, 1000, 1 / (1 + math.exp(-epsilon))))
    bound = auditing.epsilon_lower_bound(Guesses(1000, 1000, right), 1e-9, 1e-3)
    assert epsilon - 0.1 < bound <= epsilon


def test_the_gaussian_closed_form_is_what_the_accountants_say():
    bounds = dp.epsilon([dp.Gaussian(2.0)], DELTA)
    assert bounds.lower <= auditing.gaussian_epsilon(0.5, DELTA) <= bounds.upper
    assert auditing.gaussian_epsilon(0.0, DELTA) == 0


def test_right_by_chance_proves_nothing():
    guesses = Guesses(1000, 1000, 520)
    assert auditing.epsilon_lower_bound(guesses, DELTA, 1e-3) == 0
    assert auditing.gaussian_epsilon_lower_bound(guesses, DELTA, 1e-3) == 0


def test_guesses_go_both_ways():
    scores = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.5])
    included = torch.tensor([True, False, False, False, True])
    assert auditing.guess(scores, included, 4) == Guesses(5, 4, 3)
    assert auditing.guess(scores, included, 1) == Guesses(5, 1, 1)
    with pytest.raises(UserError, match="too many"):
        auditing.guess(scores, included, 6)
    with pytest.raises(UserError, match="can't be right"):
        Guesses(5, 3, 4)
