"""Sampling as a pipeline of `diffusers`; goes into an exported folder and is not imported here."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.samplers import SamplerSettings, sample
from privimage.errors import UserError

# The loader copies the files that this one imports, and not those that they import in turn.
_COPIED = (UserError,)


class PrivImagePipeline(DiffusionPipeline):
    """Labelled images from a network that was fine-tuned under differential privacy.

    Args:
        network: a `PrivImageNetwork`.
        sampler: the arguments of `SamplerSettings` that the run used.
        names: of the labels; empty for an unlabelled network.
        statement: what was promised.
    """

    # Only arguments with a default may be other things than networks.
    def __init__(
        self,
        network: Any,
        sampler: dict[str, Any] | None = None,
        names: list[str] | None = None,
        statement: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(sampler=sampler, names=names or [], statement=statement)

    @torch.no_grad()
    def __call__(
        self,
        label: int | str | None = None,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance: float | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Makes `batch_size` images of a label, given by number or name (None: each in turn).

        Args:
            label: the label.
            batch_size: how many images.
            generator: a CPU generator; None for other images every time.
            num_inference_steps: noise levels; None for as many as the run used.
            guidance: w of classifier-free guidance; None for that of the run.
            output_type: "pil", or "pt" for uint8 [batch_size, channels, height, width].
        """
        settings = dict(self.config.sampler or {})
        if num_inference_steps is not None:
            settings["steps"] = num_inference_steps
        if guidance is not None:
            settings["guidance"] = guidance
        if "churn_range" in settings:
            settings["churn_range"] = tuple(float(end) for end in settings["churn_range"])
        labels = self._labels(label, batch_size)
        shape = self.network.config
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        size = (batch_size, shape.image_channels, shape.image_size, shape.image_size)
        latents = torch.randn(size, generator=generator).to(self.device)
        found = sample(
            Denoiser(self.network),
            latents,
            labels.to(self.device),
            SamplerSettings(**settings),
            generator,
            shape.classes,
        )
        images = ((found + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        pixels = images[:, 0] if shape.image_channels == 1 else images.permute(0, 2, 3, 1)
        return ImagePipelineOutput(images=[Image.fromarray(image.numpy()) for image in pixels])

    def _labels(self, label: int | str | None, count: int) -> torch.Tensor:
        names = list(self.config.names)
        if label is None:
            return torch.arange(count) % max(len(names), 1)
        number = names.index(label) if label in names else label
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise ValueError(
                f"there is no label {label!r}; known are 0 … {len(names) - 1}, {names}"
            )
        return torch.full((count,), number)
