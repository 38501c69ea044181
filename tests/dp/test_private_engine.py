"""The engine as a user holds it, and as they must not be able to hold it."""

import contextlib
import copy
import dataclasses
import gc
import io
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from truth import one_at_a_time

from privimage.dp import (
    DPSGD,
    ClipRule,
    DPAdam,
    DPAdamW,
    Ledger,
    Privacy,
    PrivateEngine,
    SubsampledGaussian,
    epsilon,
)
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)
NEVER = 1e-15
EXAMPLES = 12


@pytest.fixture
def known_key(monkeypatch):
    """Noise and sampling from a key that everybody knows: two runs differ by data alone."""
    monkeypatch.setenv(TEST_KEY, "known")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def losses(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def examples(count=EXAMPLES):
    """The first ones are always the same, so that sets differ at their end."""
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 4, generator=random), torch.randint(3, (64,), generator=random)
    return x[:count], y[:count]


def privacy(**changes):
    return Privacy(
        **{"noise_multiplier": 1.0, "sample_rate": 1.0, "steps": 50}
        | {"max_grad_norm": 0.3, "expected_batch_size": 10.0}
        | changes
    )


def engine(data=None, optimizer=DPSGD, model=None, options=None, **changes):
    model = model or network()
    chosen = optimizer(model.parameters(), lr=0.1)
    data = examples() if data is None else data
    return PrivateEngine(model, chosen, losses, data, privacy(**changes), **(options or {}))


def weights(made):
    return torch.cat([p.detach().flatten() for p in made._model.parameters()])


def moved(made, steps=1):
    """What `steps` steps change, in units of C / expected batch size."""
    before = weights(made)
    for _ in range(steps):
        made.step()
    step = made.privacy.max_grad_norm / (made.privacy.expected_batch_size or 1.0)
    return (before - weights(made)).double() / 0.1 / step


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": "1"},
        {"sample_rate": None},
        {"steps": 1.5},
        {"max_grad_norm": [1.0]},  # as Opacus has it, a number a layer
        {"stability": "small"},
        {"expected_batch_size": "8"},
        {"clipping": ["flat"]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_is_no_number_is_refused_by_name(wrong):
    numbers = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10}
    with pytest.raises(UserError, match=next(iter(wrong))):
        Privacy(**numbers | wrong)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("draws", [1, 3])
