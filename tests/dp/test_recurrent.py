"""Recurrent layers and cells against autograd one example at a time."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from truth import one_at_a_time

from privimage.dp import ExampleGradients, check_independence
from privimage.dp.rules import linear
from privimage.errors import UserError

small = st.integers(1, 3)


def outputs(model, x):
    """What the layer puts out and its last states, rows first and flat."""
    is_first = getattr(model, "batch_first", True)
    output, last = model(x if is_first else x.transpose(0, 1))
    states = last if isinstance(last, tuple) else (last,)
    output = output if is_first else output.transpose(0, 1)
    return torch.cat([output.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], dim=1)


def losses(model, x):
    return outputs(model, x).sin().sum(1)


def assert_exact(model, x, draws, losses=losses):
    expected = one_at_a_time(model, losses, (x,), draws)
    # All of a small ReLU layer may be off.
    assert expected.abs().max() > 0 or getattr(model, "nonlinearity", "") == "relu"
    found = ExampleGradients(model)(losses, x, draws=draws)
    # Both are float64 sums of at most some hundred terms, in another order.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@given(
    kind=st.sampled_from(["LSTM", "GRU", "tanh", "relu"]),
    sizes=st.tuples(small, small, small, small),
    draws=st.sampled_from([1, 3]),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
)
@settings(max_examples=40)
def test_layers(kind, sizes, draws, layers, bias, bidirectional, batch_first):
    examples, steps, inputs, width = sizes
    options = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    if kind in ("tanh", "relu"):
        model = nn.RNN(inputs, width, layers, nonlinearity=kind, **options)
    else:
        model = getattr(nn, kind)(inputs, width, layers, **options)
    x = torch.randn(examples * draws, steps, inputs, dtype=torch.float64)
    with torch.no_grad():
        plain = outputs(model.double(), x)
    seen = []

    def recorded(model, x):
        seen.append(outputs(model, x))
        return seen[-1].sin().sum(1)

    assert_exact(model, x, draws)
    ExampleGradients(model)(recorded, x, draws=draws)
    torch.testing.assert_close(seen[0].detach(), plain)


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, partial(nn.RNNCell, nonlinearity="relu")]
)
def test_cells(cell, bias, draws):
    def run(model, x):
        state = None
        for step in x.unbind(1):
            state = model(step, state)
        return (torch.cat(state, 1) if isinstance(state, tuple) else state).sin().sum(1)

    assert_exact(cell(3, 4, bias=bias).double(), torch.randn(4, 5, 3).double(), draws, run)


@pytest.mark.parametrize("only", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "bias_ih_l0"])
def test_one_parameter_alone(only):
    model = nn.GRU(3, 2, batch_first=True).double().requires_grad_(False)
    getattr(model, only).requires_grad_()
    assert_exact(model, torch.randn(4, 5, 3).double(), 2)


def test_between_other_layers_and_twice():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.lstm = nn.LSTM(3, 3, batch_first=True)
            self.head = nn.Linear(3, 2)

        def forward(self, words):
            x, state = self.lstm(self.words(words))
            return self.head(self.lstm(x, state)[0])

    def each(model, words):
        return model(words).sin().sum((1, 2))

    assert_exact(Tagger().double(), torch.randint(0, 5, (6, 4)), 2, each)
    check_independence(ExampleGradients(Tagger()), each, torch.randint(0, 5, (6, 4)), draws=2)


def test_dropout_between_layers_draws_for_each_row():
    model = nn.LSTM(3, 40, 2, batch_first=True, dropout=0.5)
    engine, seen = ExampleGradients(model), []

    def recorded(model, x):
        seen.append(model(x)[0])
        return seen[-1].sum((1, 2))

    engine(recorded, torch.ones(2, 3, 3))
    assert not torch.equal(seen[0][0], seen[0][1])
    model.eval()
    engine(recorded, torch.ones(2, 3, 3))
    assert torch.equal(seen[1][0], seen[1][1])


def test_all_steps_are_one_product(monkeypatch):
    # Two a layer and direction, whatever the number of steps.
    calls, once = [], linear.write_weight_grad
    monkeypatch.setattr(linear, "write_weight_grad", lambda *a: (calls.append(a), once(*a)))
    ExampleGradients(nn.LSTM(3, 4, 2, batch_first=True))(losses, torch.randn(2, 9, 3))
    assert len(calls) == 4


def packed(model, x):
    lengths = torch.full((len(x),), x.shape[1])
    return model(pack_padded_sequence(x, lengths, True))[0].data.view(len(x), -1).sum(1)


class Learned(nn.GRU):
    """Begins with a parameter."""

    def __init__(self):
        super().__init__(3, 2, batch_first=True)
        self.start = nn.Parameter(torch.ones(1, 1, 2))

    def forward(self, x):
        return super().forward(x, self.start.expand(-1, len(x), -1))


@pytest.mark.parametrize(
    ("model", "run", "problem"),
    [
        (nn.LSTM(3, 2, proj_size=1, batch_first=True), losses, "proj_size is not supported"),
        (nn.LSTM(3, 2, batch_first=True), packed, "packed sequences .* pad to a length"),
        (nn.GRU(3, 2, batch_first=True), packed, "packed sequences .* pad to a length"),
        (Learned(), losses, "first state; make it one row"),
        (
            nn.GRU(3, 2),
            lambda m, x: m(x)[0].sum((1, 2)),
            r"second dimension of its input \[2, 4, 3",
        ),
        (nn.RNN(3, 2), lambda m, x: m(x[0])[0].sum(1), r"second dimension .*\[4, 1, 3"),
    ],
)
def test_what_a_layer_cannot_do_is_refused(model, run, problem):
    with pytest.raises(UserError, match=rf"parameter '(weight_ih_l0|start)' in torch\..*{problem}"):
        ExampleGradients(model)(run, torch.randn(2, 4, 3))


def test_a_first_state_that_is_changed_later_counts_as_it_was():
    model = nn.RNN(3, 2, batch_first=True).double()

    def changing(by):
        def losses(model, x):
            first = x.new_ones(1, len(x), 2)
            output, _ = model(x, first)
            first += by
            return output.sin().flatten(1).sum(1)

        return ExampleGradients(model)(losses, x)

    x = torch.randn(4, 3, 3).double()
    assert torch.equal(changing(by=1), changing(by=0))
