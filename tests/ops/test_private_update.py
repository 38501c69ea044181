import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.ops import DeviceRule, UpdateRule, UpdateState, reference

KEY = torch.arange(32, dtype=torch.uint8)
RULE = UpdateRule(
    noise_std=2.0**31,
    scale=2.0**-33,
    keep=0.999,
    momentum_decay=0.9,
    gradient_weight=0.1,
    second_decay=0.999,
    second_correction=1.7,
    epsilon=1e-8,
    step_size=1e-3,
    average_weight=0.01,
)


def _case(count, adam=True, averaged=True, seed=0):
    random = torch.Generator().manual_seed(seed)
    total = torch.randint(-(2**36), 2**36, (count,), generator=random)
    values = torch.randn(4, count, generator=random)
    state = UpdateState(
        values[0].clone(),
        values[1].clone(),
        values[2].square() if adam else None,
        values[3].clone() if averaged else None,
    )
    return total, torch.tensor([5 << 56 | 3]), state


def _tensors(state):
    return [
        tensor
        for tensor in (state.parameters, state.momentum, state.second_moment, state.average)
        if tensor is not None
    ]


def _by_reference(total, step, state, first_index):
    there = RULE.on(torch.device("cpu"))
    numbers = there.numbers, there.noise_std, there.scale
    reference.private_update(
        total,
        KEY,
        step,
        first_index,
        state.parameters,
        state.momentum,
        state.second_moment,
        state.average,
        *numbers,
    )


@given(
    count=st.one_of(st.integers(0, 400), st.just(20_001)),
    first_index=st.one_of(st.integers(0, 300), st.integers(0, 2**50)),
    adam=st.booleans(),
    averaged=st.booleans(),
)
@settings(max_examples=60)
def test_it_is_the_reference_to_the_last_bit(count, first_index, adam, averaged):
    total, step, state = _case(count, adam, averaged)
    _, reference_step, expected = _case(count, adam, averaged)
    ops.private_update(total, KEY, step, state, RULE, first_index)
    _by_reference(total, reference_step, expected, first_index)
    assert torch.equal(step, reference_step)
    for found, wanted in zip(_tensors(state), _tensors(expected), strict=True):
        assert torch.equal(found, wanted)


def test_it_is_the_formula_in_float64():
    total, step, state = _case(5000)
    noise = ops.gaussian_integers(KEY, int(step), 0, 5000, RULE.noise_std)
    parameters, momentum, second, average = (tensor.double() for tensor in _tensors(state))
    gradient = (total + noise).double() * RULE.scale
    momentum = 0.9 * momentum + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    parameters = 0.999 * parameters - 1e-3 * momentum / (1.7 * second.sqrt() + 1e-8)
    average = average + 0.01 * (parameters - average)
    ops.private_update(total, KEY, step, state, RULE)
    for found, exact in zip(_tensors(state), (parameters, momentum, second, average), strict=True):
        # Five roundings to float32 an element.
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_the_noise_is_what_gaussian_integers_draws():
    """Without momentum and with scale 1, the step is the released sum itself."""
    rule = UpdateRule(noise_std=1e5, scale=1.0, step_size=1.0)
    state = UpdateState(torch.zeros(1000), torch.zeros(1000))
    step = torch.tensor([7])
    total = torch.arange(1000)
    for count in range(3):
        before = state.parameters.clone()
        ops.private_update(total, KEY, step, state, rule, first_index=50)
        noise = ops.gaussian_integers(KEY, 7 + count, 50, 1000, 1e5)
        assert torch.equal(state.momentum, (total + noise).float())
        assert torch.equal(state.parameters, before - state.momentum)
    assert int(step) == 10


def test_numbers_in_memory_are_read_when_it_runs():
    total, step, state = _case(1000)
    _, other_step, expected = _case(1000)
    there = replace(RULE, keep=0.5, step_size=7.0).on(torch.device("cpu"))
    there.numbers.copy_(RULE.on(torch.device("cpu")).numbers)
    ops.private_update(total, KEY, step, state, there)
    ops.private_update(total, KEY, other_step, expected, RULE)
    for found, wanted in zip(_tensors(state), _tensors(expected), strict=True):
        assert torch.equal(found, wanted)


