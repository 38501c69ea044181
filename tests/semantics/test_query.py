import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage.data import ImageSet
from privimage.dp import Gaussian, Ledger, Plan, SubsampledGaussian
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError
from privimage.semantics import classifier
from privimage.semantics.classifier import ClassifierSettings
from privimage.semantics.query import (
    VOTE,
    QuerySettings,
    count_votes,
    noisy_histogram,
    top_classes,
)

STEPS = SubsampledGaussian(0.2, 5.0, 10)
logits = st.lists(
    st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=6, max_size=6
).map(torch.tensor)


def _ledger(path, noise_multiplier):
    ledger = Ledger(path / "ledger.jsonl")
    ledger.set_plan(Plan(10.0, 1e-4, noise_multiplier, STEPS))
    return ledger


def _images(count):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images, torch.zeros(count, dtype=torch.int64), ("a",))


@given(row=logits, label=st.integers(0, 2), votes=st.integers(1, 6))
@settings(max_examples=200)
def test_one_image_adds_its_votes_to_one_row(row, label, votes):
    neighbours = torch.randn(5, 6)
    labels = torch.tensor([0, 1, 2, 0, 1])
    before = count_votes(top_classes(neighbours, votes), labels, torch.arange(5), (3, 6))
    more = top_classes(torch.cat([neighbours, row[None]]), votes)
    labels = torch.cat([labels, torch.tensor([label])])
    after = count_votes(more, labels, torch.arange(6), (3, 6))
    change = (after - before) / VOTE
    assert set(change[label].tolist()) <= {0, 1}
    assert int(change.abs().sum()) == int(change[label].sum()) == votes
    assert float(change.double().norm()) == pytest.approx(math.sqrt(votes))


@st.composite
def crowds(draw):
    """Votes of a few persons' images, their labels, persons and k1; the last person may be many."""
    votes = draw(st.integers(1, 4))
    sizes = [*draw(st.lists(st.integers(1, 3), max_size=4)), draw(st.integers(1, 40))]
    units = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.rand(len(units), 6, generator=random) * draw(st.sampled_from([1.0, 1e-9]))
    labels = torch.randint(0, draw(st.integers(1, 3)), (len(units),), generator=random)
    return top_classes(logits, votes), labels, units, votes


@given(crowd=crowds())
@settings(max_examples=200)
def test_one_person_moves_the_counts_by_at_most_its_sensitivity(crowd):
    votes, labels, units, k1 = crowd
    stays = units < units.max()
    after = count_votes(votes, labels, units, (3, 6))
    before = count_votes(votes[stays], labels[stays], units[stays], (3, 6))
    # In integers: no float decides whether the sensitivity holds.
    moved = sum(int(value) ** 2 for value in (after - before).flatten())
    assert moved <= k1 * VOTE**2
    # And clipping wastes nothing: a person is heard as loudly as allowed, or as said.
    cells = (labels[~stays, None] * 6 + votes[~stays]).flatten()
    said = torch.bincount(cells, minlength=18).double()
    heard = said * min(1, math.sqrt(k1) / float(said.norm()))
    change = (after - before).flatten().double() / VOTE
    assert torch.allclose(change, heard, rtol=0, atol=2 / VOTE)


def test_a_person_with_one_image_counts_as_an_image():
    votes, labels = torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([0, 1, 0])
    alone = count_votes(votes, labels, torch.arange(3), (2, 3))
    assert alone.tolist() == [[2 * VOTE, VOTE, VOTE], [0, VOTE, VOTE]]
    # The first and the last image are now one person's, with votes 2, 1, 1 of norm √6.
    together = count_votes(votes, labels, torch.tensor([1, 0, 1]), (2, 3))
    assert together[1].tolist() == alone[1].tolist()
    expected = [int(count * VOTE * math.sqrt(2 / 6)) for count in (2, 1, 1)]
    assert together[0].tolist() == expected


@pytest.mark.parametrize("network", ["cnn", "resnet9"])
def test_an_image_s_logits_are_the_same_bits_whoever_else_is_there(network):
    """Without the first image all others move up, by a place or into the batch before."""
    model = classifier.build(ClassifierSettings(network), 3, 47, 0).eval()
    random = torch.Generator().manual_seed(0)
    count = classifier.PREDICT_ROWS + 3
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=random)
    logits = classifier.predict(model, images)
    assert len(logits.unique(dim=0)) == count
    for kept in (slice(1, None), slice(None, -1), slice(-2, None), slice(0, 1)):
        assert torch.equal(classifier.predict(model, images[kept]), logits[kept])


def test_ties_and_non_numbers_go_to_the_lower_class():
    rows = torch.tensor([[0.0, 1.0001, 1.0], [math.nan, math.nan, math.nan], [0.0, math.inf, 1.0]])
    assert top_classes(rows, 2).tolist() == [[1, 2], [0, 1], [1, 2]]


def test_the_query_is_reserved_before_the_images_are_looked_at(tmp_path):
    with _ledger(tmp_path, 3.0) as ledger:

        def predict(images):
            assert ledger.spent() == [Gaussian(3.0)]
            return torch.zeros(len(images), 4)

        noisy_histogram(ledger, _images(5), predict, 4, QuerySettings())


@pytest.mark.parametrize("votes", [1, 4])
def test_noise_has_the_planned_standard_deviation(tmp_path, votes):
    with _ledger(tmp_path, 3.0) as ledger:
        histogram = noisy_histogram(
            ledger,
            _images(0),
            lambda images: torch.zeros(len(images), 20_000),
            20_000,
            QuerySettings(votes_per_image=votes),
        )
    assert histogram.shape == (2, 20_000)
    std = float(histogram.double().std())
    expected = 3.0 * math.sqrt(votes)
    assert abs(std / expected - 1) < 0.02
    assert abs(std / 3.0 - 1) > 0.02 or votes == 1


def test_two_queries_differ(tmp_path):
    with _ledger(tmp_path, 3.0) as ledger:
        first, second = (
            noisy_histogram(
                ledger, _images(1), lambda x: torch.zeros(len(x), 50), 50, QuerySettings()
            )
            for _ in range(2)
        )
        assert len(ledger.spent()) == 2
    assert not torch.equal(first, second)


def test_a_test_key_repeats_itself_and_is_written_into_the_ledger_first(tmp_path, monkeypatch):
    marks = []

    def mark(ledger, reason):
        marks.append((reason, len(ledger.spent())))

    monkeypatch.setenv(TEST_KEY, "any")
    monkeypatch.setattr(Ledger, "mark_not_private", mark, raising=False)
    with _ledger(tmp_path, 3.0) as ledger:
        first, second = (
            noisy_histogram(
                ledger, _images(1), lambda x: torch.zeros(len(x), 50), 50, QuerySettings()
            )
            for _ in range(2)
        )
    assert torch.equal(first, second)
    assert marks == [("test key", 0), ("test key", 1)]


def test_more_votes_than_classes_are_refused_before_anything_is_spent(tmp_path):
    with _ledger(tmp_path, 3.0) as ledger:
        with pytest.raises(UserError, match="only 4 classes"):
            noisy_histogram(ledger, _images(1), lambda x: x, 4, QuerySettings(votes_per_image=5))
        assert ledger.spent() == []


def test_noise_multiplier_grows_where_the_budget_is_small():
    chosen = QuerySettings(least_noise_multiplier=5.0, noise_times_epsilon=10.0)
    assert [chosen.noise_multiplier(e) for e in (10, 2, 1, 0.1)] == [5, 5, 10, 100]
    assert chosen.noise_multiplier(math.inf) == 0
