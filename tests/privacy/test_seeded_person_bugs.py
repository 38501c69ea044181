"""Bugs in the privacy of persons, planted into the production code: each must be found."""

import person_checks as checks
import pytest
import torch

from privimage.data import ImageSet, load, persons
from privimage.dp import Ledger
from privimage.errors import UserError
from privimage.semantics import query
from privimage.synthesis import finetuner
from privimage.synthesis.finetuner import Finetuner

CHECKS = [value for name, value in vars(checks).items() if name.startswith("check_")]

_step, _clipped = Finetuner.step, Finetuner._clipped_sum
_sample, _round, _children = finetuner.poisson_sample, finetuner._going_round, finetuner.children
_count = query.count_votes


def _every_image_for_itself(sensitive):
    return tuple(torch.arange(len(sensitive)).split(1))


def _each_image_clipped_and_added(tuner, piece):
    whole, total = tuner._units, 0
    for person, word in zip(*piece, strict=True):
        for image in whole[person]:
            tuner._units = (image[None],)
            total = total + _clipped(tuner, (torch.tensor([0]), word[None]))
    tuner._units = whole
    return total


def _sampled_by_image(tuner):
    owners = tuner._sensitive.units

    def sample(_, threshold, stream):
        return owners[_sample(len(owners), threshold, stream)].unique()

    finetuner.poisson_sample = sample
    try:
        _step(tuner)
    finally:
        finetuner.poisson_sample = _sample


def _chosen_by_place_in_the_set(units, draws, words):
    return _round(units, draws, torch.stack([images[0] for images in units]))


def _chosen_by_place_in_the_batch(units, draws, words):
    return _round(units, draws, torch.arange(len(units)))


def _drawn_by_place_in_the_batch(words, count):
    return _children(torch.arange(len(words)), count)


def _votes_by_image(votes, labels, units, shape):
    return _count(votes, labels, torch.arange(len(units)), shape)


def _votes_clipped_in_each_row(votes, labels, units, shape):
    _, alone = (units * shape[0] + labels).unique(return_inverse=True)
    return _count(votes, labels, alone, shape)


def _nameless_together(names):
    return persons.numbered(name.strip() or "nobody" for name in names)


# Name: where the bug is planted, and the check that must find it.
BUGS = {
    "persons ignored": (ImageSet, "by_unit", _every_image_for_itself, checks.check_a_person_s_step),
    "each image clipped and added": (
        *(Finetuner, "_clipped_sum", _each_image_clipped_and_added),
        checks.check_a_person_s_step,
    ),
    "sampled by image": (Finetuner, "step", _sampled_by_image, checks.check_person_sampler),
    "images chosen by place in the set": (
        *(finetuner, "_going_round", _chosen_by_place_in_the_set),
        checks.check_a_person_s_contribution,
    ),
    "images chosen by place in the batch": (
        *(finetuner, "_going_round", _chosen_by_place_in_the_batch),
        checks.check_a_person_s_contribution,
    ),
    "numbers drawn by place in the batch": (
        *(finetuner, "children", _drawn_by_place_in_the_batch),
        checks.check_a_person_s_contribution,
    ),
    "votes by image": (query, "count_votes", _votes_by_image, checks.check_a_person_s_votes),
    "votes clipped in each row": (
        *(query, "count_votes", _votes_clipped_in_each_row),
        checks.check_a_person_s_votes,
    ),
    "votes rounded beyond the norm": (
        *(query, "_MARGIN", 1 + 2**-18),
        checks.check_a_person_s_votes,
    ),
    "nameless images are one person": (
        *(load, "numbered", _nameless_together),
        checks.check_nameless_images,
    ),
    "a ledger by image pays for persons": (
        *(Ledger, "check_unit", lambda ledger, unit: None),
        checks.check_unit,
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_as_it_is_passes(check, tmp_path):
    check(tmp_path)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name, tmp_path, monkeypatch):
    place, attribute, bug, check = BUGS[name]
    monkeypatch.setattr(place, attribute, bug)
    with pytest.raises((AssertionError, UserError, pytest.fail.Exception)):
        check(tmp_path)


def test_every_check_finds_something():
    assert {check for *_, check in BUGS.values()} == set(CHECKS)
