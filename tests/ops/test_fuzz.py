"""Wrong arguments of every operator, past the checks in Python: an exception that names one of
them, or a result; never a crash or a write beyond what was given."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.test_every_op import NAMES, SAMPLES

from privimage import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
GUARD = 64

pytestmark = pytest.mark.skipif(
    not ops._library.is_native, reason="the native operators are not built"
)


def _guarded(tensor):
    """A copy in the middle of a longer buffer that holds a pattern, and the buffer."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), 3, dtype=torch.int64).to(tensor.dtype)
    inside = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside, buffer


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
    if isinstance(value, list):
        return data.draw(st.lists(st.integers(-2, 4), max_size=3))
    return value


def _refusal(overload, arguments):
    """What an operator says to its arguments; None if it took them."""
    try:
        overload(*arguments)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_wrong_argument_gives_a_sentence_or_a_result(name, data):
    overload = getattr(torch.ops.privimage, name).default
    arguments = list(data.draw(st.sampled_from(SAMPLES[name])))
    buffers = []
    for i, value in enumerate(arguments):
        if isinstance(value, torch.Tensor):
            arguments[i], buffer = _guarded(value)
            buffers.append(buffer)
    for i in data.draw(st.sets(st.integers(0, len(arguments) - 1), min_size=1, max_size=2)):
        arguments[i] = _changed(data, arguments[i])
    message = _refusal(overload, arguments)
    # The dispatcher's own sentences name the operator or the device.
    words = [argument.name for argument in overload._schema.arguments]
    known = "|".join([*words, "geometry", "privimage::", "meta", "device"])
    assert message is None or re.search(known, message), message
    for buffer in buffers:
        assert buffer[:GUARD].eq(buffer[0]).all()
        assert buffer[-GUARD:].eq(buffer[0]).all()
