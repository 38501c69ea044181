"""The clipped sum of a batch, for `PrivateEngine`: checked, planned and recorded before a step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import nn

from privimage.dp.checked_model import CheckedModel
from privimage.dp.clipping import ClipRule
from privimage.dp.gradients.chance import seeded
from privimage.dp.gradients.engine import ExampleGradients, Losses
from privimage.dp.gradients.independence import check_independence
from privimage.dp.gradients.micro_batch import most_examples, usual_memory
from privimage.dp.gradients.plan import StepPlan
from privimage.dp.gradients.plan import plan as make_plan
from privimage.dp.gradients.recompute import check_plan, planned_clipped_sum
from privimage.dp.poisson_loader import PoissonLoader, Rows
from privimage.dp.rules.layers import check_layers
from privimage.errors import UserError
from privimage.recording import record


class BatchSum:
    """The sum of the clipped gradients of examples that are named by their numbers.

    Attributes:
        gradients: of the model.
        max_memory: bytes by which a micro-batch may grow the process.
        rows_dtype: of kept gradients; None for their own.
        plan: None before `check`.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        loader: PoissonLoader,
        rule: ClipRule,
        *,
        draws: int,
        micro_batch: int | None,
        recorded: bool,
    ) -> None:
        """Takes what `PrivateEngine` does; `draws` are those of an example."""
        self.gradients = ExampleGradients(model)
        self.max_memory = usual_memory(self.gradients.device)
        self.rows_dtype: torch.dtype | None = None
        self.plan: StepPlan | None = None
        self._model, self._losses, self._loader, self._rule = model, losses, loader, rule
        self._draws, self._micro_batch = draws, micro_batch
        self._to_be_recorded = recorded
        self._recorded: Callable[..., torch.Tensor] | None = None
        self._checked = CheckedModel(model, losses)
        self._made_up: Rows = ()

    def check(self, share: float, *dummy: torch.Tensor) -> None:
        """As `PrivateEngine.check`, for batches of about `share` examples."""
        self._checked.forget()
        self._recorded = None
        check_layers(self._model)
        rows = dummy or self._loader.made_up()
        self._loader.check_form(rows)
        batch = self._repeated(self._on_device(rows))
        with nullcontext() if dummy else _noted():
            check_independence(self.gradients, self._losses, *batch, draws=self._draws)
        self.plan = self._planned([tensor[: self._draws] for tensor in batch], share)
        with seeded(0, self.gradients.device):
            copies = [tensor.clone() for tensor in batch]  # The losses may change them in place.
            check_plan(self.gradients, self._losses, *copies, plan=self.plan)
        if self._to_be_recorded:
            self._record(rows)
        self._made_up = rows
        self._checked.note()

    def check_again(self, share: float) -> None:
        """As `check`, if the model or the losses have changed since.

        Raises:
            UserError: as `check`, or what was recorded no longer holds.
        """
        if self._recorded is not None:
            self._checked.check_recorded()
        elif not self._checked.is_unchanged():
            self.check(share, *self._made_up)

    def of(self, chosen: torch.Tensor, seed: int) -> torch.Tensor:
        """The clipped sum of these examples, int64 [parameters]; that of none is nothing else.

        Args:
            chosen: int64 [sampled].
            seed: of the losses' own random numbers.
        """
        plan, device = cast(StepPlan, self.plan), self.gradients.device
        filler = tuple(tensor[:1] for tensor in self._made_up)
        total: torch.Tensor | None = None
        with seeded(seed, device):
            for rows, count in self._loader.micro_batches(chosen, plan.examples, filler):
                part = (self._recorded or self._summed)(*self._filled(rows, count))
                total = part if total is None else total.add_(part)
        if total is None:
            return torch.zeros(self.gradients.size, dtype=torch.int64, device=device)
        return total

    def _planned(self, example: list[torch.Tensor], share: float) -> StepPlan:
        """The plan; a micro-batch whose size nobody said is larger where examples take little."""
        suited = partial(most_examples, self.gradients.device, self._draws, share)
        planned = partial(
            make_plan,
            *(self._model, example),
            draws=self._draws,
            max_memory=self.max_memory,
            losses=self._losses,
            rows_dtype=self.rows_dtype,
        )
        if self._micro_batch is not None:
            return planned(examples=self._micro_batch)
        usual = suited()
        first = planned(examples=usual)
        larger = suited(first.bytes_an_example)
        return first if larger == usual else planned(examples=larger)

    def _summed(self, *batch: torch.Tensor) -> torch.Tensor:
        """The clipped sum of a micro-batch, of which its last tensor says how many examples count.

        All of it is computed, so time does not tell how many those are.
        """
        *tensors, counted = batch
        return planned_clipped_sum(
            self.gradients,
            self._losses,
            *tensors,
            plan=cast(StepPlan, self.plan),
            rule=self._rule,
            examples=counted,
        )

    def _record(self, rows: Rows) -> None:
        size = cast(StepPlan, self.plan).examples
        full = tuple(tensor[:1].repeat(size, *[1] * (tensor.dim() - 1)) for tensor in rows)
        try:
            self._recorded = record(self._summed, *self._filled(full, 1))
        except (RuntimeError, TypeError) as problem:
            (line, *_) = str(problem).splitlines() or [type(problem).__name__]
            raise UserError(
                f"the losses can't be recorded, leave out recorded=True: {line}"
            ) from problem

    def _filled(self, rows: Rows, count: int) -> Rows:
        """A micro-batch as `_summed` takes it, the first `count` of whose examples count."""
        counted = torch.tensor(count, device=self.gradients.device)
        return (*self._repeated(self._on_device(rows)), counted)

    def _on_device(self, rows: Rows) -> Rows:
        return tuple(tensor.to(self.gradients.device) for tensor in rows)

    def _repeated(self, rows: Rows) -> Rows:
        """Each example's rows, one for each draw."""
        if self._draws == 1:
            return rows
        return tuple(tensor.repeat_interleave(self._draws, dim=0) for tensor in rows)


@contextmanager
def _noted() -> Iterator[None]:
    """Says of an error of the losses that it was on examples that nobody chose."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        problem.add_note(
            "This was on two made-up examples, of normal numbers and of the integers 0 and 1; no "
            "data was touched. If they make no sense to the model (a length of 0, say), call "
            "engine.check(...) before the first step, with two or more of your own that differ."
        )
        raise