def test_without_noise_a_step_is_the_mean_of_the_clipped_gradients(clipping, draws):
    made = engine(noise_multiplier=0.0, clipping=clipping, options={"draws_per_example": draws})
    model = copy.deepcopy(made._model).double()
    x, y = examples()
    rows = one_at_a_time(model, losses, (x.double(), y))
    norms = rows.norm(dim=1, keepdim=True)
    if clipping == "automatic":
        rows = rows * 0.3 / (norms + 0.01)
    elif clipping == "flat":
        assert (norms > 0.3).any()
        rows = rows * (0.3 / norms).clamp(max=1)
    else:
        layers = rows.split([30, 21], dim=1)
        rows = torch.cat(
            [r * (0.3 / 2**0.5 / r.norm(dim=1)).clamp(max=1)[:, None] for r in layers], 1
        )
    expected = rows.sum(0) / 10
    found = moved(made) * 0.03
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("device", [CUDA])
def test_a_step_on_a_gpu_is_that_on_the_cpu_bit_for_bit(known_key, device, recorded, clipping):
    """Of whole numbers, whose products and sums are exact in any order and with half of the bits.

    Sampling, gradients, norms, scales, sums, noise and the update.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 3))
    for parameter in model.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape).float()
    data = torch.randint(-3, 4, (40, 2, 4, 4)).float(), torch.randint(-2, 3, (40, 3)).float()
    sums, ends = [], []
    for place in ("cpu", device):
        there = copy.deepcopy(model).to(place)
        made = PrivateEngine(
            *(there, DPAdam(there.parameters(), lr=0.1), lambda m, x, y: (m(x) * y).sum(1), data),
            privacy(sample_rate=0.7, clipping=clipping, max_grad_norm=30.0),
            recorded=recorded,
        )
        step = made._stepper.step
        made._stepper.step = lambda total, step=step: (sums.append(total.cpu()), step(total))
        made.check()
        # cuDNN may take a convolution by Winograd's way, whose sixths no float32 holds.
        with torch.backends.cudnn.flags(enabled=False):
            made.step()
        ends.append(weights(made).cpu())
    assert torch.equal(*sums)
    assert torch.equal(*ends)
    assert sums[0].any()
    assert not torch.equal(ends[0], torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("draws", [1, 2])
def test_recorded_steps_are_the_steps_bit_for_bit(known_key, clipping, draws):
    """Random numbers of the losses included; micro-batches of five, the last one not full."""
    options, found = {"draws_per_example": draws, "micro_batch": 5}, []
    for recorded in (False, True):
        model = nn.Sequential(network(), nn.Dropout())
        options["recorded"] = recorded
        made = engine(model=model, options=options, clipping=clipping, sample_rate=0.9)
        for _ in range(4):
            made.step()
        found.append(weights(made))
    assert torch.equal(*found)
    assert not torch.equal(found[0], weights(engine()))


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_default_device_decides_nothing(known_key, rate):
    model, found = network(), []
    for default in ("cpu", "meta"):
        made = engine(model=copy.deepcopy(model), sample_rate=rate)
        with torch.device(default):
            made.step()
        found.append(weights(made))
    assert torch.equal(*found)


@pytest.mark.parametrize("recorded", [False, True])
def test_losses_may_change_their_batch_in_place(known_key, recorded):
    def changing(model, x, y):
        return losses(model, x.mul_(2).sub_(model[0].bias[:4]), y)

    def plain(model, x, y):
        return losses(model, 2 * x - model[0].bias[:4], y)

    def steps(of):
        model, data = network(), examples()
        options = {"recorded": recorded, "micro_batch": 3}
        chosen = DPSGD(model.parameters(), lr=0.1)
        made = PrivateEngine(model, chosen, of, data, privacy(sample_rate=0.5), **options)
        found = moved(made, steps=2)
        assert torch.equal(data[0], examples()[0])
        return found

    assert torch.equal(steps(changing), steps(plain))


def test_losses_that_look_at_values_are_not_recorded():
    def looking(model, x, y):
        return losses(model, x if model[0].bias.max() > 1 else -x, y)

    optimizer = DPSGD((model := network()).parameters(), lr=0.1)
    made = PrivateEngine(model, optimizer, looking, examples(), privacy(), recorded=True)
    with pytest.raises(UserError, match="recorded=True"):
        made.step()


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("hostile", [0.0, 1e-30, 1e10, 1e30, math.inf, -math.inf, math.nan])
def test_one_example_moves_a_step_by_at_most_the_clip(known_key, clipping, hostile):
    few, more = examples(8), tuple(t.clone() for t in examples(9))
    more[0][8] = hostile
    for rate in (1.0, 0.5):
        both = [moved(engine(data, clipping=clipping, sample_rate=rate)) for data in (few, more)]
        # Float32 parameters of about 1 give a change of C / 10 back to about 1e-5 of it.
        assert float((both[0] - both[1]).norm()) <= 1 + 1e-4


def test_the_test_above_can_fail(known_key, monkeypatch):
    monkeypatch.setattr(ClipRule, "scales", lambda self, squares: torch.full_like(squares, 2.0**30))
    few, more = examples(8), tuple(t.clone() for t in examples(9))
    more[0][8] = 1e10
    assert float((moved(engine(few)) - moved(engine(more))).norm()) > 2


def test_an_empty_batch_is_a_step():
    made = engine(sample_rate=NEVER, noise_multiplier=2.0, steps=40)
    drawn = torch.cat([moved(made) for _ in range(40)]) / 2.0
    squares = float(drawn.square().sum())
    low, high = scipy.stats.chi2.ppf([5e-7, 1 - 5e-7], len(drawn))
    assert low < squares < high
    assert not low < squares * 0.8**2 < high
    assert made.steps_spent == 40


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 12, 64])
def test_micro_batches_of_any_size_give_the_same_step(known_key, micro_batch):
    whole = moved(engine(), steps=3)
    cut = moved(engine(options={"micro_batch": micro_batch}), steps=3)
    # Forward passes of other sizes differ by some 1e-7, and float32 parameters by 1e-5 of a step.
    assert (whole - cut).abs().max() < 1e-3


def test_a_step_takes_one_poisson_sample_whole():
    # The "gradient" of example i is the unit vector i, so that a step shows who was in it.
    count, steps, rate = 40, 800, 0.1
    model = nn.Linear(count, 1, bias=False)
    made = PrivateEngine(
        model,
        DPSGD(model.parameters(), lr=1.0),
        lambda m, x: -m(x)[:, 0],
        torch.eye(count),
        Privacy(noise_multiplier=0.0, sample_rate=rate, steps=steps, expected_batch_size=1.0),
        micro_batch=3,
    )
    sampled = []
    for _ in range(steps):
        before = model.weight.detach().clone()
        made.step()
        sampled.append((model.weight.detach() - before)[0])
    sampled = torch.stack(sampled)
    assert torch.allclose(sampled, sampled.round(), atol=1e-4)
    assert sampled.round().unique().tolist() == [0.0, 1.0]
    total = int(sampled.round().sum())
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], count * steps, rate)
    assert low <= total <= high
    assert not low <= total * 1.2 <= high
    sizes = sampled.round().sum(1)
    assert sizes.min() == 0 or sizes.max() > 6


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (DPSGD, torch.optim.SGD, {}),
        (DPSGD, torch.optim.SGD, {"momentum": 0.9}),
        (DPAdam, torch.optim.Adam, {}),
        (DPAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_every_optimizer_gets_the_same_noised_mean(known_key, ours, theirs, options):
    ends = []
    for kind in (ours, theirs):
        model = network()
        made = PrivateEngine(
            model, kind(model.parameters(), lr=0.1, **options), losses, examples(), privacy()
        )
        for _ in range(4):
            made.step()
        ends.append(weights(made))
        assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_groups_in_another_order_than_the_model_s(known_key):
    ends = []
    for kind in (DPSGD, torch.optim.SGD):
        model = network()
        groups = [{"params": model[2].parameters()}, {"params": model[0].parameters(), "lr": 0.01}]
        made = PrivateEngine(model, kind(groups, lr=0.1), losses, examples(), privacy())
        before = weights(made)
        object.__setattr__(made._stepper._noise, "std", 0.0)
        if kind is DPSGD:
            object.__setattr__(made._optimizer._noise, "std", 0.0)
        made.step()
        ends.append(weights(made) - before)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [DPAdam, torch.optim.Adam])
def test_learning_rate_schedulers(optimizer):
    made = engine(optimizer=optimizer, noise_multiplier=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(made._optimizer, step_size=1, gamma=0.0)
    made.step()
    scheduler.step()
    before = weights(made)
    made.step()
    assert torch.equal(before, weights(made))


def test_only_what_is_trainable_is_trained():
    # A low-rank update beside a frozen layer.
    model = network()
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    trained = model[2].weight.clone()
    made = engine(model=model)
    made.step()
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[2].weight, trained)


class Dictionary:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"x": torch.zeros(4)}


def test_a_data_set_gives_what_its_tensors_give(known_key):
    x, y = examples()
    listed = [(row, int(label)) for row, label in zip(x, y, strict=True)]
    from_tensors = moved(engine(), 2)
    for data in (TensorDataset(x, y), listed):
        assert torch.equal(moved(engine(data), 2), from_tensors)


def test_examples_of_several_shapes_are_named_with_what_to_do():
    x, y = examples()
    made = engine([(row, int(label)) for row, label in zip(x, y, strict=True)] + [(x[0][:2], 0)])
    with pytest.raises(UserError, match="all examples need the same shapes and types; pad"):
        made.step()


def test_augmentation_and_dropout_draw_anew_for_each_draw():
    seen = []

    def noisy(model, x, y):
        seen.append(torch.randn_like(x))
        return losses(model, x + seen[-1], y)

    model = network()
    made = PrivateEngine(
        model,
        DPSGD(model.parameters(), lr=0.1),
        noisy,
        examples(),
        privacy(),
        draws_per_example=2,
        micro_batch=12,
    )
    made.step()
    made.step()
    one, other = seen[-2:]
    assert one.shape == (24, 4)
    assert len(torch.cat([one, other]).unique()) == 2 * one.numel()


@pytest.mark.parametrize("count", [0, 1, 12])
def test_the_random_state_tells_nothing_about_the_batch(count):
    data = tuple(t[:count] for t in examples())
    made = engine(data, options={"micro_batch": 1})
    made.check()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made.step()
    assert torch.equal(before, torch.get_rng_state())


class _Shaken(TensorDataset):
    """Augments with PyTorch's random numbers."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn(4), y


