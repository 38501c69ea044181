"""Checks that a private system passes, through the entry points of the production code.

Each takes a folder and raises AssertionError where a promise is broken. Statistical ones have a
false-alarm probability of at most 1e-6 each, and draw fresh randomness.
"""

import math
import os
from contextlib import contextmanager

import torch
from scipy import stats
from torch import nn

from privimage.data import ImageSet
from privimage.dp import GRID_UNITS, Domain, Ledger, Plan, SecretKey, SubsampledGaussian
from privimage.dp.noise import TEST_KEY
from privimage.progress import Reporter
from privimage.semantics import query
from privimage.synthesis import finetune
from privimage.synthesis.finetune import Finetuner, FinetuneSettings
from privimage.threads import Workers

ALPHA = 1e-6
NAMES = ("a", "b", "c")
PUBLIC_SIZE = 10
NEVER = 1e-12
WORKERS = Workers(1)


class Network(nn.Module):
    """The smallest denoiser that has every kind of layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(NAMES) + 1, 8)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, noise_condition, labels):
        h = self.first(x) + (self.table(labels) * noise_condition[:, None])[:, :, None, None]
        return self.last(nn.functional.silu(self.norm(h)))


def images(count):
    """`count` images; the first ones are always the same, so that sets differ at their end."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 4, 4), generator=random, dtype=torch.uint8)
    return ImageSet(pixels[:count], torch.arange(count) % (len(NAMES) + 1), NAMES)


def tuner(sensitive, sample_rate=1.0, noise_multiplier=1.0, seed=0):
    """A `Finetuner` of the production code on the smallest network."""
    settings = FinetuneSettings(
        sample_rate=sample_rate, draws=2, max_grad_norm=0.01, ema_decay=0.9, steps=100
    )
    torch.manual_seed(seed)
    return Finetuner(sensitive, Network(), settings, noise_multiplier, PUBLIC_SIZE, WORKERS)


@contextmanager
def known_key():
    """Noise, sampling and draws from a key that everybody knows: two runs differ by data alone."""
    os.environ[TEST_KEY] = "known"
    try:
        yield
    finally:
        del os.environ[TEST_KEY]


def gradients(system, steps, batch_size):
    """What Adam was given in each step, in clipping norms: [steps, parameters], as released."""
    mean, rows = torch.zeros(0), []
    for _ in range(steps):
        system.step()
        now = system.state()[0]["exp_avg"].double()
        rows.append((now - 0.9 * (mean if len(mean) else torch.zeros_like(now))) / 0.1)
        mean = now.clone()
    return torch.stack(rows) * batch_size


def check_sensitivity(folder):
    """Whatever a row of gradients holds, it moves their sum by at most the clip."""
    rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(1))
    before = finetune.clipped_sum(rows, 0.01)
    for hostile in (0.0, 1e-30, 1e10, 1e30, math.inf, -math.inf, math.nan):
        for place in (0, 199, slice(None)):
            row = torch.randn(1, 200, generator=torch.Generator().manual_seed(2))
            row[0, place] = hostile
            moved = finetune.clipped_sum(torch.cat([rows, row]), 0.01) - before
            assert moved.double().norm() <= GRID_UNITS, (hostile, place)


def check_coupled_step(folder):
    """With all randomness equal, one image more moves the released gradient by at most C / B.

    One step only: afterwards the weights differ, and with them the gradients of all images.
    """
    with known_key():
        for sample_rate in (1.0, 0.5):
            size, moved = sample_rate * PUBLIC_SIZE, []
            for seed in range(6):
                sets = images(8), images(9)
                few, more = (gradients(tuner(one, sample_rate, seed=seed), 1, size) for one in sets)
                moved.append(float((more - few).norm()))
            # Float32 moments give the gradient back to about 1e-5 of the noise.
            assert max(moved) <= 1 + 1e-3
            assert sample_rate < 1 or min(moved) > 0.99


def check_micro_batches(folder):
    """How a batch is cut does not matter, but for the rounding of a convolution."""
    with known_key():
        one, other = tuner(images(9)), tuner(images(9))
        other._micro_batch = 2
        difference = gradients(one, 3, PUBLIC_SIZE) - gradients(other, 3, PUBLIC_SIZE)
    assert difference.abs().max() < 1e-3


def check_noise(folder):
    """An empty batch releases N(0, σ²) in every coordinate of every tensor, all independent."""
    system = tuner(images(8), sample_rate=NEVER, noise_multiplier=2.0)
    drawn = gradients(system, 150, NEVER * PUBLIC_SIZE) / 2.0
    assert len(drawn[0].unique()) > 0.99 * drawn[0].numel(), "values repeat inside a step"
    sizes = [parameter.numel() for parameter in Network().parameters()]
    for tensor in drawn.split(sizes, dim=1):
        chi2 = float(tensor.square().sum())
        tail = min(stats.chi2.cdf(chi2, tensor.numel()), stats.chi2.sf(chi2, tensor.numel()))
        assert tail > ALPHA / len(sizes), f"{chi2 / tensor.numel():.3f} of the variance"
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > ALPHA
    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        correlation = float((one * other).sum()) / math.sqrt(one.numel())
        assert abs(correlation) < stats.norm.isf(ALPHA / 2)


