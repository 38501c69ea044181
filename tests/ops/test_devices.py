"""Every operator on every device: what the reference says in float64, the same bits every time."""

import pytest
import torch

from privimage import ops
from privimage.ops import reference

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)
DEVICES = ["cpu", CUDA]
TYPES = [pytest.param("cpu", torch.float32, id="cpu-float32")]
TYPES += [pytest.param("cuda", torch.float32, marks=CUDA.marks, id="cuda-float32")]
TYPES += [pytest.param("cuda", torch.bfloat16, marks=CUDA.marks, id="cuda-bfloat16")]
LAST = torch.channels_last

# taps, stride, padding, dilation, groups, inputs, outputs, size; the tiled kernel's and others.
# Those of 64x64 channels have more bands of pixels than there are stages to bring them into.
LAYERS = [
    (3, 1, 1, 1, 1, 32, 32, 16),
    (3, 1, 1, 1, 1, 72, 40, 7),
    (3, 2, 1, 1, 1, 16, 64, 15),
    (3, 1, 0, 1, 1, 3, 24, 9),
    (1, 1, 0, 1, 1, 64, 128, 8),
    (1, 2, 0, 1, 1, 8, 20, 11),
    (5, 1, 2, 1, 1, 4, 6, 9),
    (3, 1, 2, 2, 2, 4, 6, 9),
    (3, 1, 1, 1, 1, 64, 64, 16),
    (3, 2, 1, 1, 1, 64, 64, 17),
    (1, 1, 0, 1, 1, 64, 64, 16),
]


def _numbers(sizes):
    """As the name of a test has them."""
    return "x".join(map(str, sizes))


