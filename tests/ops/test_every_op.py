"""What every operator keeps, over all that the dispatcher knows, so that none can be forgotten."""

import inspect
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from privimage import ops
from privimage.ops import reference

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    name.removeprefix("privimage::").split(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("privimage::")
)


def _random(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


KEY = torch.arange(32, dtype=torch.uint8)
STEP = torch.tensor([3])


def _update(parameters, adam=True):
    """Arguments of `private_update`: sum, key, step, first index, four vectors, numbers."""
    vectors = [_random(parameters), _random(parameters), _random(parameters) ** 2, None]
    if not adam:
        vectors[2:] = [None, _random(parameters)]
    return (
        torch.arange(parameters),
        KEY,
        STEP,
        0,
        *vectors,
        torch.full((8,), 0.5).double(),
        0.5,
        0.5,
    )


def _norm(rows, affine=True):
    """Arguments of `group_norm_silu` on two groups of three maps."""
    return (_random(rows, 6, 5), *([_random(6), _random(6)] if affine else [None, None]), 2)


def _norm_backward(rows, affine=True):
    x, *parameters, _ = _norm(rows, affine)
    gradients = [_random(rows, 6), _random(rows, 6)] if affine else [None, None]
    return (_random(rows, 6, 5), x, _random(2, rows, 2), *parameters, *gradients, True, False)


def _weight_grad(rows, bias=None):
    x, grad = _random(rows, 4, 5, 5), _random(rows, 6, 5, 5)
    return (x, grad, _random(rows, 6, 4, 3, 3), bias, [1, 1], [1, 1], [1, 1], 1, False)


def _projections(examples, *channels, with_bias=True):
    """Arguments of `measured_weight_grads`: 1x1 layers of so many outputs, 3 inputs, 2 draws."""
    x = [_random(2 * examples, 3, 5, 4) for _ in channels]
    grad = [_random(2 * examples, n, 5, 4) for n in channels]
    weight = [_random(examples, n, 3, 1, 1) for n in channels]
    bias = [_random(examples, n) for n in channels if with_bias]
    return (x, grad, weight, bias, [1, 1], [0, 0], [1, 1], 1)


def _embedding_grad(examples, padding):
    indices = torch.arange(examples * 4).view(examples, 4) * 7 % 5
    return (indices, _random(examples, 4, 3), _random(examples, 5, 3), padding, True)


def _embedding_parts(examples):
    return _embedding_grad(examples, 2)[:2]


def _recomputed(rows, with_bias=True, accumulate=True):
    sums = [torch.arange(216).view(6, 4, 3, 3), torch.arange(6) if with_bias else None]
    scales = _random(rows, dtype=torch.float64) * 1e5
    geometry = [1, 1], [1, 1], [1, 1], 1
    return (_random(rows, 4, 5, 5), _random(rows, 6, 5, 5), scales, *sums, *geometry, accumulate)


# For each operator the arguments of some legal calls, ragged and empty ones among them.
SAMPLES = {
    "example_embedding_grad": [
        _embedding_grad(3, -1),
        _embedding_grad(2, 2),
        _embedding_grad(0, 0),
    ],
    "example_embedding_norms": [(*_embedding_parts(3), 5, 2), (*_embedding_parts(0), 5, -1)],
    "example_weight_grad": [_weight_grad(2), _weight_grad(3, _random(3, 6)), _weight_grad(0)],
    "example_weight_norms": [
        (*_weight_grad(2)[:2], 2, [3, 3], True, [1, 1], [1, 1], [1, 1], 1),
        (*_weight_grad(0)[:2], 0, [3, 3], False, [1, 1], [1, 1], [1, 1], 1),
    ],
    "gaussian_integers": [(KEY, 1, 2, 300, 1e9), (KEY, 0, 0, 0, 1.0)],
    "gram_sums": [
        (*_weight_grad(4)[:2], 2, [3, 3], True, [1, 1], [1, 1], [1, 1], 1),
        (_random(3, 9, 1, 2), _random(3, 17, 1, 2), 3, [1, 1], False, [1, 1], [0, 0], [1, 1], 1),
        (*_weight_grad(0)[:2], 0, [3, 3], True, [1, 1], [1, 1], [1, 1], 1),
    ],
    "group_norm_silu": [(*_norm(3), 1e-5, True), (*_norm(2, affine=False), 1e-5, False)],
    "group_norm_silu_backward": [_norm_backward(3), _norm_backward(2, affine=False)],
    "measured_weight_grads": [
        _projections(3, 8, 5, 7),
        _projections(2, 4, with_bias=False),
        _projections(0, 4, 4),
    ],
    "private_update": [_update(37), _update(300, adam=False), _update(0)],
    "random_words": [(KEY, 1, 2, 300), (KEY, 0, 0, 0)],
    "recomputed_embedding_sum": [
        (*_embedding_parts(3), _random(3).double(), torch.arange(15).view(5, 3), 2),
        (*_embedding_parts(0), _random(0).double(), torch.arange(15).view(5, 3), -1),
    ],
    "recomputed_sum": [
        _recomputed(3),
        _recomputed(2, with_bias=False, accumulate=False),
        _recomputed(0, accumulate=False),
    ],
    "scaled_sum": [
        (_random(5, 37), _random(5, dtype=torch.float64) * 1e5, torch.ones(37).long(), True),
        (_random(0, 7), _random(0, dtype=torch.float64), torch.ones(7).long(), False),
    ],
    "squared_norms": [
        (_random(5, 37), [0, 37]),
        (_random(5, 37), [2, 3, 7, 7, 11, 37]),
        (_random(3, 0, dtype=torch.float64), []),
    ],
}

STEMS = {
    "gaussian_integers": "noise",
    "random_words": "noise",
    "group_norm_silu_backward": "group_norm_silu",
    "measured_weight_grads": "example_weight_grad",
    "squared_norms": "scaled_sum",
    "example_weight_norms": "scaled_sum",
    "recomputed_sum": "scaled_sum",
    "example_embedding_norms": "example_embedding_grad",
    "recomputed_embedding_sum": "example_embedding_grad",
}
# On a GPU noise is drawn inside the update, and Gram matrices are ordinary products.
ON_CPU_ALONE = {"noise", "gram_sums"}


def _calls():
    return [(name, arguments) for name in NAMES for arguments in SAMPLES.get(name, [])]


def _overload(name):
    return getattr(torch.ops.privimage, name).default


def _copies(arguments):
    return tree_map_only(torch.Tensor, torch.clone, list(arguments))


def _tensors(arguments):
    """Those among the arguments, and in lists among them."""
    return [value for value in tree_leaves(arguments) if isinstance(value, torch.Tensor)]


def _results(result):
    """What an operator returns, as a list."""
    if result is None:
        return []
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _after(name, arguments):
    """What a call returns, and its tensors afterwards."""
    results = _results(_overload(name)(*arguments))
    return _tensors(arguments) + results


def test_every_op_has_samples_and_every_sample_an_op():
    assert NAMES
    assert set(SAMPLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stem_stands_in_its_six_places(name):
    stem = STEMS.get(name, name)
    kernels = () if stem in ON_CPU_ALONE else ("kernels/{}.cu", "kernels/{}.h")
    for place in (*kernels, "cpu/{}.h", "ops/{}.cpp"):
        assert (ROOT / "csrc" / place.format(stem)).is_file(), place
    assert (ROOT / f"tests/ops/test_{stem}.py").is_file()
    assert callable(getattr(reference, name))
    assert callable(getattr(ops, name))
    assert name in ops.__all__
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    assert f"ops/{stem}.cpp" in listed
    assert not kernels or f"kernels/{stem}.cu" in listed


@pytest.mark.parametrize("name", NAMES)
def test_the_native_schema_is_the_one_in_python(name):
    schemas = ops._library._SCHEMAS
    assert torch._C.parse_schema(f"privimage::{schemas[name]}") == _overload(name)._schema


def _elsewhere():
    """Calls with one of their tensors on another device."""
    for name, samples in SAMPLES.items():
        for sample, arguments in enumerate(samples):
            leaves, structure = tree_flatten(list(arguments))
            for i in (i for i, leaf in enumerate(leaves) if torch.is_tensor(leaf)):
                moved = [*leaves[:i], leaves[i].to("meta"), *leaves[i + 1 :]]
                given = tree_unflatten(moved, structure)
                yield pytest.param(name, given, id=f"{name}-{sample}-{i}")


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(("name", "arguments"), list(_elsewhere()))
def test_a_tensor_on_another_device_is_named_with_both(name, arguments):
    # Not by way of the dispatcher, which would choose the other device: it needs no GPU.
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError) as raised:
        _overload(name).redispatch(on_cpu, *_copies(arguments))
    named, _, said = str(raised.value).splitlines()[0].partition(": expected ")
    assert named.split()[-1] in [argument.name for argument in _overload(name)._schema.arguments]
    assert {"cpu", "meta"} <= set(said.lower().replace(",", "").split()), said


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_torch_finds_nothing_wrong_with_an_op(name, arguments):
    torch.library.opcheck(_overload(name), tuple(_copies(arguments)))


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_an_op_compiles_without_a_graph_break(name, arguments):
    def call(*arguments):
        return _after(name, arguments)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*_copies(arguments)), call(*_copies(arguments))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_the_meta_device_gets_shape_and_type_alone(name, arguments):
    on_meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), list(arguments))
    found = _results(_overload(name)(*on_meta))
    for one, other in zip(found, _results(_overload(name)(*_copies(arguments))), strict=True):
        assert one.device.type == "meta"
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_an_op_writes_only_where_its_schema_says(name, arguments):
    given = _copies(arguments)
    _overload(name)(*given)
    for argument, before, after in zip(
        _overload(name)._schema.arguments, arguments, given, strict=True
    ):
        if argument.alias_info is None:
            assert all(map(torch.equal, _tensors(before), _tensors(after))), argument.name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_words_stand_in_schema_and_reference(name):
    signature = inspect.signature(getattr(reference, name))
    schema = [argument.name for argument in _overload(name)._schema.arguments]
    assert list(signature.parameters) == schema
