"""Writes a pipeline folder that `diffusers` opens by itself, without PrivImage.

Its UNet2DModel adds the label after, not before, the embedding's linear layers and scales no skip,
so that no weights of it compute our networks. The folder therefore brings their source: the files
that stand alone, whose imports of one another are made relative, as the loader wants them.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from privimage import durable
from privimage.diffusion.samplers import SamplerSettings
from privimage.diffusion.unet import UNetShape

_PIPELINE, _NETWORK = "privimage_pipeline", "privimage_network"
# The first version whose loader was tried on such a folder.
_DIFFUSERS = "0.42.1"
_SOURCES = {
    "": ("hub.pipeline", "diffusion.denoiser", "diffusion.samplers", "errors"),
    "network": ("hub.network", "diffusion.compact_unet", "diffusion.unet", "errors"),
}
_IMPORT = re.compile(r"^from privimage\.(?:\w+\.)?(\w+) import", re.MULTILINE)


def write_pipeline(
    folder: Path,
    kind: str,
    shape: UNetShape,
    weights: Mapping[str, torch.Tensor],
    sampler: SamplerSettings,
    names: tuple[str, ...],
    statement: Mapping[str, Any],
) -> None:
    """Writes the pipeline: weights as safetensors, configurations, source.

    Args:
        folder: exists and is empty.
        kind: "ncsnpp" or "compact".
        shape: of the network.
        weights: by parameter name.
        sampler: what the pipeline samples with by default.
        names: of the labels.
        statement: what was promised; readable as `pipeline.config.statement`.

    Raises:
        UserError: the disk refuses.
    """
    network = folder / "network"
    network.mkdir()
    for place, modules in _SOURCES.items():
        for module in modules:
            name = f"privimage_{module.rpartition('.')[2]}.py"
            durable.write_text(folder / place / name, _standing_alone(module))
    settings = asdict(sampler) | {"churn_range": [str(end) for end in sampler.churn_range]}
    index = {
        "_class_name": [_PIPELINE, "PrivImagePipeline"],
        "_diffusers_version": _DIFFUSERS,
        "network": [_NETWORK, "PrivImageNetwork"],
        "sampler": settings,
        "names": list(names),
        "statement": {**statement, "privimage_version": version("privimage")},
    }
    durable.write_json(folder / "model_index.json", index)
    config = {"_class_name": "PrivImageNetwork", "_diffusers_version": _DIFFUSERS, "kind": kind}
    durable.write_json(network / "config.json", {**config, **asdict(shape)})
    tensors = {f"unet.{name}": tensor for name, tensor in weights.items()}
    durable.write_tensors(network / "diffusion_pytorch_model.safetensors", tensors)


def _standing_alone(module: str) -> str:
    """The source of one of our modules, importing its neighbours by their names in the folder."""
    *room, name = module.split(".")
    source = resources.files("privimage").joinpath(*room, f"{name}.py").read_text(encoding="utf-8")
    return _IMPORT.sub(r"from .privimage_\1 import", source)
