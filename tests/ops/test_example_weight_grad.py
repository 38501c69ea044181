"""Per-example weight gradients: kernel, reference and float64 autograd, one example at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from privimage import ops
from privimage.ops import reference

# Sums of at most some thousand products in another order, relative to the largest one.
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-12}

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
padding = st.tuples(st.integers(0, 3), st.integers(0, 3))
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


def autograd(x, grad, shape, geometry):
    """Weight [examples, …] and bias [examples, outputs] by float64 autograd of each example."""
    weights, biases = [], []
    draws = len(x) // shape[0] if shape[0] else 0
    for first in range(0, len(x), max(draws, 1)):
        weight = torch.zeros(shape[1:], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(shape[1], dtype=torch.float64, requires_grad=True)
        rows = slice(first, first + draws)
        output = F.conv2d(x[rows].double(), weight, bias, *geometry)
        gradients = torch.autograd.grad(output, [weight, bias], grad[rows].double())
        weights.append(gradients[0])
        biases.append(gradients[1])
    return torch.stack(weights), torch.stack(biases)


def assert_close(found, expected):
    scale = expected.abs().max().clamp(min=1)
    assert (found - expected).abs().max() <= CLOSE[found.dtype] * scale


def run(function, x, grad, shape, geometry, accumulate=False):
    """Into rows that lie apart and hold NaN, or 1 where the result is added to it."""
    outputs, size = shape[1], torch.Size(shape[1:]).numel()
    arena = torch.full((shape[0], size + outputs + 3), 1.0 if accumulate else float("nan"))
    arena = arena.to(x.dtype)
    weight, bias = arena[:, 1 : 1 + size].view(shape), arena[:, 2 + size : 2 + size + outputs]
    function(x, grad, weight, bias, accumulate)
    untouched = arena[:, [0, 1 + size, -1]]
    assert untouched.eq(1).all() if accumulate else untouched.isnan().all()
    return (weight - 1, bias - 1) if accumulate else (weight, bias)


def operator(geometry):
    return lambda x, grad, weight, bias, accumulate: ops.example_weight_grad(
        x, grad, weight, bias, geometry, accumulate
    )


def plain(geometry):
    return lambda x, grad, weight, bias, accumulate: reference.example_weight_grad(
        x, grad, weight, bias, *geometry, accumulate
    )


@given(
    data=st.data(),
    examples=st.integers(1, 3),
    draws=st.integers(1, 3),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 37), st.integers(1, 37)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_kernel_reference_and_autograd_agree(data, examples, draws, groups, channels, size, dtype):
    inputs, outputs = channels
    geometry = (data.draw(pair), data.draw(padding), data.draw(pair), groups)
    taps = data.draw(pair, "taps")
    axes = zip(size, taps, *geometry[:3], strict=True)
    pixels = [(n + 2 * p - d * (t - 1) - 1) // s + 1 for n, t, s, p, d in axes]
    if min(pixels) < 1:
        return
    shape = (examples, groups * outputs, inputs, *taps)
    x = torch.randn(examples * draws, groups * inputs, *size, dtype=dtype)
    grad = torch.randn(examples * draws, groups * outputs, *pixels, dtype=dtype)
    x = x.contiguous(memory_format=data.draw(formats, "x"))
    grad = grad.contiguous(memory_format=data.draw(formats, "grad"))
    accumulate = data.draw(st.booleans(), "accumulate")
    expected = autograd(x, grad, shape, geometry)
    for function in (operator, plain):
        found = run(function(geometry), x, grad, shape, geometry, accumulate)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize(
    ("shape", "size", "draws"),
    [
        # What the networks here are made of, in whole vectors, with bands and blocks in parts.
        ((3, 32, 32, 3, 3), (32, 32), 2),
        ((2, 64, 96, 3, 3), (16, 16), 1),
        ((2, 3, 32, 3, 3), (28, 28), 1),
        ((2, 32, 3, 3, 3), (28, 28), 1),
        ((4, 64, 64, 1, 1), (8, 8), 3),
        ((2, 16, 16, 3, 3), (4, 4), 8),
        # More than the second-level cache holds.
        ((1, 64, 64, 3, 3), (32, 32), 4),
    ],
)
def test_layers_of_real_networks(shape, size, draws):
    geometry = ((1, 1), (shape[3] // 2,) * 2, (1, 1), 1)
    x = torch.randn(shape[0] * draws, shape[2], *size)
    grad = torch.randn(shape[0] * draws, shape[1], *size)
    found = run(operator(geometry), x, grad, shape, geometry)
    for one, other in zip(found, autograd(x, grad, shape, geometry), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3, 3), (2, 0, 3, 3, 3), (2, 4, 0, 3, 3)])
@pytest.mark.parametrize("function", [operator, plain])
def test_nothing_to_do(shape, function):
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    x, grad = torch.ones(shape[0] * 2, shape[2], 5, 5), torch.ones(shape[0] * 2, shape[1], 5, 5)
    weight, bias = run(function(geometry), x, grad, shape, geometry)
    assert weight.numel() == 0
    assert bias.shape == shape[:2]
    assert bias.eq(50).all()


def test_threads_share_the_work_of_layers_that_differ():
    geometry, widths = ((1, 1), (0, 0), (1, 1), 1), [(64, 200), (200, 64), (40, 40), (96, 130)]
    x = [torch.randn(4, inputs, 8, 8) for inputs, _ in widths]
    grad = [torch.randn(4, outputs, 8, 8) for _, outputs in widths]
    alone = [
        run(operator(geometry), one, other, (4, outputs, inputs, 1, 1), geometry)
        for one, other, (inputs, outputs) in zip(x, grad, widths, strict=True)
    ]
    threads, norms = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weight = [torch.full_like(rows, float("nan")) for rows, _ in alone]
            bias = [torch.full_like(rows, float("nan")) for _, rows in alone]
            norms.append(ops.measured_weight_grads(x, grad, weight, bias, geometry))
            for found, expected in zip(zip(weight, bias, strict=True), alone, strict=True):
                assert all(map(torch.equal, found, expected))
    finally:
        torch.set_num_threads(threads)
    squares = sum(rows.double().flatten(1).square().sum(1) for pair in alone for rows in pair)
    torch.testing.assert_close(norms[0], squares, rtol=1e-9, atol=0)
    assert all(torch.equal(norms[0], other) for other in norms)


@pytest.mark.parametrize("taps", [1, 3])
def test_an_example_is_bitwise_the_same_whatever_its_neighbours_and_threads(taps):
    geometry = ((1, 1), (taps // 2,) * 2, (1, 1), 1)
    shape = (5, 40, 32, taps, taps)
    x, grad = torch.randn(10, 32, 16, 16), torch.randn(10, 40, 16, 16)
    expected = run(operator(geometry), x, grad, shape, geometry)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for hostile in (0.0, float("inf"), float("nan")):
                others = x.clone()
                others[4:6] = hostile
                found = run(operator(geometry), others, grad, shape, geometry)
                for one, other in zip(found, expected, strict=True):
                    kept = [0, 1, 3, 4]
                    assert torch.equal(one[kept], other[kept])
                assert not torch.equal(found[0][2], expected[0][2])
    finally:
        torch.set_num_threads(threads)


GOOD = {
    "x": torch.ones(4, 6, 5, 5),
    "grad": torch.ones(4, 4, 5, 5),
    "weight": torch.ones(2, 4, 3, 3, 3),
    "bias": torch.ones(2, 4),
    "geometry": ((1, 1), (1, 1), (1, 1), 2),
}


@pytest.mark.parametrize(
    ("name", "value", "error", "problem"),
    [
        ("x", torch.ones(4, 6, 5, 5, dtype=torch.int64), TypeError, "x: expected a float32"),
        ("grad", torch.ones(4, 4, 5, 5).double(), TypeError, "grad: .* got torch.float64"),
        ("weight", torch.ones(2, 4, 3, 3, 3, device="meta"), TypeError, "weight: .* on meta"),
        ("x", torch.ones(4, 6, 5), ValueError, "x, weight: expected"),
        ("x", torch.ones(4, 5, 5, 5), ValueError, "groups: 2 do not fit 5 inputs"),
        ("x", torch.ones(4, 6, 2, 0), ValueError, r"x: images \[2, 0\] are smaller"),
        ("x", torch.ones(5, 6, 5, 5), ValueError, "x: 5 rows do not fit 2 examples"),
        ("weight", torch.ones(0, 4, 3, 3, 3), ValueError, "x: 4 rows do not fit 0 examples"),
        ("grad", torch.ones(4, 4, 5, 4), ValueError, r"grad: expected \[4, 4, 5, 5\]"),
        ("bias", torch.ones(2, 5), ValueError, r"bias: expected \[2, 4\]"),
        ("weight", torch.ones(2, 4, 3, 3, 3).mT, ValueError, "weight: .* in one piece"),
        ("geometry", ((1, 0), (1, 1), (1, 1), 2), ValueError, "geometry: expected two positive"),
        ("geometry", ((1, 1), (-1, 1), (1, 1), 2), ValueError, "geometry: expected padding"),
        ("geometry", ((1, 1), (1, 1), (1, 1), 0), ValueError, "groups: 0 do not fit"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(name, value, error, problem):
    ops.example_weight_grad(**GOOD)
    with pytest.raises(error, match=problem):
        ops.example_weight_grad(**(GOOD | {name: value}))


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.ones(4, 6, 5)),
        ("x", torch.ones(4, 5, 5, 5)),
        ("x", torch.ones(4, 6, 5, 5, dtype=torch.int32)),
        ("grad", torch.ones(4, 4, 5, 6)),
        ("grad", torch.ones(3, 4, 5, 5)),
        ("weight", torch.ones(1, 4, 3, 3, 3).expand(2, -1, -1, -1, -1)),
        ("weight", torch.ones(2, 3, 4, 3, 3).transpose(1, 2)),
        ("bias", torch.ones(3, 4)),
        ("geometry", ((1,), (1, 1), (1, 1), 2)),
        ("geometry", ((1, 1), (1, 1), (0, 1), 2)),
    ],
)
def test_the_native_code_guards_itself(name, value):
    given = GOOD | {name: value}
    geometry = given.pop("geometry")
    with pytest.raises(RuntimeError, match=r"expected|do not fit|channels"):
        torch.ops.privimage.example_weight_grad(*given.values(), *geometry, False)


@pytest.mark.parametrize("bias", [None, GOOD["bias"]])
def test_opcheck(bias):
    given = GOOD["x"], GOOD["grad"], GOOD["weight"].clone(), bias
    torch.library.opcheck(
        torch.ops.privimage.example_weight_grad, (*given, [1, 1], [1, 1], [1, 1], 2, False)
    )


def test_it_compiles_as_one_graph():
    def step(x, grad, weight):
        ops.example_weight_grad(x * 2, grad, weight, None, GOOD["geometry"])
        return weight.square().sum()

    x, grad = torch.randn(4, 6, 5, 5), torch.randn(4, 4, 5, 5)
    expected = step(x, grad, GOOD["weight"].clone())
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, grad, GOOD["weight"].clone()), expected)
