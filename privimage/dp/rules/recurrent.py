"""`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells with one weight gradient an example.

A recurrent weight is a linear layer that sees the state before each step. Its gradient is that of a
linear layer over all steps at once, from those states and the gradients of what it gave: one
product for all steps, where the steps one by one would each write whole gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.nn import functional as F

from privimage.dp.rules.examples import Examples
from privimage.dp.rules.linear import linear, write_linear_grad
from privimage.dp.rules.slots import Slots, once_differentiable
from privimage.errors import UserError

State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor, State], State]
"""Gates from the input, gates from the state [rows, gates x width], the state before -> the next.

The first tensor of a state [rows, width] is what a layer puts out.
"""


def _lstm_step(inner: torch.Tensor, recurrent: torch.Tensor, state: State) -> State:
    i, f, g, o = (inner + recurrent).chunk(4, dim=-1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_step(inner: torch.Tensor, recurrent: torch.Tensor, state: State) -> State:
    r, z, n = inner.chunk(3, dim=-1)
    from_state = recurrent.chunk(3, dim=-1)
    z = (z + from_state[1]).sigmoid()
    n = (n + (r + from_state[0]).sigmoid() * from_state[2]).tanh()
    return ((1 - z) * n + z * state[0],)


def _tanh_step(inner: torch.Tensor, recurrent: torch.Tensor, state: State) -> State:
    return ((inner + recurrent).tanh(),)


def _relu_step(inner: torch.Tensor, recurrent: torch.Tensor, state: State) -> State:
    return ((inner + recurrent).relu(),)


class _Options(NamedTuple):
    """What PyTorch's operations take behind the states, in their order; `batch_first` is apart."""

    weights: Sequence[torch.Tensor]
    has_bias: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool


def layers_of(step: Step) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The rule of `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`."""

    def apply(examples: Examples, x: torch.Tensor, hx: Any, *others: Any) -> State:
        if isinstance(hx, torch.Tensor) and not hx.is_floating_point():
            return apply_packed(examples, x, hx, *others)
        *options, batch_first = others
        states = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        _check(examples, x, states, 0 if batch_first else 1)
        x = x if batch_first else x.transpose(0, 1)
        x, *last = _stacked(examples, step, x, states, None, _Options(*options))
        return x if batch_first else x.transpose(0, 1), *last

    def apply_packed(
        examples: Examples, values: torch.Tensor, batch_sizes: torch.Tensor, hx: Any, *options: Any
    ) -> State:
        packed = examples.packing.of(batch_sizes)
        x, lengths = packed.pad(values, batch_sizes)
        states = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        _check(examples, x, states, 0)
        states = tuple(packed.unsorted(state, 1) for state in states)
        goes_on = torch.arange(packed.steps) < lengths[:, None]
        goes_on = goes_on.to(x.device)
        x, *last = _stacked(examples, step, x, states, goes_on, _Options(*options))
        return packed.pack(x, lengths), *(packed.sorted(state, 1) for state in last)

    return apply


def _stacked(
    examples: Examples,
    step: Step,
    x: torch.Tensor,
    states: State,
    goes_on: torch.Tensor | None,
    options: _Options,
) -> State:
    """All layers: what the last one puts out [rows, steps, width], and the last states of all.

    `goes_on` [rows, steps] is False behind the end of a row; None if all rows are as long.
    """
    weights, num_layers = options.weights, options.num_layers
    directions = 2 if options.bidirectional else 1
    each = len(weights) // (num_layers * directions)
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for backward in range(directions):
            i = layer * directions + backward
            parameters = weights[i * each : (i + 1) * each]
            start = tuple(state[i] for state in states)
            output, end = _run(examples, step, x, goes_on, start, parameters, bool(backward))
            outputs.append(output)
            last.append(end)
        x = torch.cat(outputs, dim=-1)
        if options.dropout and layer < num_layers - 1:
            x = F.dropout(x, options.dropout, options.training)
    return x, *(torch.stack(parts) for parts in zip(*last, strict=True))


def cell_of(step: Step) -> Callable[..., Any]:
    """The rule of `torch.lstm_cell`, `torch.gru_cell`, `torch.rnn_tanh_cell`, `..._relu_cell`."""

    def apply(
        examples: Examples,
        x: torch.Tensor,
        hx: Any,
        w_ih: torch.Tensor,
        w_hh: torch.Tensor,
        b_ih: torch.Tensor | None = None,
        b_hh: torch.Tensor | None = None,
    ) -> Any:
        is_lstm = isinstance(hx, tuple | list)
        state = tuple(hx) if is_lstm else (hx,)
        _check(examples, x, state, 0)
        recurrent = linear(examples, state[0], w_hh, b_hh)
        state = step(linear(examples, x, w_ih, b_ih), recurrent, state)
        return state if is_lstm else state[0]

    return apply


def _check(examples: Examples, x: torch.Tensor, states: State, dimension: int) -> None:
    if any(map(examples.owns, (x, *states))):
        raise UserError(
            "a parameter can't be the input or the first state; make it one row for each of the "
            "data's, as in x.new_zeros(len(x), 1) + parameter"
        )
    examples.check_rows(x, dimension)


def _run(
    examples: Examples,
    step: Step,
    x: torch.Tensor,
    goes_on: torch.Tensor | None,
    state: State,
    parameters: Sequence[torch.Tensor],
    backward: bool,
) -> tuple[torch.Tensor, State]:
    """One layer in one direction: what it puts out [rows, steps, width], and its last state."""
    w_ih, w_hh, *others = parameters
    b_ih, b_hh = others[:2] if len(others) > 1 else (None, None)
    inner = linear(examples, x, w_ih, b_ih)
    recurrent = _StepByStep(examples, inner, w_hh, b_hh)
    steps = inner.unbind(1)  # Not step by step: the gradient of each would be zeros for all others.
    project = None
    if len(others) % 2:  # An LSTM's, with proj_size.
        project = _StepByStep(examples, inner.new_zeros(*x.shape[:2], len(others[-1])), others[-1])
    state = (state[0].clone(), *state[1:])  # It may be changed in place before it is read again.
    outputs = []
    times = range(x.shape[1])
    for t in times[::-1] if backward else times:
        after = step(steps[t], recurrent(state[0]), state)
        if project is not None:
            after = project(after[0]), *after[1:]
        if goes_on is not None:  # Backward, a row waits until its end comes.
            pairs = zip(after, state, strict=True)
            after = tuple(torch.where(goes_on[:, t, None], new, old) for new, old in pairs)
        state = after
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backward else outputs, dim=1), state


class _StepByStep:
    """A linear layer that is called for one step after the other, its gradient that of all at once.

    Args:
        like: [rows, steps, outputs], of what it gives in all steps.
    """

    def __init__(
        self,
        examples: Examples,
        like: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._weight, self._bias = examples.hide(weight), examples.hide(bias)
        self._taken: list[torch.Tensor] = []
        nothing: torch.Tensor = _Nothing.apply(  # type: ignore[no-untyped-call]
            examples.anchor, like, self._taken, examples.slots_of(weight, bias)
        )
        self._added = iter(nothing.unbind(1))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs] -> [rows, outputs]."""
        self._taken.append(x.detach())
        return F.linear(x, self._weight, self._bias) + next(self._added)


class _Nothing(Function):
    """Zeros [rows, steps, outputs] to be added to what a layer gives, step by step.

    Their gradient is that of its outputs; `taken` will hold its inputs by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        like: torch.Tensor,
        taken: list[torch.Tensor],
        slots: Slots,
    ) -> torch.Tensor:
        ctx.taken, ctx.slots = taken, slots
        return torch.zeros_like(like)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
        write_linear_grad(torch.stack(ctx.taken, dim=1), grad, ctx.slots)
        return None, None, None, None


OPERATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: layers_of(_lstm_step),
    torch.gru: layers_of(_gru_step),
    torch.rnn_tanh: layers_of(_tanh_step),
    torch.rnn_relu: layers_of(_relu_step),
    torch.lstm_cell: cell_of(_lstm_step),
    torch.gru_cell: cell_of(_gru_step),
    torch.rnn_tanh_cell: cell_of(_tanh_step),
    torch.rnn_relu_cell: cell_of(_relu_step),
}
"""Operation -> its rule, with the operation's own arguments after `examples`."""