@pytest.mark.parametrize("count", [1, 12])
def test_a_data_set_may_augment_with_the_random_state(count):
    made = engine(_Shaken(*(t[:count] for t in examples())))
    made.check()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made.step()
    assert torch.equal(before, torch.get_rng_state())


def test_backward_without_the_engine_is_refused():
    made = engine()
    model, (x, y) = made._model, examples()
    with pytest.raises(UserError, match=r"backward\(\) .* '2\.bias' .*PrivateEngine\.step"):
        F.cross_entropy(model(x), y).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    made.step()
    made.close()
    F.cross_entropy(model(x), y).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(UserError, match="closed"):
        made.step()


@pytest.mark.parametrize("optimizer", [DPAdam, torch.optim.Adam])
@pytest.mark.parametrize("recorded", [False, True])
def test_an_engine_that_is_gone_gives_the_model_back(recorded, optimizer):
    model, (x, y) = network(), examples()
    made = engine(model=model, optimizer=optimizer, options={"recorded": recorded})
    made.step()
    other = engine(model=network(1))
    del made
    gc.collect()
    losses(model, x, y).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(UserError, match=r"backward\(\)"):
        losses(other._model, x, y).mean().backward()


def test_with_closes_an_engine():
    with engine() as made:
        made.step()
        with pytest.raises(UserError, match=r"backward\(\)"):
            losses(made._model, *examples()).mean().backward()
    losses(made._model, *examples()).mean().backward()
    with pytest.raises(UserError, match="closed"):
        made.step()


def test_engines_in_two_threads_leave_the_random_state_as_it_was():
    """It would be left seeded from one's secret key, for the other takes it for PyTorch's own."""

    def slow(model, x, y):
        time.sleep(0.002)  # The other one may go on.
        return losses(model, x, y)

    both = [engine(sample_rate=0.5), engine(sample_rate=0.5)]
    for made in both:
        made.check()
        made._sum._losses = slow
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda made: [made.step() for _ in range(8)], both))
    assert torch.equal(before, torch.get_rng_state())


def test_another_network_learns_through_the_model():
    made, generator = engine(), nn.Linear(2, 4)
    score = made._model(generator(torch.randn(5, 2))).sum()
    with pytest.raises(UserError, match=r"backward\(inputs="):
        score.backward(retain_graph=True)
    generator.zero_grad()
    score.backward(inputs=list(generator.parameters()))
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in made._model.parameters())
    made.step()


