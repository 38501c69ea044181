"""The noise that makes a private gradient of a clipped sum, and the scale that makes it a mean."""

from dataclasses import dataclass

from privimage import ops
from privimage.dp.clipping import GRID_UNITS
from privimage.dp.noise import Domain, SecretKey, SecretStream
from privimage.errors import UserError, check_non_negative, check_positive


@dataclass(frozen=True)
class GradientNoise:
    """What turns an integer sum into a private gradient: (sum + noise) · `scale`.

    Attributes:
        std: standard deviation of the noise in grid steps.
        scale: gradient of a grid step.
        stream: of the domain UPDATE.
    """

    std: float
    scale: float
    stream: SecretStream

    @classmethod
    def make(
        cls,
        noise_multiplier: float,
        expected_batch_size: float,
        key: SecretKey | None = None,
        max_grad_norm: float = 1.0,
    ) -> "GradientNoise":
        """The noise for a mean gradient, in units of which the clipping norm is `max_grad_norm`.

        Raises:
            UserError: a number is out of range.
        """
        check_non_negative("noise_multiplier", noise_multiplier)
        check_positive("expected_batch_size", expected_batch_size)
        std = noise_multiplier * GRID_UNITS
        if std > ops.LARGEST_STD:
            raise UserError(
                f"noise_multiplier is {noise_multiplier:g}, but at most 2^28 is possible"
            )
        scale = max_grad_norm / (GRID_UNITS * expected_batch_size)
        return cls(std, scale, (key or SecretKey.from_os()).stream(Domain.UPDATE))
