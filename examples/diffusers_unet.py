"""A UNet2DModel of Hugging Face diffusers trained with privimage.dp, eight noises an image."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

from privimage.dp import DPAdamW, Privacy, PrivateEngine

SCHEDULER = DDPMScheduler(num_train_timesteps=1000)


def losses(model: UNet2DModel, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The denoising loss of each row; an image's eight rows share one clipped gradient."""
    noise, times = torch.randn_like(images), torch.randint(1000, (len(images),))
    predicted = model(SCHEDULER.add_noise(images, noise, times), times, class_labels=labels)
    return (predicted.sample - noise).square().mean((1, 2, 3))


def main(steps: int = 100, draws: int = 8) -> UNet2DModel:
    """Trains on 1,437 digits and returns the model, which diffusers' own pipelines can use."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:1437] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    widths = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
    downs, ups = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": downs, "up_block_types": ups, "num_class_embeds": 10}
    model = UNet2DModel(8, in_channels=1, out_channels=1, **widths, **blocks)

    privacy = Privacy(noise_multiplier=2.0, sample_rate=0.1, steps=steps, max_grad_norm=0.1)
    optimizer = DPAdamW(model.parameters(), lr=1e-3)
    data = images, torch.tensor(classes[:1437])
    engine = PrivateEngine(model, optimizer, losses, data, privacy, draws_per_example=draws)
    for _ in range(privacy.steps):
        engine.step()
    print(f"{engine.steps_spent} steps at ε = {engine.epsilon(delta=1e-4):.2f}")
    return model


if __name__ == "__main__":
    main()
