"""How much of a clipped gradient is common to all images, by how an image's K draws are drawn?

    python benchmarks/draws.py RUN [--images 360] [--json FILE]

DP-SGD adds the same noise however much of the clipped gradients they have in common. `common` is
the norm of the mean of all images' gradients, each scaled to norm 1: 1 if all were the same, 0 if
they were chance alone. It is estimated without bias, as the root of the product of the means of two
halves of the images. Drawn one by one, as the paper has it, and together (`unit_draws`), on the
run's test images, which are public, with its pre-trained network, where fine-tuning begins.

Predicted: a draw together is worth two one by one where a gradient's chance is mostly odd in the
noise, and one where it is the image's own. Seen on the demo (benchmarks/results/draws-cpu.json) at
K = 1, 2, 4, 8, 16: one by one 0.18, 0.21, 0.26, 0.30, 0.33; together 0.18, 0.24, 0.29, 0.34, 0.36.
So two. On 240 test images of CIFAR-10, in a run with the preset `smoke`, of 100 steps of
pre-training, where more of the chance is an image's own: one by one 0.25, 0.27, 0.31, 0.34, 0.37;
together 0.25, 0.32, 0.35, 0.36, 0.37.
"""

import argparse
from pathlib import Path

import torch
from records import commit, write
from torch import nn

from privimage.data import to_unit_range
from privimage.diffusion.denoiser import Denoiser, losses, noise_levels
from privimage.diffusion.words import normals
from privimage.dp import ExampleGradients
from privimage.progress import Reporter
from privimage.run.context import Run
from privimage.run.folder import RunFolder
from privimage.synthesis.draws import Draws, unit_draws
from privimage.threads import Workers

_ROWS = 256


def main() -> None:
    """Prints a line for each number of draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = RunFolder(options.run)
    run = Run(folder.recipe(), folder, Reporter(quiet=True), Workers(), torch.device("cpu"))
    network = run.network(folder.stage("pretrain") / "network.safetensors")
    chosen = torch.randperm(len(run.test), generator=torch.Generator().manual_seed(0))
    chosen = chosen[: options.images]
    images, labels = run.test.images[chosen], run.test.labels[chosen]
    rows = []
    for count in (1, 2, 4, 8, 16):
        row = {"draws": count}
        for name, draw in {"one by one": one_by_one, "together": unit_draws}.items():
            words = torch.randint(2**62, (len(images),), generator=torch.Generator().manual_seed(1))
            row[name] = round(common(network, images, labels, draw(words, count)), 3)
        print(f"K = {count:2}: one by one {row['one by one']:.3f}, together {row['together']:.3f}")
        rows.append(row)
    if options.json:
        write(options.json, commit=commit(), images=len(images), rows=rows)


def one_by_one(words: torch.Tensor, count: int) -> Draws:
    """Draws that know nothing of each other."""
    random = torch.Generator().manual_seed(int(words[0]))
    shape = (len(words), count)
    return Draws(
        sigma=noise_levels(torch.randn(shape, generator=random)),
        noises=torch.randint(2**62, shape, generator=random),
        coins=torch.rand(shape, generator=random),
    )


def common(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, drawn: Draws) -> float:
    """The norm of the mean of the images' gradients of norm 1; without label dropout."""
    gradients, count = ExampleGradients(network), drawn.sigma.shape[1]
    halves = [torch.zeros(gradients.size) for _ in range(2)]
    for half, total in enumerate(halves):
        for part in torch.arange(half, len(images), 2).split(max(_ROWS // count, 1)):
            shown = part.repeat_interleave(count)
            found = gradients(
                _losses,
                to_unit_range(images[shown]),
                drawn.sigma[part].flatten(),
                drawn.noises[part].flatten(),
                labels[shown],
                draws=count,
            )
            total += nn.functional.normalize(found).sum(dim=0)
    product = float(halves[0] @ halves[1]) / (len(images) / 2) ** 2
    return max(product, 0.0) ** 0.5


def _losses(
    network: nn.Module,
    images: torch.Tensor,
    sigma: torch.Tensor,
    words: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    noise = normals(words, images[0].numel()).view(images.shape)
    return losses(Denoiser(network), images, sigma, noise, labels)


if __name__ == "__main__":
    main()
