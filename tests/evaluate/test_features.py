import hashlib
import importlib
import io
import re

import peers
import pytest
import torch

from privimage.errors import UserError
from privimage.evaluate import compute_features, load_features
from privimage.evaluate import features as module
from privimage.evaluate.efficientnet import efficientnet_lite0
from privimage.progress import Reporter, Stopped

CPU = torch.device("cpu")


def _images(count, channels=3, side=32, seed=0):
    random = torch.Generator().manual_seed(seed)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def _extracted(network, images):
    return compute_features(network, images, "images", Reporter(quiet=True))


@pytest.fixture(scope="module")
def lite0():
    return load_features("efficientnet-lite0", None, 32, CPU)


def test_the_default_needs_no_file_and_says_what_it_is(lite0):
    assert lite0.facts.label == "EfficientNet-Lite0"
    assert (lite0.facts.dimensions, lite0.facts.input_size) == (1280, 32)
    features, logits = _extracted(lite0, _images(130))
    assert (features.shape, logits.shape) == ((130, 1280), (130, 1000))
    assert features.dtype == torch.float32


def test_the_network_has_the_published_number_of_parameters():
    # As the model's own description and timm count them.
    assert sum(parameter.numel() for parameter in efficientnet_lite0().parameters()) == 4_652_008


def test_an_image_has_its_features_whatever_its_batch(lite0):
    images = _images(103)
    features, _ = _extracted(lite0, images)
    alone, _ = _extracted(lite0, images[100:101])
    assert torch.allclose(features[100], alone[0], atol=1e-4)
    assert not torch.allclose(features[100], features[101], atol=1e-2)


def test_a_grey_image_is_one_of_three_equal_channels(lite0):
    grey = _images(4, channels=1)
    assert torch.equal(_extracted(lite0, grey)[0], _extracted(lite0, grey.expand(-1, 3, -1, -1))[0])


def test_padding_is_tensorflows():
    convolution = efficientnet_lite0()[0]
    # Four pixels, three taps, stride two: TensorFlow pads one pixel, at the end.
    with torch.no_grad():
        convolution.weight.zero_()[:, 0, 0, 0] = 1.0
        seen = convolution(torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4))
    assert torch.equal(seen[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))


def test_only_the_published_file_is_looked_into(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("harmed").touch, ())

    content = io.BytesIO()
    torch.save({"weight": Harmful()}, content)
    path = tmp_path / "weights.pth"
    path.write_bytes(content.getvalue())
    with pytest.raises(UserError, match=r"not the published weights: SHA-256 \w+, expected 5793"):
        load_features("efficientnet-lite0", path, 0, CPU)
    assert not (tmp_path / "harmed").exists()


def test_features_stop_between_batches(lite0):
    reporter = Reporter(quiet=True)
    reporter.request_stop()
    with pytest.raises(Stopped, match="features of test images stopped after 0 of 1"):
        compute_features(lite0, _images(3), "test images", reporter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet", "did you mean 'efficientnet-lite0'"),
        ("inceptoin", "did you mean 'inception'"),
        ("torchvision:resnet51", "did you mean 'resnet50'"),
    ],
)
def test_a_name_with_a_typo_is_answered_with_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        load_features(name, None, 0, CPU)


def test_missing_weights_and_packages_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UserError, match=r"not in .*checkpoints; put weights-inception-2015"
    ) as said:
        load_features("inception", None, 0, CPU)
    assert re.search(r"https://.*/weights-inception-2015.*SHA-256.*6726825d0af5", str(said.value))
    with pytest.raises(UserError, match=r"put resnet18-f37072fd.pth there, or name .* --weights"):
        load_features("torchvision:resnet18", None, 0, CPU)
    with pytest.raises(UserError, match="can't read the weights"):
        load_features("inception", tmp_path / "missing.pth", 0, CPU)
    with pytest.raises(UserError, match=r"299 pixels, not 64: give .*input_size=0"):
        load_features("inception", tmp_path / "missing.pth", 64, CPU)

    def fails(name):
        raise ImportError("no such module")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UserError, match=r"needs torch_fidelity, .*pip install 'privimage\[feat"):
        load_features("inception", None, 0, CPU)


def _published(monkeypatch, tmp_path, state, name):
    """A file of random weights in the place of the published one, under its hash."""
    path = tmp_path / "checkpoints" / name
    path.parent.mkdir()
    torch.save(state, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_is_that_of_torch_fidelity_and_of_pytorch_fid(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    theirs = peers.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], empty)
    monkeypatch.undo()
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            # Untrained layers would let the features vanish.
            layer.weight.mul_(2.3)
    state = theirs.state_dict()
    digest = _published(monkeypatch, tmp_path, state, module._INCEPTION_FILES[1])
    monkeypatch.setattr(module, "_INCEPTION_SHA256", digest)
    network = load_features("inception", None, 0, CPU)
    assert network.facts.label == "Inception-v3"
    images = _images(2, side=299)
    features, logits = _extracted(network, images)
    expected = theirs(images)
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])
    # The same weights in the network of pytorch-fid. At 299 pixels neither of them resizes; what it
    # takes for -1 … 1 is a 256th wider than TensorFlow's.
    monkeypatch.setattr(peers.pytorch_inception, "load_state_dict_from_url", lambda *_, **__: state)
    other = peers.pytorch_inception.InceptionV3().eval()
    with torch.no_grad():
        again = other(images / 256)[0].flatten(1)
    assert 0.01 < features.std() < 100
    assert (again - features).abs().max() < 1e-3 * features.abs().max()


def test_torchvision_networks_give_what_their_last_layer_sees(monkeypatch, tmp_path):
    torch.manual_seed(0)
    theirs = peers.torchvision.models.resnet18().eval()
    digest = _published(monkeypatch, tmp_path, theirs.state_dict(), "resnet18-f37072fd.pth")
    weights = peers.torchvision.models.ResNet18_Weights.DEFAULT
    with pytest.raises(UserError, match="expected f37072fd"):
        load_features("torchvision:resnet18", None, 0, CPU)
    monkeypatch.setattr(module, "_sha256", lambda _: "f37072fd" + digest)
    network = load_features("torchvision:resnet18", None, 224, CPU)
    assert (network.facts.label, network.facts.dimensions) == ("resnet18", 512)
    images = _images(2, side=224)
    features, logits = _extracted(network, images)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (weights.transforms().mean, weights.transforms().std)
    )
    with torch.no_grad():
        expected = theirs((images / 255 - mean) / std)
        assert torch.allclose(theirs.fc(features), expected, atol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-5)
