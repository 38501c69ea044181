"""Per-example gradients of any module: whatever uses a parameter is known exactly, or refused.

While the losses are computed, a `TorchFunctionMode` watches every call of a PyTorch function in
this thread. A call that takes a trainable parameter goes to its rule (`registry.REGISTERED`), which
writes the gradient of each example into the parameter's slot; any other call that takes one is
refused by name. What the mode can't see (TorchScript, views of parameters taken earlier,
other threads) still connects the loss to the parameter itself, which autograd then
tells; so a use may be refused, but none is overlooked.

The parameters stay in their modules and no state is shared: threads can use one engine at once.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from privimage.dp.gradients.exchange import exchange
from privimage.dp.gradients.provenance import FROM_CONSTANTS
from privimage.dp.rules.derived import hand_back
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.layers import KEEPS_STATISTICS, check_layers
from privimage.dp.rules.slots import Slot
from privimage.errors import UserError, check_count

Losses = Callable[..., torch.Tensor]


class ExampleGradients:
    """The gradients of a module's trainable parameters, one row an example.

    Formal guarantee: row i of the result is the gradient of example i's loss and a function of no
    other example, if the losses are functions of one row each
    (tests/dp/test_engine.py::test_a_small_unet_gives_what_autograd_gives_for_each_example);
    `check_independence` tests that condition
    (tests/dp/test_independence.py::test_mixing_without_a_layer_is_found).

    Args:
        model: any module whose trainable parameters are used through operations with a rule.
        memory_format: in which convolutions compute. `torch.channels_last` is the fastest on a CPU;
            a model that calls `view` on what a convolution returns may need the default.

    Attributes:
        model: as given.
        names: trainable parameters, in the order of `model.named_parameters()`.
        size: P, the number of scalars in them.
        module_sizes: the number of scalars of each module that has some, in the same order.
        shapes: of the parameters, by name.
        places: of the parameters in a flat gradient, by name.

    Raises:
        UserError: the model has no trainable parameter, or a layer that mixes examples.
    """

    model: nn.Module
    names: tuple[str, ...]
    size: int
    module_sizes: tuple[int, ...]
    shapes: dict[str, torch.Size]
    places: dict[str, slice]

    def __init__(
        self, model: nn.Module, memory_format: torch.memory_format = torch.preserve_format
    ) -> None:
        check_layers(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise UserError("the model has no trainable parameter; call requires_grad_(True)")
        for name, parameter in trainable.items():
            check_parameter(name, parameter)
        self.model = model
        self._has_modes = any(isinstance(module, KEEPS_STATISTICS) for module in model.modules())
        self._memory_format = memory_format
        self._parameters = tuple(trainable.values())
        self._described = [_described(model, name) for name in trainable]
        self.names = tuple(trainable)
        self.size = sum(parameter.numel() for parameter in self._parameters)
        sizes: dict[str, int] = {}
        for name, parameter in trainable.items():
            module = name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + parameter.numel()
        self.module_sizes = tuple(sizes.values())
        self.shapes = {name: parameter.shape for name, parameter in trainable.items()}
        ends = itertools.accumulate(shape.numel() for shape in self.shapes.values())
        self.places = {
            name: slice(end - shape.numel(), end)
            for (name, shape), end in zip(self.shapes.items(), ends, strict=True)
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of gradients: float32, or float64 where a parameter is float64."""
        dtype = torch.float32
        for parameter in self._parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters, and of gradients."""
        return self._parameters[0].device

    def __call__(self, losses: Losses, *batch: torch.Tensor, draws: int = 1) -> torch.Tensor:
        """The gradient of each example's mean loss over its draws.

        Args:
            losses: `losses(model, *batch)` -> [rows], or [examples] with the mean already taken;
                must treat the rows one by one.
            batch: tensors [rows, ...], rows = examples x draws, an example's draws consecutive.
            draws: rows an example.

        Returns:
            [examples, P] of `dtype`, flat in the order of `names`, detached. A parameter that the
            losses do not use has gradient 0.

        Raises:
            UserError: a batch or losses of the wrong shape, or a use of a parameter that has no
                rule; both depend on shapes and code only, not on the data.
        """
        count = count_examples(batch, draws)
        arena = self.arena(count)
        self.write_into(self.slots_in(arena), losses, *batch, draws=draws)
        return arena

    def write_into(
        self, slots: Mapping[str, Slot], losses: Losses, *batch: torch.Tensor, draws: int = 1
    ) -> None:
        """As `__call__`, with a slot for each of `names` instead of one tensor.

        Formal guarantee: as `ExampleGradients`.
        """
        check_mode()
        count = count_examples(batch, draws)
        if count == 0:
            return
        if self._has_modes:  # Somebody may have called train().
            check_layers(self.model)
        by_id = {id(p): slots[name] for p, name in zip(self._parameters, self.names, strict=True)}
        with torch.enable_grad():
            anchor = torch.zeros((), device=self.device, requires_grad=True)
            examples = Examples(count, count * draws, anchor, by_id, self._memory_format)
            described = dict(zip(map(id, self._parameters), self._described, strict=True))
            frozen = (p for p in self.model.parameters() if not p.requires_grad)
            constants = itertools.chain(self.model.buffers(), frozen)
            with exchange(examples, described, batch, constants) as watching:
                values = _computed(losses, self.model, batch)
            if examples.owns(values):
                raise UserError(f"the losses don't depend on the batch. {FROM_CONSTANTS}")
            total = mean_over_draws(values, count, draws).sum()
        if not total.requires_grad:
            raise UserError("the losses don't depend on any trainable parameter")
        examples.open()
        watched = [anchor, *watching.stand_ins, *self._parameters]
        with _explained():
            _, *unseen = torch.autograd.grad(total, watched, allow_unused=True)
        results = ["a normalised result"] * len(watching.stand_ins)
        for name, gradient in zip(results + self._described, unseen, strict=True):
            if gradient is not None:
                raise UserError(
                    f"{name} is used where per-example gradients can't see it "
                    "(torch.jit, another thread, an own autograd.Function, a view made earlier); "
                    "use it through plain PyTorch calls, register_rule for an own function, "
                    "or freeze it with requires_grad_(False)"
                )
        with _explained():
            hand_back(examples, self._parameters)
        for slot in slots.values():
            slot.finish()

    def arena(self, count: int) -> torch.Tensor:
        """[examples, P], holding anything."""
        return torch.empty(count, self.size, dtype=self.dtype, device=self.device)

    def slots_in(self, arena: torch.Tensor) -> dict[str, Slot]:
        """The columns of `arena` of each parameter."""
        parts = arena.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: Slot(columns.view(len(arena), *shape))
            for (name, shape), columns in zip(self.shapes.items(), parts, strict=True)
        }


def _computed(losses: Losses, model: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """The losses, with a sentence for what can't be watched."""
    try:
        return losses(model, *batch)
    except RuntimeError as error:
        if type(error).__name__ != "Unsupported":
            raise
        raise UserError(
            "torch.compile with fullgraph=True can't be watched; give the engine the model that is "
            "not compiled"
        ) from error


