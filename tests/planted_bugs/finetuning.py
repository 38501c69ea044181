"""Bugs in DP fine-tuning: noise, clipping, the update, sampling, what is kept and said.

Without a counterpart here, and so not planted: a sum over ranks (there is one process; the noise of
an average over ranks and one mask for two ranks stand for it), σ left without C (gradients are in
units of C, so the grid's units are left out instead), replayed noise of a captured CUDA graph and a
gradient scaler that skips steps (there is neither).
"""

import dataclasses
import sys

import privacy_checks as checks
import torch

from privimage import ops
from privimage.dp import GRID_UNITS, ClipRule, DPAdam, SecretKey, clipped_sum
from privimage.dp.gradients import later
from privimage.dp.gradients.kept import Arena
from privimage.dp.gradients.later import LayerUse
from privimage.dp.noise import SecretStream
from privimage.dp.optimizers import DPOptimizer
from privimage.selftest import checks as selftests
from privimage.selftest.checks import (
    check_coupled_step,
    check_every_step_is_noised,
    check_noise,
    check_sampler,
    check_sensitivity,
    check_side_channels,
    check_unpredictability,
)
from privimage.selftest.probe import PUBLIC_SIZE
from privimage.synthesis import finetuner

_update, _step, _sum = SecretStream.private_update, DPOptimizer.step, finetuner.planned_clipped_sum
_scales, _add_kept, _add_again = ClipRule.scales, Arena.add_to, LayerUse.add_to
_squares, _again = Arena.squares, LayerUse.squares
_sample, _losses, _tensors = finetuner.poisson_sample, finetuner.losses, finetuner.Finetuner.tensors
_finetuner_step, _draws_together = finetuner.Finetuner.step, finetuner.Finetuner._clipped_sum
_begin = finetuner.Finetuner.__init__


SUMS = SAMPLERS = finetuner, selftests


def _noise_std(change):
    """A bug that draws the update's noise with another standard deviation."""

    def update(stream, total, state, rule, first):
        changed = dataclasses.replace(rule, noise_std=change(rule.noise_std))
        _update(stream, total, state, changed, first)

    return SecretStream, "private_update", update


def fraction_of_the_noise(share):
    """A bug that draws the update's noise with this `share` of its standard deviation."""
    return _noise_std(lambda std: share * std)


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

    def total(parts, max_grad_norm):
        rows = change(parts.double(), max_grad_norm)
        return (rows * (GRID_UNITS / max_grad_norm)).nan_to_num(0).trunc().long().sum(0)

    return _sums(total)


def _sums(change):
    """A bug in the clipped sum: `change(parts, C)` is returned."""

    def planned_clipped_sum(gradients, losses, *batch, plan, rule, examples=None):
        parts = gradients(losses, *batch, draws=plan.draws)[:examples]
        return change(parts, rule.max_grad_norm)

    return SUMS, "planned_clipped_sum", planned_clipped_sum


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
    return clipped_sum(parts, max_grad_norm)


def _mean_of_the_micro_batch(*arguments, examples, **options):
    return _sum(*arguments, examples=examples, **options) // max(examples, 1)


def _filler_added(*arguments, examples, **options):
    return _sum(*arguments, **options)


def _scales_of_the_next_example(rule, squares):
    return _scales(rule, squares).roll(1, dims=1)


def _norm_of_the_first_arena(arena):
    squares = _squares(arena)
    return squares if arena._first == 0 else torch.zeros_like(squares)


def _norm_of_another_layer(use):
    return _again(use) if use.weight.start == 0 else torch.zeros_like(use.norms)


def _gram_without_margin(x, grad, examples, taps, geometry, *, with_bias):
    return ops.gram_sums(x, grad, examples, taps, with_bias, geometry)[0].clamp(min=0)


def _squared_before_it_is_added_up(indices, grad, entries, padding_idx=None):
    return grad.double().square().sum((1, 2))


def _kept_added_twice(arena, total, scales, *, accumulate):
    _add_kept(arena, total, scales, accumulate=accumulate)
    _add_kept(arena, total, scales, accumulate=True)


def _computed_again_without_scales(use, total, scales, *, accumulate):
    _add_again(use, total, scales.clamp(min=GRID_UNITS), accumulate=accumulate)


