"""As long as an engine is open, nobody gives its parameters gradients without noise."""

import weakref
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from privimage.errors import UserError


def refuse_backward(engine: object, parameters: Mapping[str, nn.Parameter]) -> weakref.finalize:  # type: ignore[type-arg]
    """Makes `backward()` into these parameters raise until the result is called.

    Formal guarantee: no such gradient stays anywhere
    (tests/dp/test_private_engine.py::test_backward_without_the_engine_is_refused). An engine that
    nobody holds can take no step, and ends as a closed one does
    (tests/dp/test_private_engine.py::test_an_engine_that_is_gone_gives_the_model_back).
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(_refuse, name))
        for name, parameter in parameters.items()
    ]
    closing = weakref.finalize(engine, _remove, hooks)
    closing.atexit = False
    return closing


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _refuse(name: str, parameter: torch.Tensor) -> None:
    parameter.grad = None
    raise UserError(
        f"backward() would give parameter '{name}' a gradient without noise; call "
        "PrivateEngine.step(), or name other networks' parameters in backward(inputs=...), or "
        "close() the engine first if the data is public"
    )