@contextmanager
def _explained() -> Iterator[None]:
    """A backward pass, with a sentence for what was overwritten or is computed again."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(
            "torch.utils.checkpoint computes layers again where they can't be watched; leave it "
            "out, and save memory by smaller micro-batches"
        ) from error
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise UserError(
            "a parameter, or what a layer takes in or puts out, was changed in place after it was "
            "used; look for +=, inplace=True and functions that end in _, and write to a new tensor"
        ) from error


def check_parameter(name: str, parameter: nn.Parameter) -> None:
    """Raises UserError if it can't have gradients of examples."""
    if nn.parameter.is_lazy(parameter):
        raise UserError(f"parameter '{name}' has no shape yet; run the model once first")
    if parameter.is_complex():
        raise UserError(
            f"parameter '{name}' is complex; keep real numbers [..., 2] and use "
            "torch.view_as_complex of them"
        )
    if parameter.is_inference():
        raise UserError(
            f"parameter '{name}' was made in torch.inference_mode, which rules gradients out; "
            "make the model outside of it"
        )
    if parameter._backward_hooks:
        raise UserError(
            f"parameter '{name}' has a hook on its gradient, which no example's gradient goes "
            "through; scale or mask the parameter in forward() instead"
        )


def _described(model: nn.Module, name: str) -> str:
    """A parameter in words, with the module that owns it."""
    path, _, _ = name.rpartition(".")
    kind = type(dict(model.named_modules())[path]).__name__  # TorchScript has no get_submodule.
    module = f"module '{path}' ({kind})" if path else f"the model ({kind})"
    return f"{module}: parameter '{name}'"


def check_mode() -> None:
    """Raises UserError in `torch.inference_mode`, where there are no gradients."""
    if torch.is_inference_mode_enabled():
        raise UserError("torch.inference_mode rules gradients out; call this outside of it")


def count_examples(batch: Sequence[torch.Tensor], draws: int) -> int:
    """The number of examples; raises UserError unless all tensors have examples x draws rows."""
    check_count("draws", draws)
    rows = {tensor.shape[0] if tensor.dim() else None for tensor in batch}
    if len(rows) != 1 or None in rows:
        shapes = [list(tensor.shape) for tensor in batch]
        raise UserError(f"the tensors of a batch must have as many rows each, got {shapes}")
    (count,) = rows
    if count is None or count % draws:
        raise UserError(f"a batch of {count} rows does not hold {draws} draws an example")
    return count // draws


def mean_over_draws(values: torch.Tensor, count: int, draws: int) -> torch.Tensor:
    """[examples x draws] or [examples] -> [examples]."""
    if values.shape == (count,):
        return values
    if values.shape == (count * draws,):
        return values.reshape(count, draws).mean(dim=1)
    either = f" or [{count}], one an example" if draws > 1 else ""
    raise UserError(
        f"losses must have the shape [{count * draws}], one a row{either}, "
        f"got {list(values.shape)}; a loss function needs reduction='none', and where a row has "
        "several losses, their mean: losses.view(len(x), -1).mean(1)"
    )