def _real_batch_size(tuner):
    def sample(*arguments):
        chosen = _sample(*arguments)
        scale = 1.0 / (GRID_UNITS * max(len(chosen), 1))
        tuner._optimizer._noise = dataclasses.replace(tuner._optimizer._noise, scale=scale)
        return chosen

    finetuner.poisson_sample = sample
    try:
        _finetuner_step(tuner)
    finally:
        finetuner.poisson_sample = _sample


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


def _shuffled():
    """A bug that goes through a shuffled set instead of sampling: every batch is of one size."""
    order = []

    def sample(examples, threshold, stream):
        size = max(1, round(examples * threshold / 2**64))
        if len(order) < size:
            order[:] = torch.randperm(examples).tolist()
        return torch.tensor(sorted(order.pop() for _ in range(min(size, len(order)))))

    return sample


def _draws_apart(tuner, piece):
    settings = tuner._settings
    tuner._settings = dataclasses.replace(settings, draws=1)
    try:
        return sum(_draws_together(tuner, piece) for _ in range(settings.draws))
    finally:
        tuner._settings = settings


def _without_the_batch_mean(denoiser, clean, *others):
    return _losses(denoiser, clean - clean.mean(0), *others)


def _with_flipped_copies(tuner, sensitive, *others):
    both = torch.cat([sensitive.images, sensitive.images.flip(-1)])
    twice = dataclasses.replace(sensitive, images=both, labels=sensitive.labels.repeat(2))
    _begin(tuner, twice, *others)


def _best_step_kept(optimizer, total):
    _step(optimizer, total)
    size, kept = optimizer.__dict__.get("best", (torch.inf, None))
    if (now := float(total.double().norm())) < size:
        size, kept = now, optimizer.flat.detach().clone()
    optimizer.__dict__["best"] = size, kept
    optimizer.state[optimizer.flat]["ema"].copy_(kept)


def _loss_printed(*arguments):
    found = _losses(*arguments)
    sys.stdout.write(f"loss {float(found.detach().sum()):.6f}\n")
    return found


def _size_printed(*arguments):
    chosen = _sample(*arguments)
    sys.stdout.write(f"a batch of {len(chosen)}\n")
    return chosen


def _size_kept(tuner):
    return {**_tensors(tuner), "images": torch.tensor(len(tuner._sensitive))}


def _key_kept(tuner):
    return {**_tensors(tuner), "generator": tuner._sampling._key}


