import dataclasses
import math
import weakref

import pytest
import scipy.stats
import torch
from truth import one_at_a_time

from privimage.data import ImageSet
from privimage.diffusion.unet import UNet, UNetShape
from privimage.dp import GRID_UNITS, Ledger, Plan, SubsampledGaussian, record, usual_memory
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError
from privimage.ops._library import is_native
from privimage.progress import Reporter, Stopped
from privimage.synthesis import finetuner
from privimage.synthesis.finetune import finetune
from privimage.synthesis.finetuner import Finetuner, FinetuneSettings, _going_round
from privimage.threads import Workers

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)
SHAPE = UNetShape(image_size=8, image_channels=1, channels=8, multipliers=(1,), classes=3)


@pytest.fixture(scope="module")
def workers():
    pool = Workers(2)
    yield pool
    pool.close()


def _images(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=random)
    return ImageSet(images, labels, ("a", "b", "c"))


def _crowd(*sizes):
    """Persons with so many images each, which lie among those of the others."""
    persons = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = _images(len(persons))
    order = torch.randperm(len(persons), generator=torch.Generator().manual_seed(1))
    return ImageSet(images.images, images.labels, images.names, persons[order])


def _without(crowd, person):
    """The set of all other persons; the numbers of those before `person` stay."""
    kept = crowd.persons != person
    return ImageSet(crowd.images[kept], crowd.labels[kept], crowd.names, crowd.persons[kept])


def _network():
    torch.manual_seed(0)
    return UNet(SHAPE)


def _settings(**changes):
    defaults = {"sample_rate": 0.5, "steps": 6, "draws": 2, "reservation": 2}
    return FinetuneSettings(**{**defaults, **changes})


def _ledger(path, settings, epsilon=math.inf, noise_multiplier=0.0):
    steps = SubsampledGaussian(settings.sample_rate, noise_multiplier, settings.steps)
    ledger = Ledger(path / "ledger.jsonl")
    ledger.set_plan(Plan(epsilon, 1e-3, None, steps))
    return ledger


def _sums_of(sensitive, workers, monkeypatch, settings, steps=1, choice="keep"):
    """The clipped sums of the first steps with the test key: every draw is known."""
    monkeypatch.setenv(TEST_KEY, "any")
    tuner = Finetuner(sensitive, _network(), settings, 0.0, 10, workers)
    assert not tuner.is_secret
    tuner._plan = dataclasses.replace(tuner._plan, examples=4).choosing("", choice)
    sums = []
    monkeypatch.setattr(tuner._optimizer, "step", sums.append)
    for _ in range(steps):
        tuner.step()
    return sums


# Micro-batches of 4: the image more shifts or splits them, for the real code as it is.
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_one_image_moves_a_step_by_at_most_the_clip(workers, monkeypatch, rate):
    settings = _settings(sample_rate=rate, max_grad_norm=0.01, label_dropout=0.5)
    images = _images(9)
    fewer = ImageSet(images.images[:-1], images.labels[:-1], images.names)
    with_image = _sums_of(images, workers, monkeypatch, settings, steps=8)
    without = _sums_of(fewer, workers, monkeypatch, settings, steps=8)
    changes = [
        math.sqrt(sum(int(value) ** 2 for value in one - other))
        for one, other in zip(with_image, without, strict=True)
    ]
    # The clip is far below the gradient, so the image moves the sum by nearly all of it.
    assert all(change <= GRID_UNITS for change in changes)
    moved = [change for change in changes if change]
    assert all(change > 0.99 * GRID_UNITS for change in moved)
    assert len(moved) == 8 if rate == 1.0 else 0 < len(moved) < 8


