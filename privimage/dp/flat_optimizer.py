"""What the private optimisers share: one flat vector, its groups, and a step from a clipped sum."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from privimage import ops
from privimage.dp.gradient_noise import GradientNoise
from privimage.dp.noise import SecretKey
from privimage.dp.optimizer_state import check_fits
from privimage.errors import UserError, check_non_negative, check_positive

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""Parameters, or groups of them with options of their own, as every torch.optim optimiser takes."""

_HOW_TO_STEP = (
    "a private optimiser takes its steps through PrivateEngine.step, or by step(clipped_sum) if it "
    "was made with noise_multiplier and expected_batch_size"
)
_ELSEWHERE = {"weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize", "betas"}
"""Options of `torch.optim` that change a step: nobody should believe that they do here."""


class DPOptimizer(torch.optim.Optimizer):
    """What the private optimisers share: a step from an integer sum, with noise of its own.

    A `PrivateEngine` gives the noise. Whoever goes without one gives `noise_multiplier` and
    `expected_batch_size` here; the gradient is then in units of the clipping norm: Adam does not
    care about the scale, its `eps` damps every clipping norm alike, and an SGD step is at most the
    learning rate long. Options and learning rates are in `param_groups`, so the schedulers of
    `torch.optim.lr_scheduler` work.

    Formal guarantee: the parameters after a step depend on the examples only through
    `clipped_sum` plus N(0, (noise_multiplier · GRID_UNITS)²) per coordinate, drawn afresh; an empty
    sum is a step like any other
    (tests/dp/test_optimizers.py::test_an_empty_batch_is_a_step_of_pure_noise,
    tests/dp/test_optimizers.py::test_two_steps_draw_two_noises). How the parameters are grouped
    changes no bit of it
    (tests/dp/test_optimizers.py::test_groups_draw_the_noise_of_their_place). No state holds the key
    (tests/dp/test_optimizers.py::test_no_state_holds_the_key).

    Attributes:
        flat: all trainable parameters in one vector, group after group; the model's own are views
            of it. A parameter's noise is a function of its place here.
        parameters: those in `flat`, in its order.
    """

    _has_second_moment = True

    def __init__(
        self,
        parameters: Parameters,
        noise_multiplier: float | None,
        expected_batch_size: float | None,
        key: SecretKey | None,
        ema_decay: Callable[[int], float] | None,
        defaults: dict[str, Any],
    ) -> None:
        check_positive("lr", defaults["lr"])
        groups = _groups(parameters)
        for group in groups:
            _check_options(type(self).__name__, {**defaults, **group}, defaults)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.flat = nn.Parameter(_flatten(self.parameters))
        sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
        pieces = [self.flat] if len(groups) == 1 else map(nn.Parameter, self.flat.data.split(sizes))
        for group, piece in zip(groups, pieces, strict=True):
            group["params"] = [piece]
        self._options = tuple(defaults)  # PyTorch adds to `defaults` when it loads a state.
        super().__init__(groups, defaults)
        # What `apply` reads and `advance` writes, one a group, always in the same place.
        self._step_numbers = [
            torch.zeros(8, dtype=torch.float64, device=piece.device) for piece in self._pieces()
        ]
        self._noise: GradientNoise | None = None
        self._ema_decay = ema_decay
        for piece in self._pieces():
            state = self.state[piece]
            state["step"] = torch.tensor(0, device="cpu")
            state["exp_avg"] = torch.zeros_like(piece.detach())
            if self._has_second_moment:
                state["exp_avg_sq"] = torch.zeros_like(piece.detach())
            if ema_decay is not None:
                state["ema"] = piece.detach().clone()
        if noise_multiplier is not None or expected_batch_size is not None:
            if noise_multiplier is None or expected_batch_size is None:
                raise UserError("noise_multiplier and expected_batch_size belong together")
            self.add_noise(GradientNoise.make(noise_multiplier, expected_batch_size, key))

    @property
    def is_secret(self) -> bool:
        """Whether the noise comes from a secret key: not so without noise or with a test key."""
        return self._noise is not None and self._noise.stream.is_secret

    @property
    def average(self) -> torch.Tensor:
        """The moving average of the parameters, flat; KeyError without `ema_decay`."""
        return torch.cat([self.state[piece]["ema"] for piece in self._pieces()])

    def add_noise(self, noise: GradientNoise) -> None:
        """Gives the optimiser its noise, once.

        Raises:
            UserError: it has noise already.
        """
        if self._noise is not None:
            raise UserError(
                "this optimiser has noise already, its own or that of an earlier engine; make one "
                "without noise_multiplier and expected_batch_size for each PrivateEngine"
            )
        self._noise = noise

    def step(self, clipped_sum: torch.Tensor | None = None) -> None:  # type: ignore[override]
        """Takes one step from the integer sum of one logical batch: `advance`, then `apply`.

        Args:
            clipped_sum: int64 [parameters], in the order of `flat`.

        Raises:
            UserError: there is no noise yet, no sum is given, or the model was moved or converted
                since, or an option set to what no step can be taken with.
        """
        if not isinstance(clipped_sum, torch.Tensor):
            raise UserError(_HOW_TO_STEP)
        self._checked_noise()
        self.check_options()
        self.advance()
        self.apply(clipped_sum)

    def advance(self) -> None:
        """Counts a step and writes its learning rate, bias correction and decay for `apply`.

        The part of a step that a CUDA graph can't capture: call it before each replay.
        """
        for group, piece, numbers in zip(
            self.param_groups, self._pieces(), self._step_numbers, strict=True
        ):
            self.state[piece]["step"] += 1
            steps = int(self.state[piece]["step"])
            rule = ops.UpdateRule(
                noise_std=0.0,
                scale=0.0,
                average_weight=0.0 if self._ema_decay is None else 1.0 - self._ema_decay(steps),
                **self._numbers(group, steps),
            )
            given = rule.on(torch.device("cpu")).numbers
            # Unless they are pinned the host would wait for all that a GPU has still to do.
            given = given.pin_memory() if numbers.is_cuda else given
            numbers.copy_(given, non_blocking=True)

    def apply(self, clipped_sum: torch.Tensor) -> None:
        """The step's arithmetic on the device, with noise of its own at every call or replay.

        Formal guarantee: as `DPOptimizer`
        (tests/dp/test_optimizers.py::test_what_a_graph_would_replay_is_the_step).

        Args:
            clipped_sum: as for `step`.

        Raises:
            UserError: as `step`.
        """
        noise = self._checked_noise()
        first = 0
        for piece, numbers in zip(self._pieces(), self._step_numbers, strict=True):
            state, last = self.state[piece], first + piece.numel()
            moments = state["exp_avg"], state.get("exp_avg_sq"), state.get("ema")
            tensors = ops.UpdateState(piece, *moments)
            rule = ops.DeviceRule(noise.std, noise.scale, numbers)
            noise.stream.private_update(clipped_sum[first:last], tensors, rule, first)
            first = last

    def check_views(self) -> None:
        """Raises UserError unless every parameter still is where `flat` is updated."""
        place = self.flat.data_ptr()
        for parameter in self.parameters:
            is_there = parameter.data_ptr() == place or not parameter.numel()
            if not is_there or parameter.dtype != self.flat.dtype:
                raise UserError(
                    "the model was moved or converted after its optimiser was made, which "
                    "therefore can't update it; call .to(...) first, then make the optimiser"
                )
            place += parameter.numel() * parameter.element_size()

    def check_options(self) -> None:
        """Raises UserError if an option of a group, which a scheduler may set, is out of range."""
        for group in self.param_groups:
            _check_options(type(self).__name__, group, dict.fromkeys(self._options))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, moments, average and step; holds no randomness and no un-noised value."""
        states = [{"parameters": p.detach(), **self.state[p]} for p in self._pieces()]
        step = {"step": states[0]["step"].clone()}
        names = [name for name in states[0] if name not in step]
        return {name: torch.cat([state[name] for state in states]) for name in names} | step

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        sizes = [piece.numel() for piece in self._pieces()]
        for i, piece in enumerate(self._pieces()):
            for name, tensor in {"parameters": piece.detach(), **self.state[piece]}.items():
                given = tensors[name]
                tensor.copy_(given if name == "step" else given.split(sizes)[i])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's.

        Raises:
            UserError: the state is of an optimiser of another kind, or of other parameters.
        """
        groups, own = state_dict["param_groups"], [self.state[piece] for piece in self._pieces()]
        check_fits(groups, state_dict.get("state", {}), self._options, own)
        for group in groups:
            _check_options(type(self).__name__, group, dict.fromkeys(self._options))
        super().load_state_dict(state_dict)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a private optimiser updates its model's own memory, so it can't be copied or "
            "serialised; keep its state_dict() and make another one for a copy of the model"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError once the optimiser is made: its parameters are one vector.

        Raises:
            ValueError: there are all groups already.
        """
        if hasattr(self, "_noise"):
            raise ValueError("a private optimiser takes all its groups when it is made")
        super().add_param_group(param_group)

    def _pieces(self) -> Iterator[nn.Parameter]:
        """The part of `flat` that is each group's."""
        for group in self.param_groups:
            yield from group["params"]

    def _checked_noise(self) -> GradientNoise:
        """The noise; raises UserError where a step can't be taken."""
        noise = self._noise
        if noise is None:
            raise UserError(_HOW_TO_STEP)
        self.check_views()
        return noise

    def _numbers(self, group: dict[str, Any], steps: int) -> dict[str, float]:
        """The fields of `ops.UpdateRule` that an algorithm decides, for its step `steps` >= 1."""
        raise NotImplementedError


