"""Which methods there are, by name, and in which pieces of the micro-batch each may run."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from step import peers
from step.models import Setting
from step.steps import Step, captured, ordinary, ours, recorded

ORDINARY = ("ordinary channels-first", "ordinary channels-last")
OURS = "privimage"
RECORDED = "recorded ordinary"
COMPILED = "torch.compile"
CAPTURED = "ordinary captured"
UNRECORDED = "call by call"
PIECES = (1, 2, 4)


@dataclass(frozen=True)
class Method:
    """A way to take a step.

    Attributes:
        build: makes the step that takes the micro-batch in so many pieces.
        pieces: numbers of pieces that it may choose from.
        folds: whether an image's draws are averaged before they are clipped.
        is_recorded: whether it is our step as a recorded graph, on a GPU compiled and captured.
    """

    build: Callable[[int], Step]
    pieces: tuple[int, ...] = (1,)
    folds: bool = True
    is_recorded: bool = False


def methods(setting: Setting, limits: Sequence[int] = ()) -> dict[str, Method]:
    """All that can run here, by name; ours also in so many megabytes."""
    pieces = tuple(count for count in PIECES if setting.examples % count == 0)
    last, on_gpu = torch.channels_last, setting.on_gpu
    found = {
        ORDINARY[0]: Method(lambda _: ordinary(setting, torch.contiguous_format)),
        ORDINARY[1]: Method(lambda _: ordinary(setting, last)),
        RECORDED: Method(lambda _: recorded(setting)),
        COMPILED: Method(lambda _: ordinary(setting, last, is_compiled=True)),
        **({CAPTURED: Method(lambda _: captured(setting))} if on_gpu else {}),
        OURS: Method(lambda _: ours(setting), is_recorded=True),
        UNRECORDED: Method(lambda _: ours(setting, is_recorded=False)),
    }
    for mb in limits:
        for name, is_recorded in ((OURS, True), (UNRECORDED, False)):
            limited = partial(ours, setting, 1e6 * mb, is_recorded=is_recorded)
            build = Method(lambda _, build=limited: build(), is_recorded=is_recorded)
            found[f"{name} in {mb} MB"] = build
    if on_gpu:
        half = torch.bfloat16
        rounded = partial(ours, setting, rows_dtype=half)
        found["rows in bfloat16"] = Method(lambda _: rounded(), is_recorded=True)
    found["vmap(grad)"] = Method(partial(peers.vmap_grad, setting), pieces)
    compiled = partial(peers.vmap_grad, setting, is_compiled=True)
    found["compiled torch.func"] = Method(compiled)
    found["loop over images"] = Method(partial(peers.loop, setting))
    if importlib.util.find_spec("opacus") is not None:
        hooks = partial(peers.opacus_rows, setting, functorch=False)
        functorch = partial(peers.opacus_rows, setting, functorch=True)
        found["opacus hooks"] = Method(hooks, pieces)
        found["opacus functorch"] = Method(functorch, pieces)
        found["opacus ghost"] = Method(partial(peers.opacus_ghost, setting), pieces, folds=False)
    if importlib.util.find_spec("fastDP") is not None:
        found["fastDP"] = Method(partial(peers.fastdp, setting), pieces, folds=False)
    return found
