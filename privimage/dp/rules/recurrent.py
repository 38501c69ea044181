"""`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells with one weight gradient an example.

A recurrent weight is a linear layer that sees the state before each step. Its gradient is that of a
linear layer over all steps at once, from those states and the gradients of what it gave: one
product for all steps, where the steps one by one would each write whole gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from privimage.dp.rules.linear import linear, write_linear_grad
from privimage.dp.rules.slots import Examples, Slots, once_differentiable
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


def layers_of(step: Step) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The rule of `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`."""

    def apply(examples: Examples, x: torch.Tensor, hx: Any, *others: Any) -> State:
        if isinstance(hx, torch.Tensor) and not hx.is_floating_point():
            raise UserError("packed sequences have no dimension for the examples; pad to a length")
        weights, has_bias, num_layers, dropout, training, bidirectional, batch_first = others
        states = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        _check(examples, x, states, 0 if batch_first else 1)
        x = x if batch_first else x.transpose(0, 1)
        directions = 2 if bidirectional else 1
        sets = num_layers * directions
        each = len(weights) // sets
        if each != (4 if has_bias else 2):
            raise UserError("proj_size is not supported; put a Linear behind the layer")
        last: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for backward in range(directions):
                i = layer * directions + backward
                parameters = weights[i * each : (i + 1) * each]
                start = tuple(state[i] for state in states)
                steps = x.flip(1) if backward else x
                output, end = _run(examples, step, steps, start, parameters)
                outputs.append(output.flip(1) if backward else output)
                last.append(end)
            x = torch.cat(outputs, dim=-1)
            if dropout and layer < num_layers - 1:
                x = F.dropout(x, dropout, training)
        x = x if batch_first else x.transpose(0, 1)
        return x, *(torch.stack(parts) for parts in zip(*last, strict=True))

    return apply


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
    state: State,
    parameters: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, State]:
    """One layer in one direction: what it puts out [rows, steps, width], and its last state."""
    w_ih, w_hh, *biases = parameters
    b_ih, b_hh = biases or (None, None)
    inner = linear(examples, x, w_ih, b_ih)
    state = (state[0].clone(), *state[1:])  # It may be changed in place before it is read again.
    before: list[torch.Tensor] = []
    weight, bias = examples.hide(w_hh), examples.hide(b_hh)
    added: torch.Tensor = _Recurrent.apply(  # type: ignore[no-untyped-call]
        examples.anchor, inner, before, examples.slots_of(w_hh, b_hh)
    )
    outputs = []
    for t in range(x.shape[1]):
        before.append(state[0].detach())
        state = step(inner[:, t], F.linear(state[0], weight, bias) + added[:, t], state)
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


class _Recurrent(Function):
    """Zeros [rows, steps, gates] to be added to what the recurrent weight gives.

    Their gradient is that of its outputs; `before` will hold its inputs by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        like: torch.Tensor,
        before: list[torch.Tensor],
        slots: Slots,
    ) -> torch.Tensor:
        ctx.before, ctx.slots = before, slots
        return torch.zeros_like(like)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
        write_linear_grad(torch.stack(ctx.before, dim=1), grad, ctx.slots)
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