def test_no_step_beyond_the_plan():
    made = engine(steps=2)
    made.step()
    made.step()
    before = weights(made)
    with pytest.raises(UserError, match=r"all 2 steps .* were taken"):
        made.step()
    assert torch.equal(before, weights(made))


def test_epsilon_is_the_accountant_s_upper_bound_for_the_steps_begun():
    made = engine(sample_rate=0.1)
    assert made.epsilon(1e-5) == 0.0
    for taken in (1, 2):
        made.step()
        steps = SubsampledGaussian(0.1, 1.0, taken)
        assert made.epsilon(1e-5) == epsilon([steps], 1e-5).upper
    with pytest.raises(UserError, match="delta"):
        made.epsilon(0.5)


@pytest.mark.parametrize("checked", [False, True])
def test_a_step_within_a_step_is_refused(checked):
    """It waited for itself, for ever."""
    model = network()

    def stepping(model, x, y):
        if is_armed:
            engine.step()
        return losses(model, x, y)

    is_armed = not checked
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivateEngine(
        model,
        optimizer,
        stepping,
        examples(),
        Privacy(noise_multiplier=1.0, sample_rate=1.0, steps=5),
    )
    if checked:
        engine.check()
    is_armed = True
    with pytest.raises(UserError, match="in the middle of a step of the same engine"):
        engine.step()
    assert engine.steps_spent == checked  # Whoever sees the data first has begun the step.
    is_armed = False
    engine.step()
    assert engine.steps_spent == checked + 1


def test_two_threads_take_their_steps_one_after_the_other():
    inside, most = [], []

    def watched(model, x, y):
        inside.append(1)
        time.sleep(0.02)
        most.append(len(inside))
        inside.pop()
        return losses(model, x, y)

    made = engine()
    made._sum._losses = watched
    made.check()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: made.step(), range(8)))
    assert made.steps_spent == 8
    assert set(most) == {1}


def test_a_step_that_fails_is_spent():
    made = engine(sample_rate=1.0)
    made.check()
    made._sum._losses = lambda model, x, y: losses(model, x, y).mean()
    with pytest.raises(UserError, match="reduction='none'"):
        made.step()
    assert made.steps_spent == 1
    assert made.epsilon(1e-5) > 0


def test_a_test_key_promises_nothing(known_key):
    made = engine()
    assert not made.is_secret
    made.step()
    assert made.epsilon(1e-5) == math.inf


def test_a_target_is_met_by_all_steps_together():
    chosen = Privacy.for_epsilon(2.0, 1e-5, sample_rate=0.1, steps=20, clipping="automatic")
    assert 1.9 < chosen.epsilon(1e-5) <= 2.0
    without = Privacy(noise_multiplier=0.0, sample_rate=0.1, steps=20, clipping="automatic")
    assert chosen == dataclasses.replace(without, noise_multiplier=chosen.noise_multiplier)
    assert Privacy.for_epsilon(math.inf, 1e-5, 0.1, 20).noise_multiplier == 0.0
    assert without.epsilon(1e-5) == math.inf


def test_noise_and_rate_have_names():
    with pytest.raises(TypeError, match="positional"):
        Privacy(0.1, 1.0, 20)  # A rate of 0.1 and a noise of 1, whoever reads it; or the reverse?


@pytest.mark.parametrize("optimizer", [DPAdam, torch.optim.Adam])
def test_a_saved_state_goes_on_and_holds_no_secret(known_key, optimizer):
    one = engine(optimizer=optimizer, noise_multiplier=0.0)
    moved(one, 3)
    buffer = io.BytesIO()
    torch.save({"model": one._model.state_dict(), "engine": one.state_dict()}, buffer)
    assert bytes(one._sampling._key.tolist()) not in buffer.getvalue()
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = engine(optimizer=optimizer, model=network(1), noise_multiplier=0.0, steps=70)
    other._model.load_state_dict(saved["model"])
    other.load_state_dict(saved["engine"])
    assert other.steps_spent == 3
    moved(one, 2)
    moved(other, 2)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [DPAdam, torch.optim.Adam])
