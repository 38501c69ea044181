"""Programs drawn at random from data, parameters and constants: gradients are right, or refused."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from truth import one_at_a_time

from privimage.dp import ExampleGradients, check_independence
from privimage.errors import UserError

# PyTorch says so once a process, of the first program that has such a step.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:Use of .* on expanded tensors is deprecated"),
]

SHAPES = [
    (),
    (1,),
    (3,),
    (4,),
    (4, 3),
    (3, 3),
    (3, 4),
    (1, 3),
    (1, 4, 3),
    (2, 3),
    (4, 1),
    (3, 3, 2),
]
MOST_VALUES, MOST_STEPS = 2000, 8


def permuted(a, k):
    places = list(range(a.dim()))
    random.Random(k).shuffle(places)
    return a.permute(places)


def reshaped(a, k):
    sizes = [size for size in range(1, a.numel() + 1) if a.numel() % size == 0]
    return a.reshape(random.Random(k).choice(sizes), -1)


def indexed(a, table):
    return (a.abs() * 10).long() % len(table)


def place(a, k):
    """Of a number, a slice, a column, a part of every row, or everything."""
    choose = random.Random(k)
    first, last = (choose.randrange(a.shape[d]) for d in (0, -1))
    places = [first, slice(first, None), (..., last), (slice(None), slice(last, None)), ...]
    return choose.choice(places)


def put(a, index, b):
    a[index] = b
    return a


# Of any two tensors and a number; where PyTorch refuses, a program does without.
OPERATIONS = {
    "add": lambda a, b, k: a + b,
    "multiply": lambda a, b, k: a * b,
    "matmul": lambda a, b, k: a @ b,
    "linear": lambda a, b, k: F.linear(a, b),
    "addmm": lambda a, b, k: torch.addmm(b[0], a.reshape(-1, a.shape[-1]), b),
    "conv1d": lambda a, b, k: F.conv1d(a, b, padding="same"),
    "layer norm": lambda a, b, k: F.layer_norm(a, b.shape, b),
    "group norm": lambda a, b, k: F.group_norm(a, 1, b),
    "sine": lambda a, b, k: a.sin(),
    "softmax": lambda a, b, k: a.softmax(-1),
    "where": lambda a, b, k: torch.where(a > 0.3, a, b),
    "sum": lambda a, b, k: a.sum(-1, keepdim=k % 2 == 0),
    "largest": lambda a, b, k: a.amax(-1),
    "permute": lambda a, b, k: permuted(a, k),
    "transpose": lambda a, b, k: a.transpose(-2, -1),
    "reshape": lambda a, b, k: reshaped(a, k),
    "flat rows": lambda a, b, k: a.reshape(-1, a.shape[-1]),
    "unsqueeze": lambda a, b, k: a.unsqueeze(k % (a.dim() + 1)),
    "slice": lambda a, b, k: a[:, : 1 + k % a.shape[1]],
    "column": lambda a, b, k: a[..., k % a.shape[-1]],
    "first": lambda a, b, k: a[0],
    "expand": lambda a, b, k: b.expand(1 + k % 6, *b.shape),
    "repeat": lambda a, b, k: b.repeat(1 + k % 6, *[1] * (b.dim() - 1)),
    "token": lambda a, b, k: torch.cat([a, b.expand(len(a), *b.shape)], 1),
    "like": lambda a, b, k: torch.zeros_like(a) + b.expand_as(a),
    "of ones": lambda a, b, k: a.new_ones(len(a), 1) * b,
    "cat": lambda a, b, k: torch.cat([a, b], k % a.dim()),
    "stack": lambda a, b, k: torch.stack([a, b], k % (a.dim() + 1)),
    "chunk": lambda a, b, k: a.chunk(2, -1)[0],
    "unbind": lambda a, b, k: a.unbind(k % a.dim())[0],
    "positions": lambda a, b, k: F.embedding(torch.arange(1 + k % 6) % len(b), b),
    "for each row": lambda a, b, k: F.embedding(torch.arange(4).expand(len(a), 4) % len(b), b),
    "pairs": lambda a, b, k: F.embedding(
        (torch.arange(4)[:, None] - torch.arange(4)).abs() % len(b), b
    ),
    "embedding": lambda a, b, k: F.embedding(indexed(a, b), b),
    "look-up": lambda a, b, k: b[indexed(a, b)],
    "einsum": lambda a, b, k: torch.einsum("bij,jk->bik", a, b),
    "attention": lambda a, b, k: F.scaled_dot_product_attention(a, a, a, attn_mask=b),
    "fill": lambda a, b, k: a.masked_fill(b > 0.4, 0.5),
    "fill with a number": lambda a, b, k: a.masked_fill(a > 0.4, b.flatten()[0]),
}
# These change what the first tensor and its views hold, and are drawn as often as the others.
IN_PLACE = {
    "add_": lambda a, b, k: a.add_(b),
    "multiply_": lambda a, b, k: a.mul_(b),
    "number_": lambda a, b, k: a.mul_(2),
    "sine_": lambda a, b, k: a.sin_(),
    "clamp_": lambda a, b, k: a.clamp_(max=0.8),
    "copy_": lambda a, b, k: a.copy_(b),
    "zero_": lambda a, b, k: a.zero_(),
    "transpose_": lambda a, b, k: a.transpose_(-2, -1),
    "put": lambda a, b, k: put(a, place(a, k), b),
    "put a number": lambda a, b, k: put(a, place(a, k), 0.3),
    "put by a mask": lambda a, b, k: put(a, a > 0.4, b),
    "put tokens": lambda a, b, k: put(a, a.sum(-1) > 1, b),
    "put where another": lambda a, b, k: put(a, b > 0.4, b.flatten()[0]),
    "put a number by a mask": lambda a, b, k: put(a, b.amax(-1) > 0.4, 0.3),
    "put rows": lambda a, b, k: put(a, torch.arange(len(a))[: 1 + k % 3], b),
}


class Program(nn.Module):
    """Steps that run for one row and for all, with the parameters that they use."""

    def __init__(self, seed, in_place=0.0):
        super().__init__()
        choose = random.Random(seed)
        torch.manual_seed(seed)
        shapes = choose.choices(SHAPES, k=4)
        self.weights = nn.ParameterList(torch.rand(shape).double() + 0.1 for shape in shapes)
        self.register_buffer("table", torch.rand(4, 3).double())
        self.x = torch.rand(choose.choice([2, 3, 4, 6]), 4, 3).double()
        self.steps = []
        for _ in range(3 * MOST_STEPS):
            numbers = (choose.randrange(10**6) for _ in range(3))
            kind = IN_PLACE if choose.random() < in_place else OPERATIONS
            step = (choose.choice(list(kind)), *numbers)
            self.steps.append(step)
            if not self._runs() or len(self.steps) > MOST_STEPS:
                self.steps.pop()

    def _runs(self):
        """Whether the last step does, and mostly whether it keeps rows apart."""
        try:
            of_all, of_one = (self.made(x)[-1] for x in (self.x, self.x[:1]))
        except (RuntimeError, IndexError, TypeError, ValueError, ArithmeticError):
            return False
        if not 0 < of_all.numel() <= MOST_VALUES:
            return False
        is_constant = of_all.shape == of_one.shape
        first = of_all if is_constant or not of_all.dim() else of_all[: len(of_one)]
        keeps = first.shape == of_one.shape and torch.allclose(first, of_one)
        return keeps or self.steps[-1][1] % 8 == 0

    def made(self, x):
        """The tensors of the steps, of which each may use those before."""
        known, found = [*self.weights, self.table.clone(), x.clone()], []
        for name, i, j, k in self.steps:
            a = known[-1 - i % 3] if i % 2 else known[i % len(known)]
            b = known[j % len(known)] if j % 2 else self.weights[j % 4]
            found.append((OPERATIONS | IN_PLACE)[name](a, b, k))
            known.append(found[-1])
        return found

    def forward(self, x):
        """Losses [rows] of all rows, or of what is the same for all, of the last tensors."""
        total = x.flatten(1).sum(1)
        for tensor in self.made(x)[-3:]:
            if tensor.dim() and len(tensor) == len(x):
                total = total + tensor.reshape(len(x), -1).sin().sum(1)
            else:
                total = total + (x[:, 0, 0] * tensor.flatten()[:3].sum()).sin()
        return total


def outcome(seed, in_place=0.0):
    """What became of a program's gradients; raises AssertionError if they are wrong unnoticed."""
    program = Program(seed, in_place)
    losses = lambda model, x: model(x)  # noqa: E731
    try:
        together = program(program.x)
        alone = torch.cat([program(row[None]) for row in program.x])
        if not together.requires_grad or not torch.allclose(together, alone):
            return "mixes its rows"
        expected = one_at_a_time(program, losses, (program.x,))
    except RuntimeError:  # What a step needs was overwritten by one behind it, for example.
        return "refused by PyTorch"
    try:
        found = ExampleGradients(program)(losses, program.x)
    except UserError:
        return "refused"
    if torch.allclose(found, expected, rtol=1e-7, atol=1e-10):
        return "right"
    with pytest.raises(UserError):
        check_independence(ExampleGradients(program), losses, program.x)
    return "found by the check"


@given(seed=st.integers(0, 2**32), in_place=st.sampled_from([0.0, 0.4]))
@settings(max_examples=250)
def test_gradients_are_right_or_refused(seed, in_place):
    outcome(seed, in_place)


@pytest.mark.parametrize(("in_place", "most_refused"), [(0.0, 0), (0.4, 10)])
def test_many_programs_have_gradients_and_none_needs_the_check(in_place, most_refused):
    outcomes = [outcome(seed, in_place) for seed in range(200)]
    assert outcomes.count("right") > 50
    assert outcomes.count("refused") <= most_refused
    assert "found by the check" not in outcomes
