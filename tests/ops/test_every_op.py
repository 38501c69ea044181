"""What every operator keeps, over all that the dispatcher knows, so that none can be forgotten."""

import ast
from pathlib import Path

import pytest
import torch

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


# For each operator the arguments of some legal calls, ragged and empty ones among them.
SAMPLES = {
    "clipped_sum": [
        (_random(5, 37), 1.0),
        (_random(3, 1025, dtype=torch.float64), 0.1),
        (_random(0, 7), 1.0),
        (_random(4, 0), 1.0),
    ],
}


def _calls():
    return [(name, arguments) for name in NAMES for arguments in SAMPLES.get(name, [])]


def _overload(name):
    return getattr(torch.ops.privimage, name).default


def test_every_op_has_samples_and_every_sample_an_op():
    assert NAMES
    assert set(SAMPLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stem_stands_in_its_six_places(name):
    for place in ("kernels/{}.cu", "kernels/{}.h", "cpu/{}.h", "ops/{}.cpp"):
        assert (ROOT / "csrc" / place.format(name)).is_file(), place
    assert (ROOT / f"tests/ops/test_{name}.py").is_file()
    assert callable(getattr(reference, name))
    assert callable(getattr(ops, name))
    assert name in ops.__all__
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    assert {f"ops/{name}.cpp", f"kernels/{name}.cu"} <= set(listed)


@pytest.mark.parametrize("name", NAMES)
def test_the_native_schema_is_the_one_in_python(name):
    schemas = ops._library._SCHEMAS
    assert torch._C.parse_schema(f"privimage::{schemas[name]}") == _overload(name)._schema


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_torch_finds_nothing_wrong_with_an_op(name, arguments):
    torch.library.opcheck(_overload(name), arguments)


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_an_op_compiles_without_a_graph_break(name, arguments):
    function = getattr(ops, name)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_the_meta_device_gets_shape_and_type_alone(name, arguments):
    on_meta = [
        value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments
    ]
    found, expected = getattr(ops, name)(*on_meta), getattr(ops, name)(*arguments)
    assert found.device.type == "meta"
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize(("name", "arguments"), _calls())
def test_an_op_leaves_its_arguments_as_they_are(name, arguments):
    before = [value.clone() for value in arguments if isinstance(value, torch.Tensor)]
    getattr(ops, name)(*arguments)
    after = [value for value in arguments if isinstance(value, torch.Tensor)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_words_stand_in_op_and_reference(name):
    """Public operator and reference take the same arguments in the same order."""
    places = [ROOT / "privimage/ops/__init__.py", ROOT / "privimage/ops/reference.py"]
    found = []
    for place in places:
        for node in ast.walk(ast.parse(place.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                found.append([argument.arg for argument in node.args.args])
    assert len(found) == 2
    assert found[0] == found[1]
