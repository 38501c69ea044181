"""The UNet as a model of `diffusers`; goes into an exported folder and is not imported here."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.unet import UNet, UNetShape
from privimage.errors import UserError

# The loader copies the files that this one imports, and not those that they import in turn.
_COPIED = (UserError,)


class PrivImageNetwork(ModelMixin, ConfigMixin):
    """A `UNet` or `CompactUNet`; the arguments are those of `UNetShape`, and which of the two."""

    @register_to_config
    def __init__(
        self,
        kind: str,
        image_size: int,
        image_channels: int,
        channels: int,
        multipliers: tuple[int, ...],
        attention: tuple[int, ...],
        classes: int,
        blocks_per_level: int,
    ) -> None:
        super().__init__()
        shape = UNetShape(
            image_size=image_size,
            image_channels=image_channels,
            channels=channels,
            multipliers=tuple(multipliers),
            attention=tuple(attention),
            classes=classes,
            blocks_per_level=blocks_per_level,
        )
        self.unet = CompactUNet(shape) if kind == "compact" else UNet(shape)

    def forward(
        self, x: torch.Tensor, noise_condition: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """As `UNet.forward`."""
        output: torch.Tensor = self.unet(x, noise_condition, labels)
        return output
