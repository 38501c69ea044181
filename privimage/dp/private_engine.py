"""DP-SGD for any model, optimiser and data set: one call a step, which can't be held wrong."""

from collections.abc import Iterator
from functools import partial
from threading import RLock
from typing import Any, Self

import torch
from torch import distributed, nn

from privimage.dp.backward_guard import refuse_backward
from privimage.dp.batch_sum import BatchSum
from privimage.dp.gradient_noise import GradientNoise
from privimage.dp.gradients.engine import Losses, check_mode, check_parameter
from privimage.dp.gradients.plan import StepPlan
from privimage.dp.ledger.ledger import Ledger
from privimage.dp.noise import Domain, SecretKey
from privimage.dp.poisson_loader import PoissonLoader
from privimage.dp.privacy import Privacy
from privimage.dp.processes import Processes, layout
from privimage.dp.step_account import StepAccount
from privimage.dp.stepping import Stepper
from privimage.errors import UserError, check_count


class PrivateEngine:
    """Trains a model with DP-SGD (Abadi et al., arXiv 1607.00133), a call of `step` a step.

    The engine draws the batches, so none that was not Poisson-sampled can reach a step; it takes
    losses one an example, so nothing that mixes examples can be differentiated; and as long as it
    is open, `backward()` into the model's parameters raises. Learning-rate schedulers and whatever
    else reads the optimiser go between the steps as ever.

    Formal guarantee: under add/remove-one adjacency, if `losses` treats the rows one by one, raises
    for nothing that a row holds, keeps nothing of earlier ones, changes no gradient by way of
    `.data`, and no random number of it serves two rows (then which rows share it would depend on
    who else was sampled), what `step` changes (parameters, state of the optimiser, PyTorch's random
    state) is a function of as many Poisson-subsampled Gaussian releases with the rate and noise
    multiplier of `privacy` as there were calls, empty batches included
    (tests/dp/test_private_engine.py::test_one_example_moves_a_step_by_at_most_the_clip,
    tests/dp/test_private_engine.py::test_an_empty_batch_is_a_step,
    tests/dp/test_private_engine.py::test_the_random_state_tells_nothing_about_the_batch); with a
    ledger, each is on disk before its noise is drawn
    (tests/dp/test_private_engine.py::test_a_step_is_in_the_ledger_before_data_is_touched). Several
    processes change together what one would
    (tests/dp/test_processes.py::test_several_processes_take_the_steps_of_one_bit_for_bit). The
    shapes of an example are taken for public, and the number of examples where `privacy` has no
    `expected_batch_size`. How long a step takes is not covered.

    Attributes:
        privacy: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        data: Any,
        privacy: Privacy,
        *,
        draws_per_example: int = 1,
        micro_batch: int | None = None,
        recorded: bool = False,
        ledger: Ledger | None = None,
        process_group: "distributed.ProcessGroup | None" = None,
    ) -> None:
        """Binds everything together; touches no data but for the shape of an example.

        Args:
            model: any module that `ExampleGradients` knows.
            optimizer: `DPAdam`, `DPAdamW`, `DPSGD` without noise of their own, or any of
                torch.optim, which gets the noised mean gradient as `.grad`; over all trainable
                parameters of the model, in groups or not.
            losses: `losses(model, *batch)` -> [rows], a loss a row. It may use PyTorch's global
                generators, which are seeded from the secret key, if it draws for each row by
                itself, as `torch.randn_like` does.
            data: tensors of equal length, or a map-style data set of examples of one shape (see
                `PoissonLoader`).
            privacy: the public numbers.
            draws_per_example: rows of each example in a batch, one after the other; the gradient of
                their mean loss is clipped once. For a loss with randomness of its own.
            micro_batch: examples at a time, at most; fewer where `max_memory` asks for it. By
                default what suits the device, and no more than a batch has nearly always.
            recorded: watch the losses once, on made-up data, and call their operators alone in all
                steps (see `record`): faster by what Python takes, most in small models. For losses
                whose Python depends on shapes alone; what it reads but tensors, such as a model's
                `training` or a dropout rate, stays as it was in the first step.
            ledger: by the unit "image", which is one example, and with the plan
                `privacy.plan(delta)`; every step is reserved in it. Of several processes, the
                first alone has one.
            process_group: processes with model, data and engine alike that take each step together:
                each sums its share of the batch, and the first samples, adds the noise once and
                updates. By default all that `torch.distributed` knows, if it is initialised.

        Raises:
            UserError: a layer that mixes examples, parameters of model and optimiser that differ,
                or an argument that is not as above.
        """
        check_count("draws_per_example", draws_per_example)
        self.privacy = privacy
        self._model, self._optimizer = model, optimizer
        if micro_batch is not None:
            check_count("micro_batch", micro_batch)
        self._loader = PoissonLoader(data, privacy.sample_rate)
        self._sum = BatchSum(
            model,
            losses,
            self._loader,
            privacy.rule,
            draws=draws_per_example,
            micro_batch=micro_batch,
            recorded=recorded,
        )
        self._processes = Processes(process_group, self._sum.gradients.device)
        if ledger is not None:
            self._processes.check_first("the ledger")
        self._are_alike = False
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        key = SecretKey.from_os()
        self._account = StepAccount(privacy, ledger, key.is_secret)
        self._sampling, self._words = key.stream(Domain.SAMPLING), key.stream(Domain.EXAMPLES)
        shapes = [(name, p.shape, p.dtype) for name, p in self._parameters.items()]
        self._numbers = repr((privacy, draws_per_example, len(self._loader), shapes))
        expected = privacy.expected_batch_size or privacy.sample_rate * max(len(self._loader), 1)
        self._share = expected / self._processes.count
        noise = GradientNoise.make(privacy.noise_multiplier, expected, key, privacy.max_grad_norm)
        self._stepper = Stepper(optimizer, self._parameters, noise)
        self._turn = RLock()  # A step is counted and drawn once, whoever calls.
        self._is_stepping = False
        self._closing = refuse_backward(self, self._parameters)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, *dummy: torch.Tensor) -> None:
        """Runs model and losses on made-up data: are the examples independent, the layers known?

        The first `step` does this by itself, before it touches data, with two examples of normal
        numbers and of the integers 0 and 1. Call it with examples of your own if those make no
        sense to your model.

        Args:
            dummy: tensors [2 or more examples that differ, ...] in the shapes of the data; no
                sensitive data.

        Raises:
            UserError: as `check_independence`, the data is of another form, or
                one example does not fit into `max_memory`.
        """
        self._sum.check(self._share, *dummy)

    def step(self) -> None:
        """Draws a batch, sums its clipped gradients, adds noise once, and updates the model.

        Returns nothing: a loss or a batch size would be a release that ε does not cover.

        Raises:
            UserError: all steps were taken, the ledger's budget is used up, the engine is closed,
                the model has other trainable parameters than before, this is in
                torch.inference_mode, the losses call this, or as `check`.
        """
        with self._turn:
            if self._is_stepping:
                raise UserError(
                    "step() was called in the middle of a step of the same engine; call it neither "
                    "in the losses nor in a hook"
                )
            self._is_stepping = True
            try:
                self._step()
            finally:
                self._is_stepping = False

    @property
    def max_memory(self) -> float:
        """Bytes by which a micro-batch may grow the process; to be set before `check`."""
        return self._sum.max_memory

    @max_memory.setter
    def max_memory(self, size: float) -> None:
        self._sum.max_memory = size

    @property
    def rows_dtype(self) -> torch.dtype | None:
        """torch.bfloat16 keeps gradients in half the memory, on a GPU; to be set before `check`."""
        return self._sum.rows_dtype

    @rows_dtype.setter
    def rows_dtype(self, dtype: torch.dtype | None) -> None:
        self._sum.rows_dtype = dtype

    @property
    def plan(self) -> StepPlan | None:
        """How many examples are in memory at a time, and whose gradients; None before `check`.

        It changes no result but for the rounding of the forward pass.
        """
        return self._sum.plan

    @property
    def steps_spent(self) -> int:
        """Steps that were begun, here and by the engines whose states were loaded; each once."""
        return self._account.begun

    @property
    def is_secret(self) -> bool:
        """False if a test key took the place of the secret one: nothing is private then.

        Here, or before a state was saved that is loaded.
        """
        return self._account.is_secret

    def epsilon(self, delta: float) -> float:
        """An upper bound on ε at `delta` of the steps begun so far; infinite without secret noise.

        With a ledger, of everything ever reserved in it. Without one, steps that were taken after
        the state that was loaded was saved are not known, and not counted; nor are those of another
        engine on the same data.

        Raises:
            UserError: δ is out of range, the accountants disagree, or this is not the first of
                several processes.
        """
        self._processes.check_first("epsilon()")
        return self._account.epsilon(delta)

    def state_dict(self) -> dict[str, Any]:
        """What a later run goes on from, beside the model's own state; holds no secret.

        Neither key nor batch nor un-noised gradient is in it; an engine that loads it draws a fresh
        key. Everything in it is a tensor, number or string: it can be read back without pickle's
        dangers.

        Raises:
            UserError: this is not the first of several processes, which alone has it.
        """
        self._processes.check_first("state_dict()")
        return {"optimizer": self._stepper.state_dict(), **self._account.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; load the model's own state first.

        Raises:
            UserError: it is of an engine with another `privacy` (the number of steps apart), or
                the ledger does not know it, or it was saved with a ledger and this engine has none,
                or the optimiser's part is of another optimiser or model.
        """
        self._account.check_state(state, with_ledger=self._processes.is_first)
        self._account.take_over(state)  # Even if the rest fails: the model's own state is loaded.
        self._are_alike = False
        self._stepper.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """Gives the model back: there are no more steps, and `backward()` works again."""
        self._closing()

    def _step(self) -> None:
        are_alike, self._are_alike = self._processes.all_say(self._are_alike), False
        if not are_alike:
            self._account.rename(self._processes.name_of_first(self._account.name))
        with self._processes.agreed(partial(self._terms, with_layout=not are_alike)):
            self._check_ready()
            self._sum.check_again(self._share)
        if not are_alike:
            self._processes.hand_out(tensor for _, tensor in self._tensors())
        self._processes.in_turn(self._account.begin)
        chosen = self._processes.own_share(self._loader.sample(self._sampling))
        with self._processes.agreed():
            # With a test key all processes have the same words; each takes one of its own.
            seed = int(self._words.words(self._processes.rank + 1)[-1])
            part = self._sum.of(chosen, seed)
        total = self._processes.add_up(part)
        update = partial(self._stepper.step, total)
        self._processes.hand_out(self._parameters.values(), after=update)
        self._are_alike = True  # Not so after a step that failed: the first may have changed.

    def _terms(self, with_layout: bool) -> str:
        """What must be alike in all processes; the layout of what will be handed out, too."""
        modes = [module.training for module in self._model.modules()]
        terms = f"{self._numbers} {self.steps_spent} {modes}"
        return terms + layout(self._tensors()) if with_layout else terms

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._model.named_parameters()
        yield from self._model.named_buffers()

    def _check_ready(self) -> None:
        check_mode()
        if not self._closing.alive:
            raise UserError("the engine is closed; make another one")
        self._account.check_left()
        trainable = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        if list(map(id, trainable.values())) != list(map(id, self._parameters.values())):
            raise UserError(
                "the model's trainable parameters are others than when the engine was made; "
                "make a new engine after freezing, unfreezing or replacing some"
            )
        for name, parameter in self._parameters.items():
            check_parameter(name, parameter)
        self._stepper.check_ready()
