"""The folder for diffusers stands alone, and its loader opens it."""

import ast
import importlib
import json
import sys
import types

import pytest
import torch

import privimage
from privimage import durable
from privimage.data import to_bytes
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.samplers import sample
from privimage.export import export
from privimage.progress import Reporter


class _Config:
    """What the test needs of diffusers' ConfigMixin."""

    def register_to_config(self, **values):
        self.config = types.SimpleNamespace(**{**vars(getattr(self, "config", self)), **values})


def _register(init):
    def wrapped(self, **values):
        init(self, **values)
        self.config = types.SimpleNamespace(**values)

    return wrapped


class _Pipeline(_Config):
    device = torch.device("cpu")

    def register_modules(self, **modules):
        vars(self).update(modules)


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "pipeline"
    export(finished[1], "diffusers", out, Reporter(quiet=True))
    return out


@pytest.fixture
def modules(folder, monkeypatch):
    """The folder's modules, with stand-ins for diffusers and without privimage."""
    diffusers = types.ModuleType("diffusers")
    diffusers.ConfigMixin, diffusers.ModelMixin = _Config, torch.nn.Module
    diffusers.DiffusionPipeline = _Pipeline
    diffusers.ImagePipelineOutput = types.SimpleNamespace
    configuration = types.ModuleType("diffusers.configuration_utils")
    configuration.register_to_config = _register
    monkeypatch.setitem(sys.modules, "diffusers", diffusers)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", configuration)
    package = types.ModuleType("exported")
    package.__path__ = [str(folder), str(folder / "network")]
    monkeypatch.setitem(sys.modules, "exported", package)
    yield lambda name: importlib.import_module(f"exported.{name}")
    for name in [name for name in sys.modules if name.startswith("exported.")]:
        del sys.modules[name]


def test_its_source_needs_nothing_of_ours(folder):
    files = list(folder.rglob("*.py"))
    assert len(files) == 8
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (file.parent / f"{node.module}.py").exists()
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] != "privimage"
            elif isinstance(node, ast.Import):
                assert all(not alias.name.startswith("privimage") for alias in node.names)


def test_every_file_that_is_needed_is_imported_directly(folder):
    for name in ("privimage_pipeline.py", "network/privimage_network.py"):
        tree = ast.parse((folder / name).read_text())
        found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
        there = {path.stem for path in (folder / name).parent.glob("*.py")}
        assert found == there - {(folder / name).stem}


def test_it_makes_the_images_that_the_run_makes(finished, folder, modules):
    index = json.loads((folder / "model_index.json").read_text())
    config = json.loads((folder / "network/config.json").read_text())
    arguments = {name: value for name, value in config.items() if name[0] != "_"}
    network = modules("privimage_network").PrivImageNetwork(**arguments)
    weights = folder / "network/diffusion_pytorch_model.safetensors"
    network.load_state_dict(durable.read_tensors(weights))
    pipeline = modules("privimage_pipeline").PrivImagePipeline(
        network, index["sampler"], index["names"], index["statement"]
    )
    random = torch.Generator().manual_seed(5)
    made = pipeline(label="3", batch_size=4, generator=random, output_type="pt").images
    ours, random = privimage.load(finished[1]), torch.Generator().manual_seed(5)
    latents = torch.randn(4, 1, 8, 8, generator=random)
    run = ours._run
    trained = Denoiser(run.network(run.folder.stage("finetune") / "network.safetensors"))
    settings = run.recipe.synthesis.sampler
    expected = to_bytes(sample(trained, latents, torch.full((4,), 3), settings, random, 10))
    assert torch.equal(made, expected)
    assert [image.size for image in pipeline(batch_size=2).images] == [(8, 8)] * 2
    with pytest.raises(ValueError, match="there is no label"):
        pipeline(label="x")


def test_it_says_what_was_promised(finished, folder):
    statement = json.loads((folder / "model_index.json").read_text())["statement"]
    assert statement["epsilon"] == privimage.load(finished[1]).epsilon
    assert str(statement["epsilon"]) in (folder / "README.md").read_text()


# Its imports warn of other packages' future.
@pytest.mark.filterwarnings("ignore")
def test_the_loader_of_diffusers_opens_it(folder, monkeypatch, tmp_path):
    # It keeps a copy of the folder's source in its cache.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    # Of no use here, and not every torchvision fits a CPU build of torch.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipeline(label="3", batch_size=2, generator=torch.Generator().manual_seed(0)).images
    assert len(images) == 2
    assert images[0].size == (8, 8)