# Persons with one image, as many as draws, and many; another micro-batch for each number of them.
@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_one_person_moves_a_step_by_at_most_the_clip(workers, monkeypatch, rate, size):
    settings = _settings(sample_rate=rate, max_grad_norm=0.01, label_dropout=0.5)
    crowd = _crowd(1, 2, 3, 1, 9, 1, 2, 1, size)
    with_person = _sums_of(crowd, workers, monkeypatch, settings, steps=8)
    without = _sums_of(_without(crowd, 8), workers, monkeypatch, settings, steps=8)
    changes = [
        math.sqrt(sum(int(value) ** 2 for value in one - other))
        for one, other in zip(with_person, without, strict=True)
    ]
    assert all(change <= GRID_UNITS for change in changes)
    moved = [change for change in changes if change]
    assert all(change > 0.99 * GRID_UNITS for change in moved)
    assert len(moved) == 8 if rate == 1.0 else 0 < len(moved) < 8


def test_a_step_is_the_sum_of_what_each_person_gives_alone(workers, monkeypatch):
    """Whoever else was sampled, and however many images they have, changes no bit of it."""
    settings, crowd = _settings(), _crowd(1, 2, 3, 1, 9, 1, 23)

    def sum_of(*persons, images=crowd):
        monkeypatch.setattr(finetuner, "poisson_sample", lambda *_: torch.tensor(persons))
        return _sums_of(images, workers, monkeypatch, settings)[0]

    alone = [sum_of(person) for person in range(7)]
    assert all(part.any() for part in alone)
    for several in ((0, 1, 2, 3, 4, 5, 6), (1, 3, 4, 6), (2, 6)):
        assert torch.equal(sum_of(*several), sum(alone[person] for person in several))
    # Images move up when others before them leave.
    assert crowd.persons.tolist().index(6) < crowd.persons.tolist().index(4)
    assert torch.equal(sum_of(4, images=_without(crowd, 6)), alone[4])


def test_a_step_shows_only_the_chosen_persons_and_at_most_as_many_images_as_draws(
    workers, monkeypatch
):
    crowd = _crowd(1, 2, 3, 9)
    pixels = torch.arange(len(crowd), dtype=torch.uint8).view(-1, 1, 1, 1).expand_as(crowd.images)
    crowd = ImageSet(pixels, crowd.labels, crowd.names, crowd.persons)
    tuner = Finetuner(crowd, _network(), _settings(draws=4), 0.0, 10, workers)
    shown = []

    def clipped_sum(engine, losses, clean, *rest, plan, **options):
        shown.append(clean[:, 0, 0, 0].long().view(-1, plan.draws))
        return torch.zeros(engine.size, dtype=torch.int64)

    monkeypatch.setattr(finetuner, "planned_clipped_sum", clipped_sum)
    monkeypatch.setattr(finetuner, "poisson_sample", lambda *_: torch.tensor([1, 2, 3]))
    for _ in range(10):
        tuner.step()
    for rows in shown:
        assert rows.shape == shown[0].shape
        for row, (person, size) in zip(rows, ((1, 2), (2, 3), (3, 9)), strict=False):
            assert set(crowd.persons[row].tolist()) == {person}
            counts = row.bincount()
            assert len(row.unique()) == min(size, 4)
            assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
        assert (rows[3:] == 128).all()
    assert len({tuple(sorted(rows[2].tolist())) for rows in shown}) > 1


def test_a_ledger_by_image_pays_for_no_persons(tmp_path, workers):
    settings = _settings()
    arguments = (_network(), settings, 10, tmp_path / "c", workers, Reporter(quiet=True))
    with _ledger(tmp_path, settings) as ledger:
        with pytest.raises(UserError, match="is by image, so nothing can be spent by person"):
            finetune(ledger, _crowd(1, 2), *arguments)
        assert ledger.spent() == []


def test_an_image_s_draws_are_its_own_and_change_with_the_step(workers, monkeypatch):
    settings = _settings(sample_rate=1.0)
    image = _images(1)
    twice = ImageSet(image.images.repeat(2, 1, 1, 1), image.labels.repeat(2), image.names)
    (single, later) = _sums_of(image, workers, monkeypatch, settings, steps=2)
    assert not torch.equal(single, later)
    (both,) = _sums_of(twice, workers, monkeypatch, settings)
    assert not torch.equal(both, 2 * single)