def _random(*shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _scaled_sum(parts, scales):
    total = torch.zeros(parts.shape[1], dtype=torch.int64)
    reference.scaled_sum(parts, scales, total, False)
    return total


def _close(found, expected, relative):
    """Within a share of the largest value; not finite at the same places, were there any."""
    found, expected = found.double().cpu(), expected.double().cpu()
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["first", "last"])
@pytest.mark.parametrize("layer", LAYERS, ids=_numbers)
@pytest.mark.parametrize(("device", "dtype"), TYPES)
def test_weight_gradients(device, dtype, layer, layout):
    taps, stride, padding, dilation, groups, inputs, outputs, size = layer
    geometry = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    pixels = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    x = _random(6, inputs, size, size, dtype=dtype).contiguous(memory_format=layout)
    grad = _random(6, outputs, pixels, pixels, dtype=dtype).contiguous(memory_format=layout)

    def run():
        rows = torch.full((3, outputs * (inputs // groups * taps**2 + 1)), 2.0, device=device)
        weight = rows[:, :-outputs].view(3, outputs, inputs // groups, taps, taps)
        there = x.to(device), grad.to(device)
        ops.example_weight_grad(*there, weight, rows[:, -outputs:], geometry, True)
        return weight, rows[:, -outputs:]

    expected = [torch.full(part.shape, 2.0, dtype=torch.float64) for part in run()]
    reference.example_weight_grad(x.double(), grad.double(), *expected, *geometry, True)
    # Tensor cores cut sums off after each 16 products: of 512, by up to 32 * 2^-23 of a sum.
    tolerance = 1e-5 if dtype == torch.bfloat16 else 3e-6
    for found, again, right in zip(run(), run(), expected, strict=True):
        assert torch.equal(found, again)
        _close(found, right, tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["first", "last"])
@pytest.mark.parametrize("layer", LAYERS, ids=_numbers)
@pytest.mark.parametrize(("device", "dtype"), TYPES[1:])
def test_rows_in_bfloat16_are_the_others_rounded(device, dtype, layer, layout):
    taps, stride, padding, dilation, groups, inputs, outputs, size = layer
    geometry = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    pixels = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    x = _random(6, inputs, size, size, dtype=dtype).contiguous(memory_format=layout)
    grad = _random(6, outputs, pixels, pixels, dtype=dtype).contiguous(memory_format=layout)

    def run(rows_dtype):
        size = outputs * (inputs // groups * taps**2 + 1)
        rows = torch.full((3, size), 2.0, device=device, dtype=rows_dtype)
        weight = rows[:, :-outputs].view(3, outputs, inputs // groups, taps, taps)
        layer = [x.to(device)], [grad.to(device)], [weight], [rows[:, -outputs:]]
        return rows, ops.measured_weight_grads(*layer, geometry)

    (wide, _), (half, squares) = run(torch.float32), run(torch.bfloat16)
    assert torch.equal(half, wide.bfloat16())
    _close(squares, half.double().square().sum(1), 1e-13)
    _close(ops.squared_norms(half), squares, 1e-13)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["first", "last"])
@pytest.mark.parametrize("layer", LAYERS, ids=_numbers)
@pytest.mark.parametrize(("device", "dtype"), TYPES)
def test_what_is_recomputed_is_what_was_kept(device, dtype, layer, layout):
    taps, stride, padding, dilation, groups, inputs, outputs, size = layer
    geometry = (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups
    pixels = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    x = _random(6, inputs, size, size, dtype=dtype).contiguous(memory_format=layout).to(device)
    grad = _random(6, outputs, pixels, pixels, dtype=dtype).contiguous(memory_format=layout)
    grad, shape = grad.to(device), (outputs, inputs // groups, taps, taps)
    for with_bias in (True, False):
        size_of_weight = torch.Size(shape).numel()
        rows = torch.empty(3, size_of_weight + outputs * with_bias, device=device)
        weight, bias = rows[:, :size_of_weight].view(3, *shape), rows[:, size_of_weight:]
        measured = ops.measured_weight_grads(
            [x], [grad], [weight], [bias] if with_bias else [], geometry
        )
        squares = ops.squared_norms(rows)
        _close(measured, squares, 1e-13)
        _close(squares, rows.double().square().sum(1), 1e-13)
        again = ops.example_weight_norms(x, grad, 3, (taps, taps), with_bias, geometry)
        _close(again, squares, 1e-13)
        scales = 2.0**30 * 0.999 / squares.sqrt()
        scales[1] = 0
        sums = [torch.full(shape, 7, device=device), torch.full((outputs,), 7, device=device)]
        for accumulate, start in ((True, 7), (False, 0)):
            given = x, grad, scales, sums[0], sums[1] if with_bias else None, geometry
            ops.recomputed_sum(*given, accumulate=accumulate)
            found = torch.cat([total.flatten() for total in sums])[: rows.shape[1]] - start
            assert torch.equal(found, ops.scaled_sum(rows, scales))
        assert torch.equal(found.cpu(), _scaled_sum(rows.cpu(), scales.cpu()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["first", "last"])
@pytest.mark.parametrize(("taps", "with_bias"), [(1, True), (1, False), (3, True)])
@pytest.mark.parametrize(("device", "dtype"), TYPES)
def test_layers_of_one_call_get_what_each_gets_alone(device, dtype, taps, with_bias, layout):
    geometry = (1, 1), (taps // 2,) * 2, (1, 1), 1
    layers = [(2, 64, 64, 8), (2, 64, 24, 8), (1, 8, 70, 5), (3, 130, 16, 4), (2, 16, 64, 6)]
    x, grad, rows, alone = [], [], [], []
    for draws, inputs, outputs, size in layers:
        for made, channels in ((x, inputs), (grad, outputs)):
            tensor = _random(3 * draws, channels, size, size, dtype=dtype)
            made.append(tensor.contiguous(memory_format=layout).to(device))
        for made in (rows, alone):
            made.append(torch.full((3, outputs * (inputs * taps**2 + 1)), 7.0, device=device))

    def parts(each):
        """Weight and bias, one behind the other in a row."""
        for all_of_it, (_, inputs, outputs, _) in zip(each, layers, strict=True):
            weight = all_of_it[:, :-outputs].view(3, outputs, inputs, taps, taps)
            yield weight, all_of_it[:, -outputs:]

    weight, bias = map(list, zip(*parts(rows), strict=True))
    squares = ops.measured_weight_grads(x, grad, weight, bias if with_bias else [], geometry)
    for layer in zip(x, grad, parts(alone), strict=True):
        *tensors, (for_weight, for_bias) = layer
        for_bias = for_bias if with_bias else None
        ops.example_weight_grad(*tensors, for_weight, for_bias, geometry)
    assert all(map(torch.equal, rows, alone))
    written = rows if with_bias else [each.flatten(1) for each in weight]
    expected = torch.stack([each.double().square().sum(1) for each in written]).sum(0)
    _close(squares, expected, 1e-12)


@pytest.mark.parametrize(("device", "dtype"), TYPES)
@pytest.mark.parametrize("shape", [(9, 1000), (3, 40_001), (0, 7), (4, 0)], ids=_numbers)
def test_norms_and_scaled_sums_of_rows(device, dtype, shape):
    parts = (_random(*shape) * 8).round().to(dtype) / 64  # squares add up exactly, in any order
    beside = torch.full((shape[0], 1), torch.nan, dtype=dtype)
    scales = torch.arange(shape[0], dtype=torch.float64) * 1e6 / 3
    parts[:1, :1] = torch.inf  # of scale 0
    there = torch.cat([parts, beside], dim=1).to(device)[:, :-1]
    assert torch.equal(ops.squared_norms(there).cpu(), parts.double().square().sum(1))
    some = [slice(0, shape[1] // 3), slice(shape[1] // 2, shape[1])]
    expected = sum(parts[:, each].double().square().sum(1) for each in some)
    assert torch.equal(ops.squared_norms(there, some).cpu(), expected)
    found = ops.scaled_sum(there, scales.to(device))
    assert torch.equal(found.cpu(), _scaled_sum(parts, scales))
    twice = ops.scaled_sum(there, scales.to(device), found.clone(), accumulate=True)
    assert torch.equal(twice, 2 * found)


@pytest.mark.parametrize(("device", "dtype"), TYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_gradients(device, dtype, padding):
    indices = torch.tensor([[0, 4, 4, 2], [1, 1, 1, 1], [3, 2, 0, 3]])
    grad = _random(3, 4, 70, dtype=dtype)

    def run():
        rows = torch.full((3, 5 * 70 + 2), 2.0, device=device)
        weight = rows[:, : 5 * 70].view(3, 5, 70)
        ops.example_embedding_grad(indices.to(device), grad.to(device), weight, padding, True)
        assert (rows[:, 5 * 70 :] == 2).all()
        return weight

    expected = torch.full((3, 5, 70), 2.0, dtype=torch.float64)
    reference.example_embedding_grad(
        indices, grad.double(), expected, -1 if padding is None else padding, True
    )
    assert torch.equal(run(), run())
    _close(run(), expected, 1e-6)


@pytest.mark.parametrize(("device", "dtype"), TYPES)
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("positions", [1, 4, 300])
def test_embeddings_by_entry_are_those_by_table(device, dtype, positions, padding):
    indices = torch.arange(3 * positions).view(3, positions) * 7 % 5
    indices, grad = indices.to(device), _random(3, positions, 70, dtype=dtype).to(device)
    tables = torch.empty(3, 5, 70, device=device)
    ops.example_embedding_grad(indices, grad, tables, padding)
    squares = ops.example_embedding_norms(indices, grad, 5, padding)
    _close(squares, tables.double().square().sum((1, 2)), 1e-13)
    scales = 2.0**30 * 0.999 / squares.sqrt()
    scales[1] = 0
    total = torch.full((5, 70), 7, device=device)
    ops.recomputed_embedding_sum(indices, grad, scales, total, padding)
    assert torch.equal(total.flatten() - 7, ops.scaled_sum(tables.flatten(1), scales))


@pytest.mark.parametrize(("device", "dtype"), TYPES)
def test_gram_sums(device, dtype):
    x, grad = (_random(3, size, 9, 1, dtype=dtype).to(device) for size in (70, 33))
    call = 3, (1, 1), True, ((1, 1), (0, 0), (1, 1), 1)
    found = ops.gram_sums(x, grad, *call)
    assert torch.equal(found, ops.gram_sums(x, grad, *call))
    expected = reference.gram_sums(x.cpu(), grad.cpu(), *call[:3], *call[3])
    _close(found, expected, 1e-12)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", [(6, 64, 16, 16), (4, 12, 7, 5), (2, 20, 9)], ids=_numbers)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["first", "last"])
@pytest.mark.parametrize(("device", "dtype"), TYPES)
def test_group_norm_silu(device, dtype, layout, shape, silu):
    groups, channels = 4, shape[1]
    x, grad = _random(*shape, dtype=dtype), _random(*reversed(shape), dtype=dtype).view(shape)
    if len(shape) == 4:
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    affine = _random(2, channels)

    def run(room, to):
        given, slope, (weight, bias) = to(x), to(grad), to(affine.to(to(x).device))
        rows = [torch.zeros(2, channels).to(weight) for _ in range(2)]
        y, moments = room.group_norm_silu(given, weight, bias, groups, 1e-5, silu)
        back = room.group_norm_silu_backward(
            slope, given, moments, weight, bias, *rows, silu, False
        )
        return y, back, moments, *rows

    wide = torch.promote_types(dtype, torch.float32)

    def there(tensor):
        return tensor.to(device, wide if tensor is affine else tensor.dtype)

    found, again = run(ops, there), run(ops, there)
    expected = run(reference, lambda tensor: tensor.double())
    stored = 2**-8 if dtype == torch.bfloat16 else 3e-6
    for one, two, right, close in zip(
        found, again, expected, [stored] * 2 + [3e-6] * 3, strict=True
    ):
        assert torch.equal(one, two)
        _close(one, right, close)


@pytest.mark.parametrize(("device", "dtype"), TYPES[1:])
def test_affine_rows_in_bfloat16_are_the_others_rounded(device, dtype):
    x, affine = _random(6, 64, 16, 16, dtype=dtype).to(device), _random(2, 64).to(device)
    _, moments = ops.group_norm_silu(x, *affine, 4)
    wide, half = (
        [torch.ones(2, 64, device=device, dtype=each) for _ in range(2)]
        for each in (torch.float32, torch.bfloat16)
    )
    for rows in (wide, half):
        ops.group_norm_silu_backward(x, x, moments, *affine, *rows, accumulate=True)
    assert all(torch.equal(one, other.bfloat16()) for one, other in zip(half, wide, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_clipped_sum(device):
    parts = (_random(9, 1000) * 8).round() / 64  # squares add up exactly, in any order
    parts[3, 7] = torch.inf
    found = ops.clipped_sum(parts.to(device), 0.7)
    assert torch.equal(found.cpu(), ops.clipped_sum(parts, 0.7))


def _state(device):
    """Parameters, momentum, second moment and average."""
    return [_random(1000, device=device).abs() for _ in range(4)]


NUMBERS = torch.tensor([0.999, 0.9, 0.1, 0.999, 1.7, 1e-8, 1e-3, 0.01], dtype=torch.float64)


def _update(state, step, numbers, operator=torch.ops.privimage.private_update):
    """One step of Adam with noise."""
    total, key = torch.arange(1000, device=step.device), torch.arange(32, dtype=torch.uint8)
    operator(total, key, step, 37, *state, numbers, 2.0**31, 2.0**-33)


@pytest.mark.parametrize("device", DEVICES)
def test_private_update_draws_the_integers_of_the_reference(device):
    there, here = _state(device), _state("cpu")
    step = torch.tensor([5], device=device)
    _update(there, step, NUMBERS.to(device))
    _update(here, torch.tensor([5]), NUMBERS, reference.private_update)
    assert step.item() == 6
    for found, expected in zip(there, here, strict=True):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("device", [CUDA])
def test_a_replayed_graph_never_draws_the_same_noise(device):
    state, step = _state(device), torch.tensor([5], device=device)
    numbers = NUMBERS.to(device)
    _update(state, step.clone(), numbers)  # loads the kernels, which a capture may not
    for tensor in state:
        tensor.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _update(state, step, numbers)
    seen = []
    for _ in range(3):
        state[1].zero_()
        graph.replay()
        seen.append(state[1].clone())
    assert step.item() == 8
    # The optimiser's numbers are those of the replay, too.
    expected = [tensor.cpu() for tensor in state]
    numbers[6] = 0.5
    graph.replay()
    _update(expected, torch.tensor([8]), numbers.cpu())
    assert all(torch.equal(one.cpu(), other) for one, other in zip(state, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen, seen[1:] + seen[:1], strict=True))
