"""Checks that a system private by person passes, through the entry points of the production code.

As in `privacy_checks`: each takes a folder and raises AssertionError where a promise is broken.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from privimage.data import ImageSet, ImageShape, PersonKey, load_sensitive
from privimage.dp import GRID_UNITS, Ledger, Plan, SubsampledGaussian
from privimage.errors import UserError
from privimage.progress import Reporter
from privimage.selftest import probe
from privimage.selftest.checks import ALPHA
from privimage.semantics import query
from privimage.synthesis import finetune, finetuner
from privimage.threads import Workers

WORKERS = Workers(1)
SIZES = (1, 2, 5, 1, 3, 9)


def crowd(*sizes):
    """Persons with so many images each, which lie among those of the others."""
    persons = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(persons), generator=torch.Generator().manual_seed(1))
    some = probe.images(len(persons))
    return ImageSet(some.images, some.labels, probe.NAMES, persons[order])


def without(persons, leaving):
    """The set without all images of the last person, `leaving`."""
    kept = persons.persons != leaving
    return ImageSet(
        persons.images[kept], persons.labels[kept], persons.names, persons.persons[kept]
    )


def clipped_sum_of(sensitive, *chosen):
    """What a step's clipped sum would be if just these persons were sampled, with a known key."""
    sums, sample = [], finetuner.poisson_sample
    finetuner.poisson_sample = lambda *_: torch.tensor(chosen, dtype=torch.int64)
    try:
        with probe.known_key():
            system = probe.tuner(sensitive)
            system._plan = dataclasses.replace(system._plan, examples=4)
            system._optimizer.step = sums.append
            system.step()
    finally:
        finetuner.poisson_sample = sample
    return sums[0]


def check_a_person_s_step(folder):
    """With all randomness equal, one person more moves the released gradient by at most C / B."""
    with probe.known_key():
        for size in (1, 2, 9):
            more = crowd(*SIZES, size)
            sets = more, without(more, len(SIZES))
            with_person, others = (
                probe.gradients(probe.tuner(one), 1, probe.PUBLIC_SIZE) for one in sets
            )
            assert 0.99 < (with_person - others).norm() <= 1 + 1e-3, size


def check_a_person_s_contribution(folder):
    """It is a function of key, step and person: no bit of it changes with who else is there."""
    whole = crowd(*SIZES)
    alone = [clipped_sum_of(whole, person) for person in range(len(SIZES))]
    assert all(part.double().norm() <= GRID_UNITS for part in alone)
    for several in ((0, 1, 2, 3, 4, 5), (1, 3, 4), (2, 5)):
        together = sum(alone[person] for person in several)
        assert torch.equal(clipped_sum_of(whole, *several), together)
    for person in (1, 2, 4):
        assert torch.equal(clipped_sum_of(without(whole, 5), person), alone[person])


def check_person_sampler(folder):
    """A person enters a step with the declared probability, however many images it has."""
    sizes, rate, steps = [1, 2, 5, 12] * 3, 0.05, 3000
    system, rows = probe.tuner(crowd(*sizes), sample_rate=rate), []

    def watched(piece):
        rows[-1][piece[0]] += 1
        return torch.zeros(system._gradients.size, dtype=torch.int64)

    system._clipped_sum, system._optimizer.step = watched, lambda total: None
    for _ in range(steps):
        rows.append(torch.zeros(len(sizes)))
        system.step()
    seen = torch.stack(rows)
    assert seen.max() == 1
    chosen = seen.sum(0).numpy()
    assert min(stats.binomtest(int(n), steps, rate).pvalue for n in chosen) > ALPHA / len(sizes)
    batches = seen.sum(1).int().clamp(max=4).bincount(minlength=5).numpy()
    chances = stats.binom.pmf(range(5), len(sizes), rate)
    chances[4] += stats.binom.sf(4, len(sizes), rate)
    assert stats.chisquare(batches, chances * steps).pvalue > ALPHA


def ask(folder, sensitive, votes):
    """A noisy histogram in grid steps, and a ledger by person of its own."""
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    with Ledger(path, sensitive.unit) as ledger:
        ledger.set_plan(Plan(10.0, 1e-3, 3.0, SubsampledGaussian(0.1, 5.0, 10)))
        settings = query.QuerySettings(votes_per_image=votes)
        # Images look alike in their corner: the votes of a person go to few classes, in all rows.
        noisy = query.noisy_histogram(
            ledger, sensitive, lambda pixels: pixels.flatten(1)[:, :6] / 64.0, 6, settings
        )
    return noisy * query.VOTE


def check_a_person_s_votes(folder):
    """All votes of a person together move the histogram by at most √k1, to the last grid step."""
    with probe.known_key():
        for size, votes in ((1, 1), (1, 2), (7, 1), (30, 3)):
            more = crowd(*SIZES, size)
            moved = ask(folder, more, votes) - ask(folder, without(more, len(SIZES)), votes)
            length = math.isqrt(sum(int(cell) ** 2 for cell in moved.flatten()))
            allowed = math.isqrt(votes * query.VOTE**2)
            assert 0.999 * allowed < length <= allowed, (size, votes)


def check_nameless_images(folder):
    """An image that names nobody is a person of its own."""
    pixels = np.zeros((5, 4, 4), np.uint8)
    np.savez(folder / "x.npz", images=pixels, patient=["a", "", "a", " ", ""])
    key, shape = PersonKey(column="patient"), ImageShape(4, 1)
    found = load_sensitive(str(folder / "x.npz"), shape, None, person=key)
    assert [one.tolist() for one in found.by_unit()] == [[0, 2], [1], [3], [4]]


def check_unit(folder):
    """A ledger by image pays for nothing by person."""
    settings = finetune.FinetuneSettings(sample_rate=0.5, steps=2, draws=1)
    with Ledger(folder / "by-image.jsonl") as ledger:
        ledger.set_plan(Plan(10.0, 1e-3, 3.0, SubsampledGaussian(0.5, 5.0, 2)))
        with pytest.raises(UserError, match="by person"):
            query.noisy_histogram(
                ledger, crowd(1, 2), lambda pixels: torch.zeros(3, 6), 6, query.QuerySettings()
            )
        with pytest.raises(UserError, match="by person"):
            finetune.finetune(
                *(
                    ledger,
                    crowd(1, 2),
                    probe.Network(),
                    settings,
                    probe.PUBLIC_SIZE,
                    folder / "c",
                    WORKERS,
                ),
                Reporter(quiet=True),
            )
        assert ledger.spent() == []