def test_shards_are_the_whole():
    total, step, whole = _case(1000)
    _, _, sharded = _case(1000)
    ops.private_update(total, KEY, step, whole, RULE)
    for begin, end in ((0, 333), (333, 1000)):
        part = UpdateState(*(tensor[begin:end] for tensor in _tensors(sharded)))
        ops.private_update(total[begin:end], KEY, torch.tensor([5 << 56 | 3]), part, RULE, begin)
    for found, wanted in zip(_tensors(sharded), _tensors(whole), strict=True):
        assert torch.equal(found, wanted)


def test_an_update_that_was_cut_off_has_counted():
    """Else the next one would draw the same noise, with parameters that moved by it already."""
    total, step, state = _case(5)
    no_average = torch.zeros(4)
    with pytest.raises(RuntimeError, match="size"):
        _by_reference(total, step, replace(state, average=no_average), 0)
    assert not torch.equal(state.parameters, _case(5)[2].parameters)
    assert int(step) == 5 << 56 | 4


def test_threads_change_nothing():
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        total, step, state = _case(50_001)
        ops.private_update(total, KEY, step, state, RULE)
        results.append(_tensors(state))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"total": torch.zeros(5)}, TypeError, "clipped_sum: expected torch.int64"),
        ({"total": torch.zeros(4, dtype=torch.int64)}, ValueError, "clipped_sum: expected a vect"),
        ({"step": torch.tensor(3)}, ValueError, "step"),
        ({"key": KEY[:3]}, TypeError, "key"),
        ({"first_index": -1}, ValueError, "first_index"),
        ({"rule": DeviceRule(1.0, 1.0, torch.zeros(7).double())}, ValueError, "rule.numbers: .*8"),
        ({"rule": DeviceRule(1.0, 1.0, torch.zeros(8))}, TypeError, "rule.numbers: .*float64"),
        ({"rule": UpdateRule(noise_std=math.nan, scale=1.0)}, ValueError, "noise_std"),
        ({"state": UpdateState(torch.zeros(5), torch.zeros(5).double())}, TypeError, "momentum"),
        (
            {"state": UpdateState(torch.zeros(5), torch.zeros(5), None, torch.zeros(10)[::2])},
            ValueError,
            "average",
        ),
        (
            {"state": UpdateState(torch.zeros(5), torch.zeros(5), torch.zeros(5, device="meta"))},
            ValueError,
            "second_moment",
        ),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(change, error, match):
    total, step, state = _case(5)
    arguments = {
        "total": total,
        "key": KEY,
        "step": step,
        "state": state,
        "rule": RULE,
        "first_index": 0,
    } | change
    with pytest.raises(error, match=match):
        ops.private_update(*arguments.values())
    assert int(step) == 5 << 56 | 3
    for found, wanted in zip(_tensors(state), _tensors(_case(5)[2]), strict=True):
        assert torch.equal(found, wanted)


def test_the_registered_operator_is_sound():
    for adam in (True, False):
        total, step, state = _case(300, adam)
        tensors = (state.parameters, state.momentum, state.second_moment, state.average)
        there = RULE.on(torch.device("cpu"))
        numbers = there.numbers, there.noise_std, there.scale
        torch.library.opcheck(
            torch.ops.privimage.private_update, (total, KEY, step, 0, *tensors, *numbers)
        )


def test_it_compiles_without_a_graph_break():
    total, step, state = _case(300)
    _, eager_step, expected = _case(300)
    compiled = torch.compile(ops.private_update, fullgraph=True, backend="aot_eager")
    compiled(total, KEY, step, state, RULE)
    ops.private_update(total, KEY, eager_step, expected, RULE)
    assert torch.equal(step, eager_step)
    for found, wanted in zip(_tensors(state), _tensors(expected), strict=True):
        assert torch.equal(found, wanted)
