"""The checks: each raises `Broken` where noise, sampling or clipping is not what is promised.

They go through the entry points that DP fine-tuning uses. The statistical ones draw fresh
randomness from the operating system; each raises a false alarm with a probability of at most 1e-6.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy import stats
from torch import nn

from privimage import ops
from privimage.dp import (
    GRID_UNITS,
    ClipRule,
    Domain,
    ExampleGradients,
    SecretKey,
    plan,
    planned_clipped_sum,
    poisson_sample,
    rate_threshold,
)
from privimage.ops import reference, reference_noise
from privimage.selftest.probe import PUBLIC_SIZE, Network, gradients, images, known_key, tuner

ALPHA = 1e-6
NEVER = 1e-12
"""A sample rate at which every batch is empty."""
# RFC 8439, section 2.3.2: key 00 01 … 1f, this block and nonce, the first four words.
_RFC_BLOCK, _RFC_NONCE = 0x09000000 << 32 | 1, 0x4A000000
_RFC_WORDS = [0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3]


class Broken(Exception):
    """A promise that this build, on this machine, does not keep."""


def check_operators(device: torch.device) -> None:
    """The operators of this build give what their formulas and RFC 8439 say."""
    key, step = torch.arange(32, dtype=torch.uint8), 3
    block = reference_noise.chacha20_blocks(key, torch.tensor([_RFC_BLOCK]), _RFC_NONCE)
    _require(block[:4, 0].tolist() == _RFC_WORDS, "a block of ChaCha20 is not that of RFC 8439")
    words = ops.random_words(key, step, 5, 5000)
    _require(words.equal(reference.random_words(key, step, 5, 5000)), "random words differ")
    noise = ops.gaussian_integers(key, step, 5, 5000, 1e9)
    wanted = reference.gaussian_integers(key, step, 5, 5000, 1e9)
    _require(noise.equal(wanted), "Gaussian integers differ")
    rows = torch.randn(7, 5000, generator=torch.Generator().manual_seed(0)).to(device)
    total = ops.clipped_sum(rows, 0.5)
    scales = reference.grid_scales(rows.double().norm(dim=1), 0.5)
    expected = torch.empty_like(total)
    reference.scaled_sum(rows, scales, expected, accumulate=False)
    # A norm that is rounded differently in its last place moves a coordinate over a grid line.
    _require(int((total - expected).abs().max()) <= len(rows), "clipped sums differ")
    flat = [torch.zeros(5000, device=device) for _ in range(2)]
    state = ops.UpdateState(flat[0], flat[1], None, None)
    counter = torch.tensor([step], device=device)
    ops.private_update(total, key, counter, state, ops.UpdateRule(1e9, 1.0), first_index=5)
    _require(flat[1].cpu().equal((total.cpu() + noise).float()), "the update adds other noise")
    _require(int(counter) == step + 1, "the update does not count its step")


def check_noise(device: torch.device) -> None:
    """An empty batch releases N(0, σ²) in every coordinate of every tensor, all independent."""
    system = tuner(images(8), sample_rate=NEVER, noise_multiplier=2.0, device=device)
    drawn = gradients(system, 150, NEVER * PUBLIC_SIZE) / 2.0
    _require(len(drawn[0].unique()) > 0.99 * drawn[0].numel(), "values repeat inside a step")
    sizes = [parameter.numel() for parameter in Network().parameters()]
    for tensor in drawn.split(sizes, dim=1):
        _require_variance(tensor, 1.0, ALPHA / len(sizes))
    _require(stats.kstest(drawn.flatten().numpy(), "norm").pvalue > ALPHA, "it is not Gaussian")
    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        correlation = abs(float((one * other).sum())) / math.sqrt(one.numel())
        _require(correlation < stats.norm.isf(ALPHA / 2), "steps or coordinates are correlated")
    fine = SecretKey.from_os().stream(Domain.UPDATE).gaussian_integers(2**20, 2.0**40)
    _require_variance(fine.double(), 2.0**80, ALPHA)


def check_every_step_is_noised(device: torch.device) -> None:
    """A step whose batch is empty changes the weights like any other."""
    system = tuner(images(8), sample_rate=NEVER, device=device)
    before = system.tensors()["parameters"].clone()
    system.step()
    changed = (system.tensors()["parameters"] != before).float().mean()
    _require(float(changed) > 0.99, "an empty batch leaves weights as they were")


def check_side_channels(device: torch.device) -> None:
    """With σ = 1e6 every released tensor is noise: nothing un-noised shines through."""
    system = tuner(images(8), noise_multiplier=1e6, device=device)
    start = system.tensors()["parameters"].clone()
    _require_variance(gradients(system, 1, PUBLIC_SIZE) / 1e6, 1.0, ALPHA)
    moved = system.tensors()["parameters"] - start
    averaged = system.released() - start
    share = averaged.double().norm() / moved.double().norm()
    excess = (averaged - share * moved).abs().max()
    _require(bool(excess < 1e-3 * moved.abs().max()), "the average holds more than the weights")


def check_unpredictability(device: torch.device) -> None:
    """Two runs with the same seed share neither noise nor samples; two steps share no noise."""
    size = NEVER * PUBLIC_SIZE
    runs = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            runs.append(gradients(tuner(images(8), NEVER, device=device), 2, size))
    one, other = runs
    _require(bool((one - other).abs().max() > 1e-3), "two runs draw the same noise")
    _require(not torch.isclose(one, other).any(dim=1).all(), "two runs share noise")
    _require(bool((one[0] - one[1]).abs().max() > 1e-3), "two steps draw the same noise")
    streams = (SecretKey.from_os().stream(Domain.SAMPLING) for _ in range(2))
    first, second = (poisson_sample(1000, 2**63, stream) for stream in streams)
    _require(not torch.equal(first, second), "two runs sample the same images")


def check_sampler(device: torch.device) -> None:
    """Batch sizes are binomial, members and steps independent, empty batches as they come."""
    count, rate, steps = 40, 0.05, 4000
    stream = SecretKey.from_os().stream(Domain.SAMPLING)
    threshold = rate_threshold(rate)
    mask = torch.zeros(steps, count)
    for step in range(steps):
        mask[step, poisson_sample(count, threshold, stream)] = 1
    sizes = mask.sum(1).int().clamp(max=6).bincount(minlength=7).numpy()
    chances = stats.binom.pmf(range(7), count, rate)
    chances[6] += stats.binom.sf(6, count, rate)
    likely = stats.chisquare(sizes, chances * steps).pvalue > ALPHA
    _require(likely, f"batch sizes are not binomial, {sizes[0]} of {steps} empty")
    rates = (mask.mean(0) - rate) / math.sqrt(rate * (1 - rate) / steps)
    _require(bool(rates.abs().max() < stats.norm.isf(ALPHA / count)), "a rate is not the stated")
    centred = (mask - rate) / math.sqrt(rate * (1 - rate))
    pairs = (centred.T @ centred / math.sqrt(steps)).triu(1)
    # Products of rare events have heavy tails: the bound is twice that of a Gaussian.
    bound = 2 * stats.norm.isf(ALPHA / count**2)
    _require(bool(pairs.abs().max() < bound), "two images enter together")
    lagged = (centred[1:] * centred[:-1]).sum() / math.sqrt(count * (steps - 1))
    _require(bool(abs(lagged) < 2 * stats.norm.isf(ALPHA)), "a step depends on the one before")


def check_sensitivity(device: torch.device) -> None:
    """Whatever a row of gradients holds, kept or not, it moves their sum by the clip at most."""
    rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.random.fork_rng(devices=[]):
        model = nn.ModuleList(nn.Linear(100, 1, bias=False) for _ in range(2)).to(device)
    gradients = ExampleGradients(model)
    kept = plan(model, [rows[:1]], losses=_rows_are_gradients)
    for choice in kept.layers[0].seconds:
        chosen = kept.choosing("", choice)
        total = partial(planned_clipped_sum, gradients, _rows_are_gradients)
        options: dict[str, Any] = {"plan": chosen, "rule": ClipRule(0.01)}
        before = total(rows, **options)
        for hostile in (0.0, 1e-30, 1e10, 1e30, math.inf, -math.inf, math.nan):
            for place in (slice(0, 1), slice(199, 200), slice(None)):
                row = torch.randn(1, 200, generator=torch.Generator().manual_seed(2)).to(device)
                row[0, place] = hostile
                moved = total(torch.cat([rows, row]), **options) - before
                share = float(moved.double().norm()) / GRID_UNITS
                _require(share <= 1, f"a row with {hostile} moves it by {share:g} times the clip")


def _rows_are_gradients(model: nn.ModuleList, rows: torch.Tensor) -> torch.Tensor:
    """Losses whose gradients are the rows themselves."""
    first, second = model
    return (first(rows[:, :100]) + second(rows[:, 100:]))[:, 0]  # type: ignore[no-any-return]


def check_coupled_step(device: torch.device) -> None:
    """With all randomness equal, one image more moves the released gradient by at most C / B.

    One step only: afterwards the weights differ, and with them the gradients of all images.
    """
    with known_key():
        for sample_rate in (1.0, 0.5):
            size, moved = sample_rate * PUBLIC_SIZE, []
            for seed in range(6):
                few, more = (
                    gradients(tuner(images(count), sample_rate, seed=seed, device=device), 1, size)
                    for count in (8, 9)
                )
                moved.append(float((more - few).norm()))
            # Float32 moments give the gradient back to about 1e-5 of the noise.
            _require(max(moved) <= 1 + 1e-3, f"an image moves it by {max(moved):g} times C / B")
            never = sample_rate == 1 and min(moved) <= 0.99
            _require(not never, f"an image moves it by only {min(moved):g} times C / B")


CHECKS: dict[str, Callable[[torch.device], None]] = {
    "operators": check_operators,
    "noise": check_noise,
    "empty batches": check_every_step_is_noised,
    "side channels": check_side_channels,
    "secrecy": check_unpredictability,
    "sampling": check_sampler,
    "clipping": check_sensitivity,
    "one image": check_coupled_step,
}
"""Name of each check to the check, which raises where a promise is broken."""


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Broken(problem)


def _require_variance(values: torch.Tensor, variance: float, alpha: float) -> None:
    """Two-sided χ² test of centred Gaussian `values`, false alarm probability 2 `alpha`."""
    chi2, count = float((values / math.sqrt(variance)).square().sum()), values.numel()
    tail = min(stats.chi2.cdf(chi2, count), stats.chi2.sf(chi2, count))
    _require(tail > alpha / 2, f"it has {chi2 / count:.4f} of its variance")