def test_a_test_key_is_written_into_the_ledger_before_anything_else(tmp_path, workers, monkeypatch):
    monkeypatch.setenv(TEST_KEY, "any")
    settings = _settings(steps=2)
    marks = []
    monkeypatch.setattr(Ledger, "mark_not_private", lambda _, why: marks.append(why), raising=False)
    monkeypatch.setattr(Finetuner, "step", lambda _: marks.append("step"))
    with _ledger(tmp_path, settings) as ledger:
        finetune(
            ledger,
            _images(3),
            _network(),
            settings,
            10,
            tmp_path / "c",
            workers,
            Reporter(quiet=True),
        )
    assert marks == ["test key", "step", "step"]


@pytest.mark.parametrize("device", [CUDA])
def test_on_a_gpu_nobody_waits_for_the_last_micro_batch(workers, device):
    """With real draws, and the sum as the pipeline has it."""
    images, settings = _images(5), _settings(sample_rate=1.0, draws=1)
    tuner = Finetuner(images, _network().to(device), settings, 0.0, 2, workers)
    piece = torch.arange(5), tuner._draws.words(5)
    tuner._clipped_sum(piece)  # Loads kernels, and takes memory.
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = tuner._clipped_sum(piece)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.any()


def test_the_sum_is_the_same_for_any_number_of_threads(monkeypatch):
    settings = _settings(sample_rate=1.0)
    sums = []
    for threads in (1, 2):
        pool = Workers(threads)
        sums += _sums_of(_images(11), pool, monkeypatch, settings)
        pool.close()
    assert torch.equal(*sums)
    assert sums[0].any()


@pytest.mark.skipif(not is_native, reason="the native operators are not built")
def test_what_is_computed_again_is_what_was_kept(workers, monkeypatch):
    kept, again = (
        _sums_of(_images(11), workers, monkeypatch, _settings(), steps=3, choice=choice)
        for choice in ("keep", "recompute")
    )
    assert all(map(torch.equal, kept, again))
    assert kept[0].any()


def test_less_memory_means_smaller_micro_batches(workers):
    def micro_batch(**options):
        return Finetuner(_images(3), _network(), _settings(), 0.0, 500, workers, **options)._plan

    free = micro_batch()
    assert free.examples == 57  # Half of 500, and two standard deviations, in five parts.
    assert free.bytes <= usual_memory(torch.device("cpu"))
    tight = micro_batch(max_memory=free.bytes / 8)
    assert tight.examples < 16
    assert tight.bytes <= free.bytes / 8
    with pytest.raises(UserError, match="one example takes"):
        micro_batch(max_memory=1e3)


def test_sums_of_micro_batches_are_not_collected(workers, monkeypatch):
    """A step on many images takes no more memory than one on few."""
    tuner = Finetuner(_images(40), _network(), _settings(sample_rate=1.0), 0.0, 10, workers)
    tuner._plan = dataclasses.replace(tuner._plan, examples=1)
    alive, real = [], Finetuner._clipped_sum

    def watched(tuner, piece):
        total = real(tuner, piece)
        alive.append(weakref.ref(total))
        return total

    monkeypatch.setattr(Finetuner, "_clipped_sum", watched)
    most = []
    monkeypatch.setattr(tuner._workers, "map", _with_count(tuner._workers.map, alive, most))
    tuner.step()
    assert len(alive) == 40
    assert max(most) <= 4


def _with_count(run, alive, most):
    def counting(function, pieces):
        def each(piece):
            result = function(piece)
            most.append(sum(one() is not None for one in alive))
            return result

        return run(each, pieces)

    return counting


def _plain_sum(gradients, losses, *batch, plan, rule, examples):
    """`planned_clipped_sum` with ordinary autograd, an example at a time."""
    parts = one_at_a_time(gradients.model, losses, batch, plan.draws)
    return rule.sum(parts[:examples], gradients.module_sizes)


