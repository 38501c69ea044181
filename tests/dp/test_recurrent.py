"""Recurrent layers and cells against autograd one example at a time."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.utils._python_dispatch import TorchDispatchMode
from truth import one_at_a_time

from privimage.dp import (
    DPSGD,
    GRID_UNITS,
    ExampleGradients,
    Privacy,
    PrivateEngine,
    check_independence,
    clipped_sum,
)
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


def any_layer(kind, inputs, width, layers, projected=False, **options):
    if kind in ("tanh", "relu"):
        return nn.RNN(inputs, width, layers, nonlinearity=kind, **options)
    if kind == "LSTM" and projected and width > 1:
        options["proj_size"] = width - 1
    return getattr(nn, kind)(inputs, width, layers, **options)


any_options = {
    "kind": st.sampled_from(["LSTM", "GRU", "tanh", "relu"]),
    "sizes": st.tuples(small, small, small, small),
    "draws": st.sampled_from([1, 3]),
    "layers": st.integers(1, 2),
    "bias": st.booleans(),
    "bidirectional": st.booleans(),
    "batch_first": st.booleans(),
    "projected": st.booleans(),
}


@given(**any_options)
@settings(max_examples=50)
def test_layers(kind, sizes, draws, layers, **options):
    examples, steps, inputs, width = sizes
    model = any_layer(kind, inputs, width, layers, **options)
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


def packed_outputs(model, x, lengths, state=None):
    """As `outputs`, of packed rows: zero behind a row's end."""
    is_first = model.batch_first
    x = x if is_first else x.transpose(0, 1)
    sequences = pack_padded_sequence(x, lengths, is_first, enforce_sorted=False)
    output, last = model(sequences, state)
    output, _ = pad_packed_sequence(output, is_first, total_length=x.shape[int(is_first)])
    states = last if isinstance(last, tuple) else (last,)
    output = output if is_first else output.transpose(0, 1)
    return torch.cat([output.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], dim=1)


@given(data=st.data(), **any_options)
@settings(max_examples=60)
def test_packed_sequences(data, kind, sizes, draws, layers, **options):
    examples, steps, inputs, width = sizes
    rows = examples * draws
    model = any_layer(kind, inputs, width, layers, **options).double()
    x = torch.randn(rows, steps, inputs, dtype=torch.float64)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows)))
    plain = packed_outputs(model, x, lengths).detach()
    seen = []

    def losses(model, x, lengths):
        seen.append(packed_outputs(model, x, lengths))
        return seen[-1].sin().sum(1)

    expected = one_at_a_time(model, losses, (x, lengths), draws)
    seen.clear()
    found = ExampleGradients(model)(losses, x, lengths, draws=draws)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
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


class _Written(TorchDispatchMode):
    """Counts the numbers that operators return."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.numbers += result.numel()
        return result


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_what_is_written_grows_with_the_steps_and_not_with_their_square(kind):
    def written(steps):
        gradients = ExampleGradients(any_layer(kind, 2, 4, 1, batch_first=True))
        with _Written() as count:
            gradients(losses, torch.randn(3, steps, 2))
        return count.numbers

    # A step's share by itself: the weights' gradients are as large for one step as for many.
    assert written(60) - written(40) <= 1.1 * (written(30) - written(10))


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


LENGTHS = torch.tensor([2, 5, 1, 5, 3, 4])


def of_all(output, x):
    """One number a row, of what is packed."""
    return pad_packed_sequence(output, True, total_length=x.shape[1])[0].sin().sum((1, 2))


def with_first_states(model, x, lengths):
    state = x[:, 0].repeat(2, 1, 1)
    return packed_outputs(model, x, lengths, state if isinstance(model, nn.GRU) else (state, state))


def sorted_before(model, x, lengths):
    lengths, order = lengths.sort(descending=True)
    output, _ = model(pack_padded_sequence(x[order], lengths, True))
    return of_all(output, x)[order.argsort()][:, None]


def sorted_twice(model, x, lengths):
    lengths, order = torch.sort(lengths)
    output, _ = model(pack_padded_sequence(x[order], lengths, True, enforce_sorted=False))
    return of_all(output, x)[order.argsort()][:, None]


def in_lists(model, x, lengths):
    rows = [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]
    return of_all(model(pack_sequence(rows, enforce_sorted=False))[0], x)[:, None]


def packed_twice(model, x, lengths):
    first, _ = model(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
    first, _ = pad_packed_sequence(first, True, total_length=x.shape[1])
    shorter = (lengths - 1).clamp(min=1)
    return packed_outputs(model, first, shorter)


def with_values_changed(model, x, lengths):
    x = pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    return of_all(model(x._replace(data=x.data.square()))[0], x=torch.ones(1, 5))[:, None]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "run",
    [
        with_first_states,
        sorted_before,
        sorted_twice,
        in_lists,
        packed_twice,
        with_values_changed,
    ],
)
def test_ways_to_pack(layer, run):
    def losses(model, x, lengths):
        return run(model, x, lengths).sin().sum(1)

    model = layer(3, 3, bidirectional=run is with_first_states, batch_first=True).double()
    batch = torch.randn(6, 5, 3).double(), LENGTHS
    expected = one_at_a_time(model, losses, batch)
    torch.testing.assert_close(ExampleGradients(model)(losses, *batch), expected)
    check_independence(ExampleGradients(model), losses, *batch)


class Names(nn.Module):
    """Embeds, packs, and reads the last state."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.letters = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 3, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, names, lengths):
        names = pack_padded_sequence(self.letters(names), lengths, True, enforce_sorted=False)
        return self.head(self.lstm(names)[1][0][-1])