BUGS = {
    "no noise": (*_noise_std(lambda std: 0.0), check_noise),
    "half the noise": (*_noise_std(lambda std: std / 2), check_noise),
    "noise divided by the batch size": (
        *_noise_std(lambda std: std / PUBLIC_SIZE),
        check_noise,
    ),
    "noise without the grid's units": (
        *_noise_std(lambda std: std / GRID_UNITS),
        check_noise,
    ),
    "5 % less noise": (*_noise_std(lambda std: 0.95 * std), check_noise),
    "root of the noise": (*_noise_std(lambda std: std**0.5), check_noise),
    "noise of an average over ranks": (
        *_noise_std(lambda std: std / 4**0.5),
        check_noise,
    ),
    "uniform noise": (
        *_own_noise(lambda n, std: (torch.rand(n) - 0.5).double() * 12**0.5 * std),
        check_noise,
    ),
    "one value for all": (
        *_own_noise(lambda n, std: torch.randn(1).double().expand(n) * std),
        check_noise,
    ),
    "the same noise for two halves": (
        *_own_noise(lambda n, std: torch.randn(-(-n // 2)).double().repeat(2)[:n] * std),
        check_noise,
    ),
    "noise from the user's seed": (
        *_own_noise(lambda n, std: torch.randn(n).double() * std),
        check_unpredictability,
    ),
    "the same noise in every step": (
        *(SecretStream, "private_update", _same_noise_in_every_step),
        check_noise,
    ),
    "no noise on the last bias": (
        *(SecretStream, "private_update", _no_noise_on_the_last_bias),
        check_noise,
    ),
    "a public key": (
        *(SecretKey, "from_os", staticmethod(_public_seed)),
        check_unpredictability,
    ),
    "no clipping": (*_rows(lambda parts, c: parts), check_coupled_step),
    "clipping by layer": (*_rows(_by_layer), check_coupled_step),
    "clipping the batch mean": (*_rows(_mean_of_the_batch), check_sensitivity),
    "draws clipped apart and summed": (
        *(finetuner.Finetuner, "_clipped_sum", _draws_apart),
        check_coupled_step,
    ),
    "a loss that sees the batch": (
        *(finetuner, "losses", _without_the_batch_mean),
        checks.check_micro_batches,
    ),
    "flipped copies as images of their own": (
        *(finetuner.Finetuner, "__init__", _with_flipped_copies),
        check_coupled_step,
    ),
    "a bias left out of the norm": (*_rows(_bias_left_out), check_sensitivity),
    "a norm in half precision": (*_rows(_half_precision_norm), check_sensitivity),
    "one bad example poisons the sum": (
        *_sums(_poisoned),
        check_sensitivity,
    ),
    "micro-batches averaged": (
        *(finetuner, "planned_clipped_sum", _mean_of_the_micro_batch),
        checks.check_micro_batches,
    ),
    "what fills a micro-batch up is added": (
        *(finetuner, "planned_clipped_sum", _filler_added),
        checks.check_micro_batches,
    ),
    "an example scaled for its neighbour": (
        *(ClipRule, "scales", _scales_of_the_next_example),
        check_sensitivity,
    ),
    "a kept part that no norm counts": (
        *(Arena, "squares", _norm_of_the_first_arena),
        check_sensitivity,
    ),
    "a kept part added twice": (
        *(Arena, "add_to", _kept_added_twice),
        check_coupled_step,
    ),
    "a layer computed again with the norm of another": (
        *(LayerUse, "squares", _norm_of_another_layer),
        check_sensitivity,
    ),
    "a layer computed again and not clipped": (
        *(LayerUse, "add_to", _computed_again_without_scales),
        check_sensitivity,
    ),
    "a ghost norm without its margin": (
        *(later, "ghost_squares", _gram_without_margin),
        checks.check_ghosts_and_tables,
    ),
    "a repeated word squared before it is added up": (
        *(later.ops, "example_embedding_norms", _squared_before_it_is_added_up),
        checks.check_ghosts_and_tables,
    ),
    "divided by the real batch size": (
        *(finetuner.Finetuner, "step", _real_batch_size),
        check_coupled_step,
    ),
    "an average of weights without noise": (
        *(DPAdam, "step", _average_of_raw_weights),
        check_side_channels,
    ),
    "empty batches skipped": (
        *(DPAdam, "step", _skipped_if_empty),
        check_every_step_is_noised,
    ),
    "shuffled batches": (SAMPLERS, "poisson_sample", _shuffled(), check_sampler),
    "batches of a fixed size": (
        SAMPLERS,
        "poisson_sample",
        _of_fixed_size,
        check_sampler,
    ),
    "truncated batches": (SAMPLERS, "poisson_sample", _truncated, check_sampler),
    "drawn again if empty": (SAMPLERS, "poisson_sample", _again_if_empty, check_sampler),
    "neighbours sampled together": (
        SAMPLERS,
        "poisson_sample",
        _in_blocks,
        check_sampler,
    ),
    "the same mask on two ranks": (
        SAMPLERS,
        "poisson_sample",
        _halves_alike,
        check_sampler,
    ),
    "twice the rate": (SAMPLERS, "poisson_sample", _noisier_twice, check_sampler),
    "the step that served the images best": (
        *(DPAdam, "step", _best_step_kept),
        checks.check_release,
    ),
    "a loss in the log": (finetuner, "losses", _loss_printed, checks.check_public_traces),
    "batch sizes in the log": (
        *(finetuner, "poisson_sample", _size_printed),
        checks.check_public_traces,
    ),
    "the number of images in a checkpoint": (
        *(finetuner.Finetuner, "tensors", _size_kept),
        checks.check_checkpoint,
    ),
    "the key in a checkpoint": (finetuner.Finetuner, "tensors", _key_kept, checks.check_checkpoint),
}