@pytest.mark.parametrize("is_noise_alone", [True, False])
def test_with_plain_autograd_epsilon_ledger_and_noise_are_the_same(
    tmp_path, workers, monkeypatch, is_noise_alone
):
    monkeypatch.setenv(TEST_KEY, "any")
    settings, sums = _settings(steps=2, max_grad_norm=0.1), []
    released, ledgers, epsilons = [], [], []
    step = finetuner.DPAdam.step

    def noted(optimizer, total):
        sums.append(total)
        step(optimizer, torch.zeros_like(total) if is_noise_alone else total)

    monkeypatch.setattr(finetuner.DPAdam, "step", noted)
    for compute in (finetuner.planned_clipped_sum, _plain_sum):
        monkeypatch.setattr(finetuner, "planned_clipped_sum", compute)
        folder = tmp_path / compute.__name__
        folder.mkdir()
        with _ledger(folder, settings, noise_multiplier=2.0) as ledger:
            run = (ledger, _images(6), _network(), settings, 10, folder / "checkpoints", workers)
            released.append(finetune(*run, Reporter(quiet=True)))
            ledgers.append((ledger.spent(), ledger.plan, ledger.not_private_because))
            epsilons.append(ledger.epsilon(1e-3))
    assert epsilons[0] == epsilons[1]
    assert ledgers[0] == ledgers[1]
    ours, plain = released
    assert ours[1] == plain[1] == settings.steps
    if is_noise_alone:
        assert torch.equal(ours[0], plain[0])
    else:
        # Float32 gradients, summed in another order; noise would move this by 2.
        for one, other in zip(sums[:2], sums[2:], strict=True):
            assert (one - other).double().norm() <= 1e-3 * GRID_UNITS
        assert one.double().norm() > 0.5 * GRID_UNITS
    changed = (ours[0] - plain[0]).norm() / ours[0].norm()
    assert changed <= 1e-3


def test_a_recorded_step_is_the_step_bit_for_bit(workers, monkeypatch):
    recorded, released = [], []
    monkeypatch.setenv(TEST_KEY, "any")
    monkeypatch.setattr(finetuner, "record", lambda *given: recorded.append(1) or record(*given))
    for worth in (1, 10**9):
        monkeypatch.setattr(finetuner, "_WORTH_RECORDING", worth)
        settings = _settings(sample_rate=0.7, label_dropout=0.5)
        tuner = Finetuner(_images(9), _network(), settings, 1.0, 10, workers)
        for _ in range(3):
            tuner.step()
        released.append(tuner.released())
    assert len(recorded) == 1
    assert torch.equal(*released)


def test_an_empty_batch_is_a_step(workers):
    tuner = Finetuner(_images(0), _network(), _settings(), 1.0, 10, workers)
    before = tuner.tensors()["parameters"].clone()
    tuner.step()
    assert not torch.equal(before, tuner.tensors()["parameters"])
    assert int(tuner.tensors()["step"]) == 1


def test_reserved_steps_cover_the_steps_taken(tmp_path, workers, monkeypatch):
    settings = _settings()
    taken = []
    with _ledger(tmp_path, settings) as ledger:

        def step(tuner):
            taken.append(1)
            assert sum(part.steps for part in ledger.spent()) >= len(taken)

        monkeypatch.setattr(Finetuner, "step", step)
        folder = tmp_path / "checkpoints"
        arguments = (_images(5), _network(), settings, 10, folder, workers, Reporter(quiet=True))
        _, steps = finetune(ledger, *arguments)
    assert (steps, len(taken)) == (6, 6)


class Crash(Exception):
    pass


