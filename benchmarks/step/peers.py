"""What else takes private steps: Opacus in three modes, fastDP, `torch.func`, a loop over images.

Each peer is a function of a setting and of the number of pieces that the micro-batch is taken in,
so that it can run in the size that suits it. An image's draws are averaged before clipping, except
where a library can't do that: Opacus' ghost clipping and fastDP clip each row.
"""

import contextlib
import io
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from privimage.diffusion.denoiser import Denoiser
from step.models import Setting
from step.steps import MAX_GRAD_NORM, NOISE_MULTIPLIER, Step, Update, in_format

FIRST, LAST = torch.contiguous_format, torch.channels_last

Sums = Callable[..., list[torch.Tensor]]
"""A micro-batch -> the sums of the clipped gradients, one a parameter."""


def in_pieces(
    setting: Setting,
    pieces: int,
    network: nn.Module,
    clipped_sums: Sums,
    layout: torch.memory_format,
) -> Step:
    """The step of a peer that leaves noise and update to PyTorch."""
    update, batch = Update(network), in_format(setting.batch(), layout)
    batches = list(zip(*(tensor.chunk(pieces) for tensor in batch), strict=True))

    def gradient() -> list[torch.Tensor]:
        total = clipped_sums(*batches[0])
        for piece in batches[1:]:
            torch._foreach_add_(total, clipped_sums(*piece))
        return total

    def finish(sums: list[torch.Tensor]) -> None:
        update.with_noise(sums, setting.examples)

    return Step(gradient, finish, flat)


def flat(sums: list[torch.Tensor]) -> torch.Tensor:
    """One after the other, float64."""
    return torch.cat([total.double().flatten() for total in sums])


def clip_and_sum(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """[examples, *shape] each -> [*shape] each."""
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in parts]).norm(dim=0)
    scales = (MAX_GRAD_NORM / norms).clamp(max=1)
    return [torch.tensordot(scales, part, 1) for part in parts]


def opacus_rows(setting: Setting, pieces: int, *, functorch: bool) -> Step:
    """Opacus by hooks or by functorch, layer by layer: a gradient a row, averaged over draws."""
    from opacus import GradSampleModule

    _silence_opacus()
    layout = LAST if functorch else FIRST
    network = GradSampleModule(
        setting.network().to(memory_format=layout), loss_reduction="sum", force_functorch=functorch
    )
    parameters = list(network.parameters())

    def clipped_sums(*batch: torch.Tensor) -> list[torch.Tensor]:
        setting.losses(network, *batch).sum().backward()
        rows = [p.grad_sample.unflatten(0, (-1, setting.draws)) for p in parameters]
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None
        # Under autocast a convolution's come in bfloat16.
        return clip_and_sum([row.mean(1, dtype=torch.float32) for row in rows])

    return in_pieces(setting, pieces, network, clipped_sums, layout)


def opacus_ghost(setting: Setting, pieces: int) -> Step:
    """Opacus' ghost clipping: norms in one backward pass, the weighted sum in a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    _silence_opacus()
    network = GradSampleModuleFastGradientClipping(
        setting.network(), loss_reduction="sum", max_grad_norm=MAX_GRAD_NORM
    )
    parameters = list(network.parameters())

    def clipped_sums(*batch: torch.Tensor) -> list[torch.Tensor]:
        losses = setting.losses(network, *batch)
        # Of an optimiser it wants that the first pass's gradients are forgotten.
        DPTensorFastGradientClipping(network, network, losses, "sum").backward()
        sums = [p.grad / setting.draws for p in parameters]
        network.zero_grad()
        return sums

    return in_pieces(setting, pieces, network, clipped_sums, FIRST)


def _silence_opacus() -> None:
    """Its hooks warn at every step that a batch needs no gradient, and of no autocast on a CPU."""
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    warnings.filterwarnings("ignore", "In CPU autocast", UserWarning)


def fastdp(setting: Setting, pieces: int) -> Step:
    """The mixed ghost clipping of Bu et al. (arXiv 2210.00038); it adds the noise itself."""
    from fastDP import PrivacyEngine

    network = setting.network()
    update, batch = Update(network), setting.batch()
    batches = list(zip(*(tensor.chunk(pieces) for tensor in batch), strict=True))
    with contextlib.redirect_stdout(io.StringIO()):  # It prints what it is about to do.
        engine = PrivacyEngine(
            network,
            batch_size=len(batch[0]),
            sample_size=len(batch[0]),
            epochs=1,
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=MAX_GRAD_NORM,
            clipping_mode="MixOpt",
            clipping_fn="Abadi",
            loss_reduction="sum",
        )
        engine.attach(update.adam)

    def gradient() -> None:
        for piece in batches:
            setting.losses(network, *piece).sum().backward()

    return Step(gradient, lambda _: update())


def vmap_grad(setting: Setting, pieces: int, *, is_compiled: bool = False) -> Step:
    """torch.func: the gradient of one image's loss, vectorised over the images; one full graph."""
    network = setting.network()
    whole = _MeanLoss(setting, network)

    def loss(weights: dict[str, torch.Tensor], *example: torch.Tensor) -> torch.Tensor:
        return functional_call(whole, weights, example)

    each = vmap(grad(loss), in_dims=(None, *[0] * len(setting.batch(1))))
    each = torch.compile(each, fullgraph=True) if is_compiled else each

    def clipped_sums(*batch: torch.Tensor) -> list[torch.Tensor]:
        weights = {name: p.detach() for name, p in whole.named_parameters()}
        parts = each(weights, *(t.unflatten(0, (-1, setting.draws)) for t in batch))
        return clip_and_sum([parts[name] for name in weights])

    return in_pieces(setting, pieces, network, clipped_sums, FIRST)


class _MeanLoss(nn.Module):
    """Of a batch, with the parameters of a network.

    Its denoiser is made beforehand: PyTorch 2.11 compiles nothing that makes a frozen dataclass.
    """

    def __init__(self, setting: Setting, network: nn.Module) -> None:
        super().__init__()
        self.network, self._setting = network, setting
        self._denoiser = Denoiser(network) if setting.denoises else network

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        with _AttentionAsItComes():
            return self._setting.losses(self._denoiser, *batch).mean()


class _AttentionAsItComes(TorchFunctionMode):
    """Attention without autocast, in the type that its inputs have by then.

    vmap takes it apart below autograd, and its gradients then meet types that they do not expect.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast(args[0].device.type, enabled=False):
            return function(*args, **(kwargs or {}))


def loop(setting: Setting, pieces: int) -> Step:
    """Ordinary autograd, an image at a time."""
    network = setting.network().to(memory_format=LAST)
    parameters = list(network.parameters())

    def clipped_sums(*batch: torch.Tensor) -> list[torch.Tensor]:
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for example in zip(*(tensor.split(setting.draws) for tensor in batch), strict=True):
            parts = torch.autograd.grad(setting.losses(network, *example).mean(), parameters)
            norm = torch.stack(torch._foreach_norm(parts)).norm()
            scale = (MAX_GRAD_NORM / norm).clamp(max=1).item()
            torch._foreach_add_(sums, parts, alpha=scale)
        return sums

    return in_pieces(setting, 1, network, clipped_sums, LAST)