def test_a_scheduler_of_numpy_s_numbers_leaves_a_state_that_can_be_read(optimizer):
    made = engine(optimizer=optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(made._optimizer, lambda step: np.cos(step / 10))
    made.step()
    scheduler.step()
    made._optimizer.param_groups[0]["betas"] = (np.float64(0.5), 0.9)
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    (group,) = torch.load(buffer, weights_only=True)["optimizer"]["param_groups"]
    assert group["lr"] == 0.1 * np.cos(0.1)
    assert group["betas"] == (0.5, 0.9)


def test_steps_with_a_test_key_stay_steps_without_secret(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "known")
    one = engine()
    one.step()
    monkeypatch.delenv(TEST_KEY)
    other = engine()
    assert other.is_secret
    other.load_state_dict(one.state_dict())
    assert not other.is_secret
    assert other.epsilon(1e-5) == math.inf


def test_no_step_is_forgotten_or_counted_twice_when_states_are_loaded():
    one, other = engine(), engine()
    moved(one, 4)
    early = one.state_dict()
    moved(one, 2)
    moved(other, 3)
    other.load_state_dict(early)
    assert other.steps_spent == 7  # Its own three saw the data too.
    other.load_state_dict(one.state_dict())
    other.load_state_dict(early)
    assert other.steps_spent == 9
    one.load_state_dict(early)
    assert one.steps_spent == 6


def test_a_state_that_loads_in_part_counts_as_a_whole():
    """Whoever goes on after the exception has loaded the model's state already."""
    saved = engine()
    moved(saved, 4)
    other = engine(optimizer=torch.optim.Adam)
    with pytest.raises((KeyError, ValueError)):
        other.load_state_dict({**saved.state_dict(), "optimizer": {"param_groups": []}})
    assert other.steps_spent == 4


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        *((kind, kind) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adafactor)),
        (torch.optim.Adam, torch.optim.SGD),
        (torch.optim.SGD, torch.optim.Adam),
        (torch.optim.Adam, torch.optim.NAdam),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_state_that_does_not_fit_is_told_before_a_step_is_paid_for(saved, loading, by_hand):
    is_other_kind = saved is not loading
    wide = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
    one = engine(optimizer=saved, model=None if is_other_kind else wide)
    if saved is torch.optim.SGD:
        one._optimizer.param_groups[0]["momentum"] = 0.9
    one.step()
    other = engine(optimizer=loading)
    load = other._optimizer.load_state_dict if by_hand else other.load_state_dict
    state = one.state_dict()
    # Some of PyTorch's find out by themselves, too late.
    with (
        contextlib.suppress(KeyError)
        if by_hand
        else pytest.raises(UserError, match="optimiser's st")
    ):
        load(state["optimizer"] if by_hand else state)
    spent = other.steps_spent
    with pytest.raises(UserError, match=r"make model and optimiser .* as they were"):
        other.step()
    assert other.steps_spent == spent


@pytest.mark.parametrize(
    "kind", ["SGD", "Adam", "Adagrad", "Adadelta", "Adafactor", "ASGD", "NAdam", "RMSprop", "Rprop"]
)
def test_a_state_of_torchs_own_is_no_other(kind):
    one, other = (engine(optimizer=getattr(torch.optim, kind)) for _ in range(2))
    moved(one, 2)
    other.load_state_dict(one.state_dict())
    moved(other, 2)


def test_a_state_of_other_noise_is_refused():
    saved = engine(noise_multiplier=0.5).state_dict()
    with pytest.raises(UserError, match=r"noise_multiplier=0\.5.* this engine has"):
        engine().load_state_dict(saved)


def test_a_step_is_in_the_ledger_before_data_is_touched(tmp_path):
    chosen = privacy(sample_rate=0.5, steps=3)
    path, seen = tmp_path / "ledger.jsonl", []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            seen.append(path.read_text().count('"first_step"'))
            return super().__getitem__(index)

    with Ledger(path) as ledger:
        ledger.set_plan(chosen.plan(1e-5))
        made = engine(Watched(*examples(40)), sample_rate=0.5, steps=3, options={"ledger": ledger})
        made.check(torch.randn(2, 4), torch.tensor([0, 1]))
        seen.clear()
        assert path.read_text().count('"first_step"') == 0
        for step in (1, 2, 3):
            made.step()
            assert set(seen) == {step}
            seen.clear()
            assert made.epsilon(1e-5) == epsilon([SubsampledGaussian(0.5, 1.0, step)], 1e-5).upper
        state = made.state_dict()
        # A ledger that paid for all pays for nothing more, whatever the engine says.
        again = engine(sample_rate=0.5, steps=3, options={"ledger": ledger})
        with pytest.raises(UserError, match="pays for 0 more steps"):
            again.step()
    with Ledger(tmp_path / "other.jsonl") as ledger:
        with pytest.raises(UserError, match=r"ledger\.set_plan\(privacy\.plan\(delta\)\)"):
            engine(options={"ledger": ledger})
        ledger.set_plan(chosen.plan(1e-5))
        with pytest.raises(UserError, match="plan is not that of the engine's privacy"):
            engine(sample_rate=0.6, steps=3, options={"ledger": ledger})
        other = engine(sample_rate=0.5, steps=3, options={"ledger": ledger})
        with pytest.raises(UserError, match="is older than the state"):
            other.load_state_dict(state)


def test_a_state_that_had_a_ledger_needs_one(tmp_path):
    """Without, ε would leave out what the ledger knows of since; whoever means that says so."""
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.set_plan(privacy().plan(1e-5))
        saved = engine(options={"ledger": ledger})
        moved(saved, 2)
        state = saved.state_dict()
    other = engine()
    with pytest.raises(UserError, match=r"make it with ledger=Ledger\(\.\.\.\)"):
        other.load_state_dict(state)
    assert other.steps_spent == 0
    other.load_state_dict({**state, "ledger_head": None})
    assert other.steps_spent == 2


