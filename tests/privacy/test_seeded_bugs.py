"""Privacy bugs planted into the production code: the check named beside each must find it.

A bug that survives is a hole in the checks; the code as it is passes all of them.
"""

import dataclasses

import privacy_checks as checks
import pytest
import torch

from privimage import ops
from privimage.dp import GRID_UNITS, DPAdam, SecretKey
from privimage.dp.budget import StepBudget
from privimage.dp.noise import SecretStream
from privimage.dp.optimizers import DPOptimizer
from privimage.errors import UserError
from privimage.semantics import query
from privimage.synthesis import finetune

CHECKS = [value for name, value in vars(checks).items() if name.startswith("check_")]

_update, _step, _sum = SecretStream.private_update, DPOptimizer.step, finetune.clipped_sum
_integers, _sample = SecretStream.gaussian_integers, finetune.poisson_sample


def _noise_std(change):
    """A bug that draws the update's noise with another standard deviation."""

    def update(stream, total, state, rule, first):
        bare = dataclasses.replace(rule, noise_std=change(rule.noise_std))
        _update(stream, total, state, bare, first)

    return SecretStream, "private_update", update


def _own_noise(draw):
    """A bug that adds noise of its own making: `draw(count, std)` grid steps."""

    def update(stream, total, state, rule, first):
        noise = draw(total.numel(), rule.noise_std).round().long()
        _update(stream, total + noise, state, dataclasses.replace(rule, noise_std=0.0), first)

    return SecretStream, "private_update", update


def _same_noise_in_every_step(stream, total, state, rule, first):
    stream._counter = torch.tensor([1 << 56])
    _update(stream, total, state, rule, first)


def _no_noise_on_the_last_bias(stream, total, state, rule, first):
    bare = dataclasses.replace(rule, noise_std=0.0)
    tensors = state.parameters, state.momentum, state.second_moment, state.average
    last = [tensor.detach()[-1:] for tensor in tensors]
    before = [tensor.clone() for tensor in last]
    counter = stream._counter.clone()
    _update(stream, total, state, rule, first)
    for tensor, old in zip(last, before, strict=True):
        tensor.copy_(old)
    ops.private_update(total[-1:], stream._key, counter, ops.UpdateState(*last), bare)


def _public_seed():
    return SecretKey(bytes(32), bytes(16), is_secret=True)


def _rows(change):
    """A bug in the clipped sum: `change(parts, C)` are the rows that are really added."""

    def clipped_sum(parts, max_grad_norm):
        rows = change(parts.double(), max_grad_norm)
        return (rows * (GRID_UNITS / max_grad_norm)).nan_to_num(0).trunc().long().sum(0)

    return finetune, "clipped_sum", clipped_sum


def _clip(parts, max_grad_norm, norms):
    return parts * (max_grad_norm / norms).clamp(max=1)[:, None]


def _by_layer(parts, max_grad_norm):
    return torch.cat([_clip(p, max_grad_norm, p.norm(dim=1)) for p in parts.chunk(6, dim=1)], 1)


def _mean_of_the_batch(parts, max_grad_norm):
    mean = parts.mean(0, keepdim=True)
    return _clip(mean, max_grad_norm, mean.norm(dim=1)).expand_as(parts)


def _bias_left_out(parts, max_grad_norm):
    return _clip(parts, max_grad_norm, parts[:, 8:].norm(dim=1))


def _half_precision_norm(parts, max_grad_norm):
    return _clip(parts, max_grad_norm, parts.bfloat16().norm(dim=1).double() * (1 - 2**-8))


def _poisoned(parts, max_grad_norm):
    if not parts.isfinite().all():
        return torch.full((parts.shape[1],), GRID_UNITS)
    return _sum(parts, max_grad_norm)


def _mean_of_the_micro_batch(parts, max_grad_norm):
    return _sum(parts, max_grad_norm) // max(len(parts), 1)


def _real_batch_size(tuner):
    chosen = finetune.poisson_sample(len(tuner._units), tuner._threshold, tuner._sampling)
    scale = 1.0 / (GRID_UNITS * max(len(chosen), 1))
    tuner._optimizer._noise = dataclasses.replace(tuner._optimizer._noise, scale=scale)
    _finetuner_step(tuner)


_finetuner_step = finetune.Finetuner.step


def _average_of_raw_weights(optimizer, total):
    state = optimizer.state[optimizer.flat]
    kept, raw = state["ema"].clone(), optimizer.flat.detach().clone()
    _step(optimizer, total)
    state["ema"].copy_(kept + 0.1 * (raw - total / GRID_UNITS - kept))


def _skipped_if_empty(optimizer, total):
    if total.any():
        _step(optimizer, total)


def _of_fixed_size(examples, threshold, stream):
    size = max(1, round(examples * threshold / 2**64))
    return torch.randperm(examples)[:size].sort().values


def _truncated(examples, threshold, stream):
    return _sample(examples, threshold, stream)[:3]


def _again_if_empty(examples, threshold, stream):
    chosen = _sample(examples, threshold, stream)
    for _ in range(100):
        if len(chosen):
            break
        chosen = _sample(examples, threshold, stream)
    return chosen


