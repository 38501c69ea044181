"""Poisson batches of a data set, handed out in micro-batches whose shape tells nothing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from privimage.dp.noise import SecretStream
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.errors import UserError, check_count

Rows = tuple[torch.Tensor, ...]
"""Tensors [rows, ...] of equal length: what losses are computed from."""


class PoissonLoader:
    """Poisson batches of any map-style data set, in micro-batches of one shape.

    Shapes and types of an example, the same for all, are taken for public, and so is their number
    where `Privacy` says so. A data set whose examples differ in shape, or that raises for some of
    them, gives that away: it must map each example to that shape by itself, and never raise. Nor
    may it draw from a generator that anything else uses, for then that shows how many were drawn.

    Formal guarantee: a step's examples are those of one `poisson_sample`, each once and in as many
    micro-batches as it takes
    (tests/dp/test_private_engine.py::test_a_step_takes_one_poisson_sample_whole).

    Args:
        data: a tensor or several of equal length, or a map-style data set of tensors or numbers or
            tuples of them.
        sample_rate: probability with which an example enters a step, in (0, 1].

    Raises:
        UserError: tensors of unequal length, or a data set without length or of another kind.
    """

    def __init__(self, data: Any, sample_rate: float) -> None:
        tensors = (data,) if isinstance(data, torch.Tensor) else data
        is_tensors = isinstance(tensors, tuple | list) and all(
            isinstance(item, torch.Tensor) for item in tensors
        )
        if isinstance(data, tuple) and not is_tensors:
            kinds = ", ".join(type(item).__name__ for item in data)
            raise UserError(f"data: a tuple must hold tensors, got ({kinds}); see torch.as_tensor")
        self._tensors: Rows | None = tuple(tensors) if is_tensors and len(tensors) else None
        self._data = data
        if self._tensors is not None:
            lengths = {len(tensor) if tensor.dim() else None for tensor in self._tensors}
            if len(lengths) != 1 or None in lengths:
                shapes = [list(tensor.shape) for tensor in self._tensors]
                raise UserError(f"data: the tensors must be of equal length, got {shapes}")
        elif not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise UserError(
                f"data: expected tensors or a map-style data set, got {type(data).__name__}; "
                "a DataLoader shuffles, which no Poisson sampling is: give its data set"
            )
        self._threshold = rate_threshold(sample_rate)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._tensors[0] if self._tensors is not None else self._data)

    def made_up(self) -> Rows:
        """Two examples of normal numbers, or of the integers 0 and 1, in the shape of the data.

        Of a data set, the first example is read for that shape; its values are used for nothing.

        Raises:
            UserError: a data set without an example, or of examples of another kind.
        """
        if self._tensors is None and len(self) == 0:
            raise UserError("data: the data set is empty, so nobody knows the shape of an example")
        rows = self._rows(torch.arange(0 if self._tensors is not None else 1, device="cpu"))
        return tuple(_made_up(tensor.dtype, tensor.shape[1:]) for tensor in rows)

    def check_form(self, made_up: Rows) -> None:
        """Raises UserError if tensors have other shapes or types than `made_up`, [rows, ...] each.

        Of a data set nothing is read: `micro_batches` will see.
        """
        if self._tensors is not None:
            _check_form(self._tensors, made_up)

    def sample(self, stream: SecretStream) -> torch.Tensor:
        """The indices of one step's examples; `stream` as for `poisson_sample`."""
        return poisson_sample(len(self), self._threshold, stream)

    def micro_batches(
        self, chosen: torch.Tensor, size: int, filler: Rows
    ) -> Iterator[tuple[Rows, int]]:
        """These examples as (rows, count): `size` rows, `filler` behind the first `count`.

        The shape of a micro-batch does not depend on how many examples were sampled, so that an
        example's gradient does not either. No examples make no micro-batch.

        Args:
            chosen: from `sample`, or a part of it.
            size: examples a micro-batch, at least 1.
            filler: a made-up example, [1, ...] each, that the losses can take.

        Raises:
            UserError: the examples have not the shapes and types of `filler`.
        """
        check_count("micro_batch", size)
        for indices in chosen.split(size) if len(chosen) else ():
            rows = tuple(one.repeat(size, *[1] * (one.dim() - 1)) for one in filler)
            parts = self._rows(indices)
            _check_form(parts, filler)
            for whole, part in zip(rows, parts, strict=True):
                whole[: len(indices)] = part
            yield rows, len(indices)

    def _rows(self, indices: torch.Tensor) -> Rows:
        """These examples, [len(indices), ...] each."""
        if self._tensors is not None:
            return tuple(tensor[indices] for tensor in self._tensors)
        examples, problem = [self._data[index] for index in indices.tolist()], None
        try:
            rows = default_collate(examples)
        except TypeError as error:
            rows, problem = None, error
        except RuntimeError as error:
            raise UserError(
                "data: all examples need the same shapes and types; pad texts, and crop or resize "
                f"images, to one ({str(error).splitlines()[0]})"
            ) from error
        rows = (rows,) if isinstance(rows, torch.Tensor) else rows
        if not (isinstance(rows, tuple | list) and all(isinstance(r, torch.Tensor) for r in rows)):
            raise UserError(
                "data: an example must be a tensor, a number or a tuple of them; "
                "wrap the data set in one that returns such tuples"
            ) from problem
        return tuple(rows)


def _made_up(dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    """Two examples that differ, [2, *shape]."""
    if dtype.is_floating_point:
        random = torch.Generator().manual_seed(0)
        return torch.randn(2, *shape, generator=random, device="cpu").to(dtype)
    places = torch.arange(shape.numel(), device="cpu").view(shape)
    # Not 1, 0, 1 … beside 0, 1, 0 …: a sum over words would be the same.
    return torch.stack([places % 2, torch.ones_like(places)]).to(dtype)


def _check_form(rows: Rows, made_up: Rows) -> None:
    """Raises UserError unless `rows` can take the place of `made_up`, for nothing would say so."""
    fit = len(rows) == len(made_up) and all(
        one.shape[1:] == other.shape[1:] and torch.can_cast(one.dtype, other.dtype)
        for one, other in zip(rows, made_up, strict=True)
    )
    if not fit:
        raise UserError(
            f"an example of the data is {_form(rows)}, a made-up one {_form(made_up)}; "
            "give `check` examples of the same shapes and types"
        )


def _form(rows: Rows) -> str:
    """An example in words."""
    return ", ".join(f"{list(r.shape[1:])} {str(r.dtype).removeprefix('torch.')}" for r in rows)