@pytest.mark.parametrize("steps_before", [0, 1])
def test_no_step_is_reserved_with_the_noise_of_another_engine(tmp_path, steps_before):
    """Two engines share a ledger, and the plan of the second has a fiftieth of the first's cost."""
    noisy = privacy(noise_multiplier=20.0, sample_rate=0.5)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.set_plan(privacy().plan(1e-5))
        first = engine(options={"ledger": ledger})
        for _ in range(steps_before):
            first.step()
        ledger.set_plan(noisy.plan(1e-5))
        engine(noise_multiplier=20.0, sample_rate=0.5, options={"ledger": ledger})
        spent, before = ledger.spent(), weights(first)
        with pytest.raises(UserError, match=r"plan is not that of the engine|something else was"):
            first.step()
        assert ledger.spent() == spent
        assert torch.equal(weights(first), before)


def test_a_step_that_cannot_be_taken_is_not_paid_for(tmp_path):
    chosen = privacy(steps=np.int64(3), noise_multiplier=np.float32(1.5))  # A ledger takes these.
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.set_plan(chosen.plan(1e-5))
        made = engine(options={"ledger": ledger}, steps=np.int64(3), noise_multiplier=1.5)
        made.step()
        spent = ledger.epsilon(1e-5).upper
        with torch.inference_mode(), pytest.raises(UserError, match="rules gradients out"):
            made.step()
        assert (made.steps_spent, ledger.epsilon(1e-5).upper) == (1, spent)