def check_side_channels(folder):
    """With σ = 1e6 every released tensor is noise: nothing un-noised shines through."""
    system = tuner(images(8), noise_multiplier=1e6)
    start = system.state()[0]["parameters"].clone()
    energy = float((gradients(system, 1, PUBLIC_SIZE) / 1e6).square().sum())
    tail = min(stats.chi2.cdf(energy, len(start)), stats.chi2.sf(energy, len(start)))
    assert tail > ALPHA
    moved = system.state()[0]["parameters"] - start
    averaged = system.released() - start
    share = averaged.double().norm() / moved.double().norm()
    assert (averaged - share * moved).abs().max() < 1e-3 * moved.abs().max()


def check_unpredictability(folder):
    """Two runs with the same seed share neither noise nor samples; two steps share no noise."""
    one, other = (gradients(tuner(images(8), NEVER), 2, NEVER * PUBLIC_SIZE) for _ in range(2))
    assert not torch.isclose(one, other).any(dim=1).all()
    assert (one - other).abs().max() > 1e-3
    assert (one[0] - one[1]).abs().max() > 1e-3
    streams = (SecretKey.from_os().stream(Domain.SAMPLING) for _ in range(2))
    first, second = (finetune.poisson_sample(1000, 2**63, stream) for stream in streams)
    assert not torch.equal(first, second)


def check_sampler(folder):
    """Batch sizes are binomial, members and steps independent, empty batches as they come."""
    count, rate, steps = 40, 0.05, 4000
    stream = SecretKey.from_os().stream(Domain.SAMPLING)
    threshold = finetune.rate_threshold(rate)
    mask = torch.zeros(steps, count)
    for step in range(steps):
        mask[step, finetune.poisson_sample(count, threshold, stream)] = 1
    sizes = mask.sum(1).int().clamp(max=6).bincount(minlength=7).numpy()
    chances = stats.binom.pmf(range(7), count, rate)
    chances[6] += stats.binom.sf(6, count, rate)
    assert stats.chisquare(sizes, chances * steps).pvalue > ALPHA
    rates = (mask.mean(0) - rate) / math.sqrt(rate * (1 - rate) / steps)
    assert rates.abs().max() < stats.norm.isf(ALPHA / count)
    centred = (mask - rate) / math.sqrt(rate * (1 - rate))
    pairs = (centred.T @ centred / math.sqrt(steps)).triu(1)
    # Products of rare events have heavy tails: the bound is twice that of a Gaussian.
    assert pairs.abs().max() < 2 * stats.norm.isf(ALPHA / count**2)
    lagged = (centred[1:] * centred[:-1]).sum() / math.sqrt(count * (steps - 1))
    assert abs(lagged) < 2 * stats.norm.isf(ALPHA)


def check_every_step_is_noised(folder):
    """A step whose batch is empty changes the weights like any other."""
    system = tuner(images(8), sample_rate=NEVER)
    before = system.state()[0]["parameters"].clone()
    system.step()
    assert (system.state()[0]["parameters"] != before).float().mean() > 0.99


def ask(folder, sensitive, votes=2):
    """A noisy histogram with σ_q = 3 and a ledger of its own."""
    steps = SubsampledGaussian(0.1, 5.0, 10)
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    with Ledger(path) as ledger:
        ledger.set_plan(Plan(10.0, 1e-3, 3.0, steps))
        logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(3))
        logits[8:] = math.nan
        settings = query.QuerySettings(votes_per_image=votes)
        return query.noisy_histogram(
            ledger, sensitive, lambda pixels: logits[: len(pixels)], 50, settings
        )


def check_query_sensitivity(folder):
    """One image more adds one vote to each of k1 cells of one row, also where logits are NaN."""
    with known_key():
        for count in (7, 8):
            change = ask(folder, images(count + 1)) - ask(folder, images(count))
            assert change.min() == 0
            assert change.max() == 1
            assert change.sum() == 2
            assert (change.sum(1) > 0).sum() == 1


def check_query_noise(folder):
    """The counts of no image are noise with a standard deviation of σ_q √k1, fresh every time."""
    one, other = (ask(folder, images(0)).double() for _ in range(2))
    assert not torch.equal(one, other)
    for counts in (one, other):
        chi2 = float(counts.square().sum()) / (9.0 * 2)
        tail = min(stats.chi2.cdf(chi2, counts.numel()), stats.chi2.sf(chi2, counts.numel()))
        assert tail > ALPHA


def check_reservations(folder):
    """Before a step draws its noise, the ledger on disk has it; a resumed run pays again."""
    steps = SubsampledGaussian(0.5, 3.0, 8)
    settings = FinetuneSettings(sample_rate=0.5, steps=8, draws=1, reservation=2)
    path, seen = folder / "reserved.jsonl", []
    step = finetune.Finetuner.step

    def watched(system):
        reserved = sum('"finetune"' in line and '"reserve"' in line for line in lines(path))
        seen.append(2 * reserved)
        return step(system)

    finetune.Finetuner.step = watched
    try:
        with Ledger(path) as ledger:
            ledger.set_plan(Plan(math.inf, 1e-3, None, steps))
            finetune.finetune(
                ledger,
                images(8),
                Network(),
                settings,
                PUBLIC_SIZE,
                folder / "checkpoints",
                WORKERS,
                Reporter(quiet=True),
            )
    finally:
        finetune.Finetuner.step = step
    assert len(seen) == 8
    assert all(reserved >= taken for taken, reserved in enumerate(seen, start=1))


def lines(path):
    """The lines of a ledger as they are on disk."""
    return path.read_text().splitlines()