def test_a_crash_costs_its_reservation_and_the_run_goes_on(tmp_path, workers, monkeypatch):
    settings = _settings(steps=20)
    folder = tmp_path / "checkpoints"

    def run(ledger):
        arguments = (_images(5), _network(), settings, 10, folder, workers, Reporter(quiet=True))
        return finetune(ledger, *arguments)

    real, taken = Finetuner.step, []

    def crashing(tuner):
        if len(taken) == 5:
            raise Crash
        taken.append(1)
        real(tuner)

    monkeypatch.setattr(Finetuner, "step", crashing)
    # σ is exactly what 20 steps at rate 1/2 may have at ε = 10 and δ = 1e-3.
    with _ledger(tmp_path, settings, 10.0, 1.5) as ledger, pytest.raises(Crash):
        run(ledger)
    monkeypatch.setattr(Finetuner, "step", real)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert sum(part.steps for part in ledger.spent()) == 6
        affordable = ledger.step_budget(100).left
        _, steps = run(ledger)
        assert steps == min(20, 4 + affordable)
        assert ledger.epsilon(1e-3).upper <= 10.0


def test_a_stop_loses_nothing(tmp_path, workers):
    settings = _settings()
    folder = tmp_path / "checkpoints"
    with _ledger(tmp_path, settings) as ledger:

        def run(reporter):
            return finetune(ledger, _images(5), _network(), settings, 10, folder, workers, reporter)

        with pytest.raises(Stopped, match="stopped after 2 of 6 steps"):
            run(Reporter(quiet=True, max_seconds=0.0))
        assert sum(part.steps for part in ledger.spent()) == 2
        _, steps = run(Reporter(quiet=True))
        assert steps == 6
        assert sum(part.steps for part in ledger.spent()) == 6


def test_checkpoints_of_another_ledger_are_refused(tmp_path, workers):
    settings = _settings()
    arguments = (_images(5), _network(), settings, 10, tmp_path / "checkpoints", workers)
    with _ledger(tmp_path, settings) as ledger, pytest.raises(Stopped):
        finetune(ledger, *arguments, Reporter(quiet=True, max_seconds=0.0))
    (tmp_path / "ledger.jsonl").unlink()
    with (
        _ledger(tmp_path, settings) as ledger,
        pytest.raises(UserError, match="older than the checkpoints"),
    ):
        finetune(ledger, *arguments, Reporter(quiet=True))


def test_a_budget_that_pays_for_no_step_is_one_clear_line(tmp_path, workers):
    settings = _settings()
    with _ledger(tmp_path, settings, 0.1, 0.5) as ledger:
        arguments = (_images(5), _network(), settings, 10, tmp_path / "c", workers)
        with pytest.raises(UserError, match="pays for no step"):
            finetune(ledger, *arguments, Reporter(quiet=True))
        assert ledger.spent() == []


def test_a_checkpoint_holds_no_secret_and_no_raw_gradient(workers):
    tuner = Finetuner(_images(5), _network(), _settings(), 1.0, 10, workers)
    tuner.step()
    assert tuner.tensors().keys() == {"parameters", "exp_avg", "exp_avg_sq", "step", "ema"}


def test_draws_go_round_a_unit_s_images_in_an_order_of_its_own():
    units = [torch.arange(start, stop) for start, stop in ((0, 1), (1, 4), (4, 9), (9, 11))]
    words = torch.arange(400)
    shown = [_going_round(units, 4, word + 1000 * torch.arange(4)).view(4, 4) for word in words]
    for one in shown:
        assert one[0].tolist() == [0, 0, 0, 0]
        assert one[1, :3].sort().values.tolist() == [1, 2, 3]
        assert one[1, 3] == one[1, 0]
        assert len(set(one[2].tolist())) == 4
        assert one[3, :2].tolist() == one[3, 2:].tolist()
    # Each of its images comes first equally often.
    firsts = torch.stack(shown)[:, 2, 0].bincount(minlength=9)[4:]
    assert scipy.stats.chisquare(firsts.numpy()).pvalue > 0.01
    assert torch.equal(
        _going_round(units[2:], 4, words[2:4]), _going_round(units, 4, words[:4])[8:]
    )