def test_a_ledger_by_person_is_refused(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl", unit="person") as ledger:
        ledger.set_plan(privacy().plan(1e-5))
        with pytest.raises(UserError, match="this ledger is by person"):
            engine(options={"ledger": ledger})


def test_a_test_key_is_noted_in_the_ledger(known_key, tmp_path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.set_plan(privacy().plan(1e-5))
        made = engine(options={"ledger": ledger})
        made.step()
        assert ledger.not_private_because == ["test key"]
        assert made.epsilon(1e-5) == math.inf


def test_mixing_is_found_before_any_data_is_touched():
    class Untouchable(TensorDataset):
        def __getitem__(self, index):
            raise AssertionError("data was touched")

    def mixing(model, x, y):
        return losses(model, x - x.mean(0), y)

    model = network()
    data = Untouchable(*examples())
    made = PrivateEngine(model, DPSGD(model.parameters(), lr=0.1), mixing, data, privacy())
    with pytest.raises(UserError, match="changes with the other examples"):
        made.check(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    model = network()
    made = PrivateEngine(model, DPSGD(model.parameters(), lr=0.1), mixing, examples(), privacy())
    with pytest.raises(UserError, match="changes with the other examples"):
        made.step()
    assert made.steps_spent == 0


def test_mixing_of_words_is_found():
    """Though every made-up example is as good as any other to a bag of words."""

    def mixing(model, words):
        bags = model(words).mean(1)
        return (bags + bags.mean(0)).square().sum(1)

    model = nn.Embedding(5, 3)
    optimizer = DPSGD(model.parameters(), lr=0.1)
    made = PrivateEngine(model, optimizer, mixing, torch.zeros(9, 6, dtype=torch.long), privacy())
    with pytest.raises(UserError, match="changes with the other examples"):
        made.check()


def test_a_micro_batch_is_filled_up_with_what_the_losses_can_take():
    def inverse(model, x, y):
        return model(torch.linalg.inv(x.unflatten(1, (2, 2))).flatten(1)).square().sum(1)

    model = network()
    made = PrivateEngine(
        model, DPSGD(model.parameters(), lr=0.1), inverse, examples(), privacy(sample_rate=0.5)
    )
    made.step()
    assert made.steps_spent == 1


def test_data_that_turns_out_to_be_of_another_form_is_not_converted():
    model = network()
    made = PrivateEngine(
        model, DPSGD(model.parameters(), lr=0.1), losses, TensorDataset(*examples()), privacy()
    )
    before = weights(made)
    made._sum._losses = lambda model, x, y: losses(model, x.float(), y)
    made.check(torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]]), torch.arange(2))
    with pytest.raises(UserError, match="of the same shapes and types"):
        made.step()
    assert torch.equal(weights(made), before)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: engine(DataLoader(TensorDataset(*examples()))), "DataLoader shuffles"),
        (lambda: engine(Dictionary()).step(), "tensor, a number or a tuple"),
        (lambda: engine([(object(), 1)]).step(), "tensor, a number or a tuple"),
        (
            lambda: engine((examples()[0].numpy(), [1])),
            r"tensors, got \(ndarray, list\); see torch",
        ),
        (lambda: engine([]).step(), "the data set is empty"),
        (lambda: engine((torch.ones(2), torch.ones(3))), "equal length"),
        (lambda: engine(iter([1])), "map-style data set, got list_iterator"),
        (
            lambda: engine().check(torch.ones(2, 4).tril().long(), torch.arange(2)),
            r"data is \[4\] float32, \[\] int64, a made-up one \[4\] int64, \[\] int64",
        ),
        (lambda: engine().check(torch.randn(2, 1, 4), torch.arange(2)), r"\[1, 4\] float32"),
        (lambda: engine().check(torch.randn(2, 4)), r"a made-up one \[4\] float32;"),
        (lambda: engine(options={"micro_batch": 0}), "micro_batch"),
        (lambda: engine(options={"draws_per_example": 0}), "draws_per_example"),
        (lambda: engine(clipping="per_leyer"), "did you mean 'per_layer'"),
        (lambda: engine(max_grad_norm=0.0), "max_grad_norm"),
        (lambda: engine(max_grad_norm=1e31), "max_grad_norm must lie in"),
        (lambda: engine(stability=math.nan), "stability must lie in"),
        (lambda: engine(sample_rate=1.5), "sample_rate"),
        (lambda: engine(steps=0), "steps"),
        (lambda: engine(stability=-1.0), "stability"),
        (lambda: engine(expected_batch_size=0.0), "expected_batch_size"),
        (lambda: engine(model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))), "GroupNorm"),
        (lambda: engine(optimizer=lambda p, lr: torch.optim.LBFGS(p, lr)), "LBFGS does not"),
        (
            lambda: engine(optimizer=lambda p, lr: torch.optim.SGD(list(p)[1:], lr)),
            r"'0\.weight' is trainable but not the optimizer's",
        ),
        (
            lambda: engine(optimizer=lambda p, lr: DPAdam([*p, nn.Parameter(torch.ones(7))], lr)),
            r"a parameter \[7\] that is not the model's",
        ),
        (
            lambda: engine(optimizer=lambda p, lr: DPSGD(p, lr, 1.0, 1.0)),
            "has noise already.*earlier engine",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_happens(make, problem):
    with pytest.raises(UserError, match=problem):
        make()


def test_parameters_that_are_frozen_later_are_noticed():
    made = engine()
    made.step()
    made._model[0].requires_grad_(False)
    with pytest.raises(UserError, match="others than when the engine was made"):
        made.step()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weight: setattr(weight, "data", weight.data.clone()), "moved or converted after"),
        (lambda weight: setattr(weight, "data", weight.data.double()), "moved or converted after"),
        (lambda weight: weight.register_hook(lambda grad: grad * 0), "'0.weight' has a hook"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_parameter_that_no_step_can_update_is_told_before_one_is_paid_for(
    recorded, change, problem
):
    made = engine(optimizer=DPAdam, options={"recorded": recorded})
    made.step()
    before = weights(made)
    change(made._model[0].weight)
    for _ in range(3):
        with pytest.raises(UserError, match=problem):
            made.step()
    assert made.steps_spent == 1
    assert torch.equal(weights(made), before)


@pytest.mark.parametrize(
    ("optimizer", "option", "value"),
    [
        *((kind, "lr", v) for kind in (DPSGD, DPAdam) for v in (math.nan, math.inf, -0.1)),
        (DPAdam, "eps", math.nan),
        (DPAdam, "betas", (0.9, math.nan)),
        (DPAdam, "betas", (0.9,)),
        (DPAdamW, "weight_decay", math.inf),
        (DPSGD, "momentum", -1.0),
        *((kind, "lr", math.nan) for kind in (torch.optim.SGD, torch.optim.Adam)),
        (torch.optim.SGD, "lr", -0.1),
        (torch.optim.SGD, "momentum", math.nan),
        (torch.optim.Adam, "betas", (math.nan, 0.9)),
    ],
)
def test_an_option_that_no_step_can_be_taken_with_is_told_before_one_is_paid_for(
    optimizer, option, value
):
    made = engine(optimizer=optimizer)
    made.step()
    before, (group,) = weights(made), made._optimizer.param_groups
    kept, group[option] = group[option], value
    for _ in range(2):
        with pytest.raises(UserError, match=option):
            made.step()
    assert made.steps_spent == 1
    assert torch.equal(weights(made), before)
    group[option] = kept
    scheduler = torch.optim.lr_scheduler.LambdaLR(made._optimizer, lambda step: 1 - step)
    made.step()
    assert made.steps_spent == 2
    scheduler.step()
    made.step()  # A learning rate of 0 is one; the next is below.
    scheduler.step()
    with pytest.raises(UserError, match="lr"):
        made.step()
    assert made.steps_spent == 3


def test_a_learning_rate_may_be_the_optimizers_own_to_find():
    made = engine(optimizer=torch.optim.SGD)
    made._optimizer.param_groups[0].update(lr=None, extra=(None, 1e-3, math.inf))
    made._stepper.check_ready()


def test_the_public_size_takes_the_place_of_the_real_one(known_key):
    few, more = (engine(examples(count), expected_batch_size=None) for count in (5, 10))
    fixed = engine(examples(5), expected_batch_size=5.0)
    assert torch.equal(moved(few), moved(fixed) / 5)
    assert more._stepper._noise.scale == few._stepper._noise.scale / 2


class Turned(nn.Module):
    """Two layers of equal input gradients, one of which is turned around where it lies."""

    def __init__(self, turn):
        super().__init__()
        self.one, self.other = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
        self.turn = turn

    def forward(self, x):
        h = self.one(0.001 * x)
        h.register_hook(self.turn)
        return h + self.other(x)


@pytest.mark.parametrize(
    "turn", [lambda grad: grad.mul_(-100.0), lambda grad: grad.data.mul_(-100.0)]
)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_hook_that_changes_a_gradient_in_place_is_refused_on_made_up_data(recorded, turn):
    """The plan computes such wide layers again, and the sum would move by 30 times the clip."""
    model = Turned(turn)
    made = PrivateEngine(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        lambda model, x: model(x).square().sum(1),
        torch.randn(2, 1024),
        privacy(),
        recorded=recorded,
    )
    with pytest.raises(UserError, match="changed in place in the backward pass"):
        made.step()
    assert made.steps_spent == 0


class Remembering(nn.Module):
    """Keeps a mean of the batch while it trains, as no module of PyTorch's that is known to."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return self.layer(x - self.mean)


def test_a_mode_that_changed_since_the_check_is_checked():
    model = Remembering().eval()
    made = engine(model=model)
    made.step()
    model.train()
    with pytest.raises(UserError, match="buffer 'mean' changes with the data"):
        made.step()
    assert made.steps_spent == 1
    model.eval()
    made.step()
    assert made.steps_spent == 2


def mixing(module, given, out):
    return out + out.mean(0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.__setitem__(1, nn.BatchNorm1d(6, affine=False)), r"'1' \(BatchNorm1d\) mixes"),
        (lambda m: m.append(nn.BatchNorm1d(3, affine=False)), r"'3' \(BatchNorm1d\) mixes"),
        (lambda m: m[1].register_forward_hook(mixing), "changes with the other examples"),
        (
            lambda m: m[1].register_forward_pre_hook(lambda m, x: (x[0] - x[0].mean(0),)),
            "changes with the other examples",
        ),
        (
            lambda m: m[1].register_full_backward_hook(lambda m, i, o: (i[0] + i[0].mean(0),)),
            "changes with the other examples",
        ),
    ],
)
def test_what_changed_since_the_check_is_checked(change, problem):
    made = engine()
    made.step()
    change(made._model)
    for _ in range(2):
        with pytest.raises(UserError, match=problem):
            made.step()
    assert made.steps_spent == 1


def test_a_module_of_losses_is_checked_again_as_the_model_is():
    class Losses(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = Remembering().eval().requires_grad_(False)

        def forward(self, model, x, y):
            self.norm(x)
            return losses(model, x, y)

    model, of = network(), Losses()
    made = PrivateEngine(model, DPSGD(model.parameters(), lr=0.1), of, examples(), privacy())
    made.step()
    of.train()
    with pytest.raises(UserError, match=r"buffer 'losses\.norm\.mean' changes"):
        made.step()
    assert made.steps_spent == 1


def test_another_activation_between_steps_is_used():
    made = engine()
    made.step()
    made._model[1] = nn.ReLU()
    made.step()
    assert made.steps_spent == 2


def test_a_model_of_another_type_is_checked_before_a_step_is_paid_for():
    made = engine(optimizer=torch.optim.SGD)
    made.step()
    made._model.double()
    with pytest.raises(RuntimeError, match="same dtype"):
        made.step()
    assert made.steps_spent == 1


class Shifted(nn.Module):
    """A frozen layer and a buffer before the layer that is trained."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.layer = nn.Linear(6, 3)
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x):
        return self.layer(self.frozen(x) + self.shift)


