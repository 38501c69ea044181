"""Wrong arguments of every operator, past the checks in Python: an exception that names one of
them, or a result; never a crash, a write beyond what was given or a result that depends on it."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.test_every_op import NAMES, SAMPLES
from torch.utils._pytree import tree_leaves, tree_map_only

from privimage import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
GUARD = 64

pytestmark = pytest.mark.skipif(
    not ops._library.is_native, reason="the native operators are not built"
)


def _guarded(tensor, around):
    """The tensor with its strides in the middle of a longer buffer of `around`, and that buffer."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    length = 1 + reach if tensor.numel() else 0
    buffer = torch.full((length + 2 * GUARD,), around).to(tensor.dtype)
    inside = buffer.as_strided(tensor.shape, tensor.stride(), GUARD)
    # What is expanded holds one value in several places.
    if length:
        torch.as_strided(buffer, (length,), (1,), GUARD).copy_(_storage(tensor, length))
    return inside, buffer


def _storage(tensor, length):
    """All values from the first of a tensor to its last, those between included."""
    return torch.as_strided(tensor, (length,), (1,), tensor.storage_offset())


def _strange(data, tensor):
    """The tensor with another shape, type or layout."""
    kind = data.draw(st.sampled_from(["dtype", "shape", "stride", "empty", "dim", "meta"]))
    if kind == "dtype":
        return tensor.to(data.draw(st.sampled_from(DTYPES)))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "dim":
        return tensor[None] if data.draw(st.booleans()) else tensor.flatten()
    if kind == "empty":
        return tensor[:0]
    if kind == "stride":
        return tensor.expand(2, *tensor.shape)[0].mT if tensor.dim() > 1 else tensor[::2]
    sizes = [data.draw(st.integers(0, size + 2)) for size in tensor.shape]
    return torch.ones(sizes).to(tensor.dtype)


def _changed(data, value):
    if isinstance(value, torch.Tensor):
        return _strange(data, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return data.draw(st.integers(-3, 9))
    if isinstance(value, float):
        return data.draw(st.floats())
    if isinstance(value, list) and data.draw(st.booleans()) and any(map(torch.is_tensor, value)):
        changed = data.draw(st.integers(0, len(value) - 1))
        return [_strange(data, t) if i == changed else t for i, t in enumerate(value)]
    if isinstance(value, list) and any(map(torch.is_tensor, value)):
        return data.draw(st.lists(st.sampled_from(value), max_size=3))
    if isinstance(value, list):
        return data.draw(st.lists(st.integers(-2, 4), max_size=3))
    return value


def _called(overload, arguments, around):
    """What an operator says to its arguments or returns, their guards and tensors afterwards."""
    buffers = []

    def guarded(tensor):
        if tensor.is_meta:
            return tensor
        tensor, buffer = _guarded(tensor, around)
        buffers.append(buffer)
        return tensor

    given = tree_map_only(torch.Tensor, guarded, list(arguments))
    try:
        result = overload(*given)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return str(error), buffers, []
    results = [] if result is None else [result] if torch.is_tensor(result) else list(result)
    written = [value for value in tree_leaves(given) if torch.is_tensor(value)]
    # One argument without values, and there are none in the result.
    has_values = not any(value.is_meta for value in written)
    return None, buffers, results + written if has_values else []


def _same(one, other):
    """Bitwise, NaN for NaN."""
    same = (one == other) | (one != one) & (other != other)
    return bool(same.all())


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40)
def test_a_wrong_argument_gives_a_sentence_or_a_result(name, data):
    overload = getattr(torch.ops.privimage, name).default
    arguments = list(data.draw(st.sampled_from(SAMPLES[name])))
    for i in data.draw(st.sets(st.integers(0, len(arguments) - 1), max_size=2)):
        arguments[i] = _changed(data, arguments[i])
    message, buffers, results = _called(overload, arguments, 3)
    # The dispatcher's own sentences name the operator or the device.
    words = [argument.name for argument in overload._schema.arguments]
    known = "|".join([*words, "geometry", "privimage::", "meta", "device"])
    assert message is None or re.search(known, message), message
    for buffer in buffers:
        assert buffer[:GUARD].eq(buffer[0]).all()
        assert buffer[-GUARD:].eq(buffer[0]).all()
    # Whoever read beyond what was given would find something else there now.
    again, _, others = _called(overload, arguments, -7)
    assert (again is None) == (message is None)
    assert all(map(_same, results, others))


def test_a_read_or_write_beyond_what_was_given_would_be_seen():
    def reading(x):
        return torch.as_strided(x, (len(x) + 1,), (1,)).clone()

    def writing(x):
        torch.as_strided(x, (len(x) + 1,), (1,)).zero_()

    x = torch.ones(3)
    (_, _, one), (_, _, other) = (_called(reading, [x], around) for around in (3, -7))
    assert not all(map(_same, one, other))
    _, (buffer,), _ = _called(writing, [x], 3)
    assert not buffer[-GUARD:].eq(buffer[0]).all()