def _groups(parameters: Parameters) -> list[dict[str, Any]]:
    """One dictionary a group, its "params" a list of those that are trainable."""
    given = list(parameters)
    if not any(isinstance(item, dict) for item in given):
        given = [{"params": given}]
    groups = []
    for group in given:
        if not isinstance(group, dict):
            raise UserError("parameters are all groups (dictionaries) or all tensors, not both")
        members = group["params"]
        members = [members] if isinstance(members, torch.Tensor) else list(members)
        groups.append({**group, "params": [p for p in members if p.requires_grad]})
    trainable = [parameter for group in groups for parameter in group["params"]]
    if not trainable:
        raise UserError("there is no trainable parameter to optimise")
    if len(set(map(id, trainable))) < len(trainable):
        raise UserError("a parameter is given twice; every parameter belongs to one group")
    return groups


def _check_options(optimizer: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises UserError where an option of a group is out of range, or would change nothing."""
    for name, value in group.items():
        if name not in defaults:
            if value and name in _ELSEWHERE:
                raise UserError(f"{optimizer} has no '{name}', only {', '.join(defaults)}")
        elif name != "betas":
            check_non_negative(name, value)
        elif len(value) != 2 or not all(0 <= beta < 1 for beta in value):
            raise UserError(f"betas must be two numbers in [0, 1), got {value}")


def _flatten(parameters: list[nn.Parameter]) -> torch.Tensor:
    """One vector of all `parameters`, which become views of it."""
    for parameter in parameters:
        if parameter.dtype != torch.float32 or parameter.device != parameters[0].device:
            raise UserError(
                f"a parameter {list(parameter.shape)} is {parameter.dtype} on {parameter.device}; "
                "a private optimiser needs all of them as torch.float32 on one device; those of "
                "torch.optim take other types"
            )
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return flat