@pytest.mark.parametrize(
    ("exchange", "name"),
    [
        (lambda m: setattr(m, "shift", torch.ones(6)), "shift"),
        (lambda m: setattr(m.frozen, "weight", frozen(torch.ones(6, 4))), "frozen.weight"),
        (lambda m: setattr(m, "frozen", nn.Linear(4, 6).requires_grad_(False)), "frozen"),
    ],
)
def test_what_was_recorded_must_stay(exchange, name):
    """A graph goes on with the tensors that it was recorded with."""
    made = engine(model=Shifted(), options={"recorded": True})
    made.step()
    exchange(made._model)
    with pytest.raises(UserError, match=f"'{name}' is not the one that recorded=True"):
        made.step()
    assert made.steps_spent == 1
    made.check()
    made.step()


def test_a_recorded_step_sees_what_was_changed_in_place(known_key):
    ends = []
    for recorded in (False, True):
        torch.manual_seed(0)
        made = engine(model=Shifted(), options={"recorded": recorded})
        made.step()
        made._model.shift.copy_(torch.ones(6))
        made._model.frozen.weight.data = torch.ones(6, 4)
        made.step()
        ends.append(weights(made))
    assert torch.equal(*ends)


def frozen(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def test_made_up_examples_are_those_that_were_given_when_the_mode_changes():
    seen = []

    def noted(model, x, y):
        seen.append(x)
        return losses(model, x, y)

    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
    made = PrivateEngine(model, DPSGD(model.parameters(), lr=0.1), noted, examples(), privacy())
    given = torch.full((2, 4), 3.0)
    given[1] += 1
    made.check(given, torch.tensor([0, 1]))
    made.step()
    model.eval()
    seen.clear()
    made.step()
    assert torch.equal(seen[0], given)
