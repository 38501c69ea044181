"""Parameters used beside data without a layer: arithmetic, products, concatenation, look-up.

These operations broadcast as PyTorch does: row r of the data meets the whole parameter, or row r of
one that was repeated for the rows. Each example gets a copy of the parameter, by stride alone, and
the operation itself does the rest.
"""

import string
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from privimage.dp.rules.embeddings import embedding
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.linear import linear, matrix_product
from privimage.errors import UserError

Operation = Callable[..., Any]

_ARITHMETIC = (
    "add sub subtract rsub mul multiply div divide true_divide pow float_power maximum minimum "
    "fmax fmin clamp clip lerp where addcmul addcdiv hypot atan2 logaddexp remainder fmod "
    "floor_divide eq ne lt le gt ge bmm baddbmm "
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__ "
    "__floordiv__ __rfloordiv__ __mod__ __rmod__"
)


def _named(names: str) -> list[Operation]:
    """The functions and methods of PyTorch with these names."""
    homes = (torch, torch.Tensor)
    found = [getattr(home, name, None) for name in names.split() for home in homes]
    return [operation for operation in found if operation is not None]


def aligned(operation: Operation) -> Operation:
    """The rule of an operation that works row by row on all its arguments, after broadcasting."""

    def apply(examples: Examples, *args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        rows, dimensions = _rows(examples, tensors)

        def for_rows(value: Any) -> Any:
            return examples.by_row(value, rows, dimensions) if examples.owns(value) else value

        options = {name: for_rows(value) for name, value in kwargs.items()}
        return operation(*map(for_rows, args), **options)

    return apply


def aligned_in_place(operation: Operation) -> Operation:
    """As `aligned`, of an operation that writes to its first argument, which must be data."""

    def apply(examples: Examples, x: torch.Tensor, *others: Any, **kwargs: Any) -> Any:
        _check_writable(examples, x)
        return aligned(operation)(examples, x, *others, **kwargs)

    return apply


def filled(examples: Examples, x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    """`torch.masked_fill`, where the number is learned or what is filled is."""
    output: torch.Tensor = aligned(torch.where)(examples, mask, value, x)
    return output.to(x.dtype)


def assigned(examples: Examples, x: torch.Tensor, index: Any, value: torch.Tensor) -> None:
    """`x[index] = value` of data [rows, ...] and a parameter: tokens by a mask, a column."""
    _check_writable(examples, x)
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        behind = x.dim() - index.dim()
        if value.dim() <= behind:
            mask = index[(..., *[None] * behind)]
            aligned_in_place(torch.Tensor.copy_)(examples, x, filled(examples, x, mask, value))
            return
    elif _keeps_rows(x, index):
        aligned_in_place(torch.Tensor.copy_)(examples, x[index], value)
        return
    raise UserError("data takes a parameter by a mask [rows, ...] or by x[:, i] alone")


def _check_writable(examples: Examples, x: torch.Tensor) -> None:
    """Raises UserError if data would be written to a parameter."""
    if examples.owns(x):
        raise UserError("a parameter is changed in place; write to a new tensor")


def _keeps_rows(x: torch.Tensor, index: Any) -> bool:
    """Whether `x[index]` is a view of the same part of every row."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is Ellipsis or type(part) in (int, slice) for part in parts):
        return False
    return parts[:1] == (slice(None),) or (parts[:1] == (Ellipsis,) and len(parts) <= x.dim())


def joined(operation: Operation, new_dimension: int) -> Operation:
    """The rule of `torch.cat`, or of `torch.stack` with a `new_dimension` of 1."""

    def apply(examples: Examples, tensors: Any, dim: int = 0) -> torch.Tensor:
        rows, dimensions = _rows(examples, list(tensors))
        if dim % (dimensions + new_dimension) == 0:
            raise UserError("the first dimension belongs to the rows; join along another one")
        parts = [examples.by_row(t, rows, dimensions) if examples.owns(t) else t for t in tensors]
        return operation(parts, dim)  # type: ignore[no-any-return]

    return apply


def product(examples: Examples, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`torch.matmul`, of which one is a parameter: where it is a matrix, by a rule of its own."""
    if examples.owns(x) and x.dim() <= 2 and y.dim() >= 3:
        if x.dim() == 1:
            return product(examples, y.mT, x)
        examples.check_rows(y)
        return linear(examples, y.mT, x).mT
    if not examples.owns(y) or y.dim() > 2:
        if min(x.dim(), y.dim()) < 3:
            shapes = f"{list(x.shape)} and {list(y.shape)}"
            raise UserError(f"its inputs {shapes} have no dimension for the examples")
        output: torch.Tensor = aligned(torch.matmul)(examples, x, y)
        return output
    examples.check_rows(x)
    if y.dim() == 1:
        return (x * examples.by_row(y, len(x), x.dim())).sum(-1)
    return matrix_product(examples, x, y)


def biased_product(
    examples: Examples,
    bias: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    """`torch.addmm`."""
    is_layer = examples.owns(y) and bias.shape == y.shape[1:] and alpha == beta == 1
    if is_layer and not examples.owns(x):
        examples.check_rows(x)
        return matrix_product(examples, x, y, bias)
    output = alpha * (product(examples, x, y) if examples.owns(y) else x @ y)
    scaled = examples.by_row(bias, len(output), 2) if examples.owns(bias) else bias
    return output + beta * scaled


def distances(
    examples: Examples, x: torch.Tensor, y: torch.Tensor, p: float = 2, **options: Any
) -> torch.Tensor:
    """`torch.cdist`, where data [rows, features] has one point a row."""
    if examples.owns(y) and x.dim() == 2:
        examples.check_rows(x)
        return torch.cdist(x[:, None], examples.by_row(y, len(x), 3), p, **options).squeeze(1)
    if y.dim() < 3 and not examples.owns(y):
        raise UserError("its second input has no dimension for the examples; exchange the two")
    output: torch.Tensor = aligned(torch.cdist)(examples, x, y, p, **options)
    return output


def einsum(examples: Examples, equation: str, *operands: Any) -> torch.Tensor:
    """`torch.einsum` with one letter more, for the examples."""
    tensors = operands[0] if len(operands) == 1 and not torch.is_tensor(operands[0]) else operands
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    row = "..." if result.startswith("...") else result[:1]
    new = next(letter for letter in string.ascii_letters if letter not in equation)
    if not arrow or not row:
        raise UserError(f"equation '{equation}' must say what comes out, the rows first")
    given = []
    for i, (term, tensor) in enumerate(zip(terms, tensors, strict=True)):
        if examples.owns(tensor):
            if row in term:
                raise UserError(f"equation '{equation}' takes a parameter by rows; leave them out")
            given.append(examples.expand(tensor))
        elif term.startswith(row):
            examples.check_rows(tensor)
            given.append(tensor.unflatten(0, (examples.count, -1)))
        elif row in term:
            raise UserError(f"equation '{equation}' must have the rows first in '{term}'")
        else:
            given.append(tensor)
            continue
        terms[i] = new + term
    return torch.einsum(f"{','.join(terms)}->{new}{result}", *given).flatten(0, 1)


def look_up(examples: Examples, table: torch.Tensor, index: Any) -> torch.Tensor:
    """`table[index]` of integers [rows, ...]."""
    is_table = examples.owns(table) and isinstance(index, torch.Tensor)
    if not is_table or index.is_floating_point() or index.dtype == torch.bool:
        raise UserError("data can look up rows of a parameter by one tensor of integers alone")
    examples.check_rows(index)
    size = len(table)
    flat = examples.derive(table.reshape(size, -1)) if table.dim() != 2 else table
    found = embedding(examples, torch.where(index < 0, index + size, index), flat)
    return found.view(*index.shape, *table.shape[1:])


def _rows(examples: Examples, tensors: list[torch.Tensor]) -> tuple[int, int]:
    """How many rows and dimensions the data among the tensors have."""
    data = [tensor for tensor in tensors if not examples.owns(tensor)]
    largest = max(data, key=torch.Tensor.dim)
    if not largest.dim():
        raise UserError("its input has no dimension for the examples")
    rows = max(len(tensor) for tensor in data if tensor.dim() == largest.dim())
    largest = next(t for t in data if t.dim() == largest.dim() and len(t) == rows)
    examples.check_rows(largest)
    for parameter in (tensor for tensor in tensors if examples.owns(tensor)):
        fits = parameter.dim() < largest.dim() or len(parameter) in (1, rows)
        if parameter.dim() > largest.dim() or not fits:
            raise UserError(
                f"a parameter {list(parameter.shape)} does not belong to each row of an input "
                f"{list(largest.shape)}; give it fewer dimensions, or a first one of 1"
            )
    return rows, largest.dim()


OPERATIONS: dict[Operation, Operation] = {
    **{operation: aligned(operation) for operation in _named(_ARITHMETIC)},
    **{operation: aligned_in_place(operation) for operation in _named("add_ sub_ mul_ div_ copy_")},
    **dict.fromkeys(_named("masked_fill"), filled),
    torch.Tensor.__setitem__: assigned,
    F.scaled_dot_product_attention: aligned(F.scaled_dot_product_attention),
    **{operation: joined(operation, 0) for operation in _named("cat concat concatenate")},
    **{operation: joined(operation, 1) for operation in _named("stack")},
    **dict.fromkeys(_named("matmul mm __matmul__"), product),
    **dict.fromkeys(_named("addmm"), biased_product),
    torch.cdist: distances,
    torch.einsum: einsum,
    torch.Tensor.__getitem__: look_up,
}
"""Operation -> its rule, with the operation's own arguments after `examples`."""