def _in_blocks(examples, threshold, stream):
    pairs = _sample(examples // 2, threshold, stream)
    return torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


def _halves_alike(examples, threshold, stream):
    half = _sample(examples // 2, threshold, stream)
    return torch.cat([half, half + examples // 2])


def _noisier_twice(examples, threshold, stream):
    return _sample(examples, min(2 * threshold, 2**64), stream)


def _duplicate_votes(logits, votes_per_image):
    return _top(logits, 1).expand(-1, votes_per_image)


_top, _count = query.top_classes, query.count_votes


def _every_row(votes, labels, units, shape):
    return _count(votes, labels, units, shape).sum(0, keepdim=True).expand(shape)


def _dropped_if_not_finite(logits, votes_per_image):
    chosen = _top(logits, votes_per_image)
    bad = ~logits.isfinite().all(1)
    return torch.where(bad[:, None], chosen[:, :1], chosen)


def _fixed_query_noise(stream, count, std):
    random = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=random) * std).round().long()


def _nothing_reserved(budget, steps):
    budget.left -= steps


def _reserved_too_late(budget, steps):
    owed = budget.__dict__.pop("owed", 0)
    if owed:
        _reserve(budget, owed)
    budget.__dict__["owed"] = steps


_reserve = StepBudget.reserve

# Name: where the bug is planted, and the check that must find it.
BUGS = {
    "no noise": (*_noise_std(lambda std: 0.0), checks.check_noise),
    "half the noise": (*_noise_std(lambda std: std / 2), checks.check_noise),
    "5 % less noise": (*_noise_std(lambda std: 0.95 * std), checks.check_noise),
    "root of the noise": (*_noise_std(lambda std: std**0.5), checks.check_noise),
    "noise of an average over ranks": (*_noise_std(lambda std: std / 4**0.5), checks.check_noise),
    "uniform noise": (
        *_own_noise(lambda n, std: (torch.rand(n) - 0.5).double() * 12**0.5 * std),
        checks.check_noise,
    ),
    "one value for all": (
        *_own_noise(lambda n, std: torch.randn(1).double().expand(n) * std),
        checks.check_noise,
    ),
    "the same noise for two halves": (
        *_own_noise(lambda n, std: torch.randn(-(-n // 2)).double().repeat(2)[:n] * std),
        checks.check_noise,
    ),
    "noise from the user's seed": (
        *_own_noise(lambda n, std: torch.randn(n).double() * std),
        checks.check_unpredictability,
    ),
    "the same noise in every step": (
        *(SecretStream, "private_update", _same_noise_in_every_step),
        checks.check_noise,
    ),
    "no noise on the last bias": (
        *(SecretStream, "private_update", _no_noise_on_the_last_bias),
        checks.check_noise,
    ),
    "a public key": (
        *(SecretKey, "from_os", staticmethod(_public_seed)),
        checks.check_unpredictability,
    ),
    "no clipping": (*_rows(lambda parts, c: parts), checks.check_coupled_step),
    "clipping by layer": (*_rows(_by_layer), checks.check_coupled_step),
    "clipping the batch mean": (*_rows(_mean_of_the_batch), checks.check_sensitivity),
    "a bias left out of the norm": (*_rows(_bias_left_out), checks.check_sensitivity),
    "a norm in half precision": (*_rows(_half_precision_norm), checks.check_sensitivity),
    "one bad example poisons the sum": (
        finetune,
        "clipped_sum",
        _poisoned,
        checks.check_sensitivity,
    ),
    "micro-batches averaged": (
        *(finetune, "clipped_sum", _mean_of_the_micro_batch),
        checks.check_micro_batches,
    ),
    "divided by the real batch size": (
        *(finetune.Finetuner, "step", _real_batch_size),
        checks.check_coupled_step,
    ),
    "an average of weights without noise": (
        *(DPAdam, "step", _average_of_raw_weights),
        checks.check_side_channels,
    ),
    "empty batches skipped": (
        *(DPAdam, "step", _skipped_if_empty),
        checks.check_every_step_is_noised,
    ),
    "batches of a fixed size": (finetune, "poisson_sample", _of_fixed_size, checks.check_sampler),
    "truncated batches": (finetune, "poisson_sample", _truncated, checks.check_sampler),
    "drawn again if empty": (finetune, "poisson_sample", _again_if_empty, checks.check_sampler),
    "neighbours sampled together": (finetune, "poisson_sample", _in_blocks, checks.check_sampler),
    "the same mask on two ranks": (finetune, "poisson_sample", _halves_alike, checks.check_sampler),
    "twice the rate": (finetune, "poisson_sample", _noisier_twice, checks.check_sampler),
    "a class voted for twice": (
        *(query, "top_classes", _duplicate_votes),
        checks.check_query_sensitivity,
    ),
    "votes in every row": (query, "count_votes", _every_row, checks.check_query_sensitivity),
    "fewer votes where logits are NaN": (
        *(query, "top_classes", _dropped_if_not_finite),
        checks.check_query_sensitivity,
    ),
    "query noise without the root of k": (
        *(query.QuerySettings, "noise_std", lambda settings, noise_multiplier: noise_multiplier),
        checks.check_query_noise,
    ),
    "query noise from a fixed seed": (
        *(SecretStream, "gaussian_integers", _fixed_query_noise),
        checks.check_query_noise,
    ),
    "no query noise": (
        SecretStream,
        "gaussian_integers",
        lambda stream, count, std: _integers(stream, count, 0.0),
        checks.check_query_noise,
    ),
    "steps that are not reserved": (
        *(StepBudget, "reserve", _nothing_reserved),
        checks.check_reservations,
    ),
    "steps reserved after they were taken": (
        *(StepBudget, "reserve", _reserved_too_late),
        checks.check_reservations,
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_as_it_is_passes(check, tmp_path):
    check(tmp_path)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name, tmp_path, monkeypatch):
    place, attribute, bug, check = BUGS[name]
    monkeypatch.setattr(place, attribute, bug)
    # The production code may notice by itself: then it refuses in one line.
    with pytest.raises((AssertionError, UserError)):
        check(tmp_path)


def test_every_check_finds_something():
    assert {check for *_, check in BUGS.values()} == set(CHECKS)
