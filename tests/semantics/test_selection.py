import pytest
import torch

from privimage.errors import UserError
from privimage.semantics.selection import (
    SelectionSettings,
    noise_maximum,
    select_all,
    select_semantic,
)


def _histogram(rows):
    return torch.tensor(rows)


def test_the_highest_count_goes_first_and_no_class_twice():
    # Label 0 comes first, but label 1 wants class 0 more.
    histogram = _histogram([[50, 40, 0, 0], [90, 10, 30, 0], [0, 0, 0, 0]])
    assert select_semantic(histogram, 1.0, 2, 2).label_of == {0: 1, 1: 0, 2: 1, 3: 0}


def test_the_reserved_row_chooses_nothing():
    histogram = _histogram([[0, 30, 0], [0, 0, 900]])
    assert select_semantic(histogram, 1.0, 1, 1).label_of == {1: 0}


def test_unlabelled_data_has_one_row_and_no_label():
    selection = select_semantic(_histogram([[0, 70, 60, 1]]), 1.0, 0, 2)
    assert selection.label_of == {1: 0, 2: 0}


def test_counts_within_the_noise_fall_back_to_all_classes():
    torch.manual_seed(0)
    noise = torch.round(10 * torch.randn(11, 100)).long()
    selection = select_semantic(noise, 10.0, 10, 3)
    assert selection.fell_back
    assert selection.label_of == dict.fromkeys(range(100), 10)
    loud = noise.clone()
    loud[:10, :10] += 100 * torch.eye(10, dtype=torch.int64)
    selection = select_semantic(loud, 10.0, 10, 3)
    assert not selection.fell_back
    assert [selection.label_of[label] for label in range(10)] == list(range(10))
    assert len(selection.label_of) == 30


def test_without_noise_any_vote_is_heard():
    assert not select_semantic(_histogram([[1, 0], [0, 1], [0, 0]]), 0.0, 2, 1).fell_back


def test_noise_maximum_is_exceeded_one_time_in_twenty():
    torch.manual_seed(0)
    maxima = 3.0 * torch.randn(4000, 200).max(dim=1).values
    exceeded = (maxima > noise_maximum(3.0, 200)).float().mean()
    assert 0.035 < exceeded < 0.065


def test_all_classes_go_without_a_label():
    assert select_all(3, 10).label_of == {0: 10, 1: 10, 2: 10}


def test_too_few_public_classes_are_refused():
    with pytest.raises(UserError, match="10 labels would need 30 public classes, and there are 20"):
        select_semantic(torch.zeros(11, 20, dtype=torch.int64), 1.0, 10, 3)


def test_a_mode_with_a_typo_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'semantic'"):
        SelectionSettings(mode="semantics")