def names_losses(model, names, lengths):
    return model(names, lengths).sin().sum(1)


@pytest.mark.parametrize("draws", [1, 2])
def test_packed_between_other_layers(draws):
    model, batch = Names().double(), (torch.randint(0, 9, (6, 5)), LENGTHS)
    expected = one_at_a_time(model, names_losses, batch, draws)
    gradients = ExampleGradients(model)
    torch.testing.assert_close(gradients(names_losses, *batch, draws=draws), expected)
    for checked in (Names(), Names(dropout=0.5)):
        check_independence(ExampleGradients(checked), names_losses, *batch, draws=draws)


def in_order(model, x, lengths):
    """Sorted, and nobody sees how."""
    order = lengths.argsort(descending=True)
    output, _ = model(pack_padded_sequence(x[order], lengths[order], True))
    return of_all(output, x)[order.argsort()]


def made_by_hand(model, x, lengths):
    return model(PackedSequence(x[:, 0], torch.tensor([len(x)])))[0].data.sum(1)


def to_the_longest(model, x, lengths):
    output, _ = model(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
    return pad_packed_sequence(output, True)[0].mean((1, 2))


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (in_order, r"parameter 'weight_ih_l0' in torch\..*enforce_sorted=False"),
        (made_by_hand, "enforce_sorted=False"),
        (to_the_longest, r"ties an example .* total_length=x\.shape\[1\]"),
    ],
)
def test_packing_that_hides_a_row_is_refused(layer, run, problem):
    x, gradients = torch.randn(6, 5, 3), ExampleGradients(layer(3, 2, batch_first=True))
    with pytest.raises(UserError, match=problem):
        check_independence(gradients, run, x, LENGTHS)
    # Equally long ones, too, of which no run could find it out.
    with pytest.raises(UserError, match=problem):
        gradients(run, x, torch.full((6,), 4))


def test_a_layer_on_packed_values_is_refused():
    def losses(model, x, lengths):
        x = pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        return of_all(x._replace(data=model(x.data)), torch.ones(1, 5))

    with pytest.raises(UserError, match=r"first dimension of its input \[20, 3\].*pad_packed"):
        ExampleGradients(nn.Linear(3, 2))(losses, torch.randn(6, 5, 3), LENGTHS)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_private_engine_takes_packed_names_call_by_call(recorded):
    model, data = Names(), (torch.randint(0, 9, (6, 5)), LENGTHS)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    privacy = Privacy(noise_multiplier=1e-6, sample_rate=1.0, steps=2, expected_batch_size=1)
    optimizer = DPSGD(model.parameters(), lr=1.0)
    engine = PrivateEngine(model, optimizer, names_losses, data, privacy, recorded=recorded)
    with pytest.raises(RuntimeError, match="greater than 0") as made_up:
        engine.step()
    assert "engine.check" in made_up.value.__notes__[0]
    dummy = torch.randint(0, 9, (2, 5)), torch.tensor([2, 5])
    if recorded:
        with pytest.raises(UserError, match=r"can't be recorded, leave out recorded=True: .+$"):
            engine.check(*dummy)
        return
    engine.check(*dummy)
    parts = ExampleGradients(model)(names_losses, *data)
    engine.step()
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = clipped_sum(parts, 1.0) / GRID_UNITS
    torch.testing.assert_close(moved, expected.float(), rtol=1e-4, atol=1e-4)
