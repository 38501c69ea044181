"""Public randomness: a seed decides it, and nothing else does."""

import torch
from torch import nn

from privimage.seeds import initialising


def test_a_network_is_what_its_seed_makes_and_others_draw_as_before():
    state = torch.get_rng_state()
    weights = []
    for seed in (1, 2, 1):
        torch.rand(seed)
        before = torch.get_rng_state()
        with torch.device("meta"), initialising(seed):
            weights.append(nn.Linear(3, 2).weight)
        assert torch.get_rng_state().equal(before)
    assert weights[0].equal(weights[2])
    assert not weights[0].equal(weights[1])
    torch.set_rng_state(state)
