"""The pages for other projects run as they stand there, and the examples do, cut down."""

import importlib.util
import re
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch import distributed, nn
from torch.nn.utils import parametrizations
from truth import one_at_a_time

from privimage import dp
from privimage.data import ImageShape
from privimage.data.load import load_public
from privimage.dp.rules import registry
from privimage.errors import UserError

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "docs/library.md", ROOT / "docs/from-opacus.md"]


def _module(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_under_40_lines_and_is_on_the_page(path):
    assert len(path.read_text().splitlines()) < 40
    assert f"```python\n{path.read_text()}```" in PAGES[0].read_text()


def test_the_digits_are_trained(capsys):
    assert 0.0 <= _module("digits").main(steps=1) <= 1.0
    assert re.search(r"accuracy .*% at ε = [23]\.\d\d", capsys.readouterr().out)


def test_sentences_are_classified():
    torch.manual_seed(0)
    assert 0.0 <= _module("text").main(epochs=2) <= 1.0


def test_adapters_are_trained_and_nothing_else():
    model = _module("lora").main(steps=3)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("0.down", "0.up", "2.down", "2.up")
    }
    assert model[2].up.abs().max() > 0


# Its imports warn of other packages' future.
@pytest.mark.filterwarnings("ignore")
def test_a_unet_of_diffusers_is_trained(capsys, monkeypatch):
    # Of no use here, and not every torchvision fits a CPU build of torch.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = _module("diffusers_unet").main(steps=1, draws=1)
    assert model.conv_in.weight.isfinite().all()
    assert "1 steps at ε" in capsys.readouterr().out


def _blocks(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    examples = [path.read_text() for path in EXAMPLES]
    return [block for block in blocks if block not in examples]


def _layers():
    """Every layer that the page's table names, with the shape of an input, by its row."""
    tokens, transformer = torch.randint(0, 5, (4, 3)), (4, 2, 8, 0.0)
    return {
        "Linear": (nn.Linear(3, 4), (6, 3)),
        "Conv1d": (nn.Conv1d(3, 4, 2), (3, 5)),
        "Conv2d": (nn.Conv2d(3, 4, 2), (3, 5, 4)),
        "Conv3d": (nn.Conv3d(3, 4, 2), (3, 3, 4, 3)),
        "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 2), (3, 5)),
        "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 2), (3, 5, 4)),
        "ConvTranspose3d": (nn.ConvTranspose3d(3, 4, 2), (3, 3, 4, 3)),
        "Embedding": (nn.Embedding(5, 4, padding_idx=0), tokens),
        "EmbeddingBag": (nn.EmbeddingBag(5, 4, padding_idx=0), tokens),
        "GroupNorm": (nn.GroupNorm(2, 4), (4, 5)),
        "InstanceNorm1d": (nn.InstanceNorm1d(4, affine=True), (4, 5)),
        "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), (4, 5, 3)),
        "InstanceNorm3d": (nn.InstanceNorm3d(4, affine=True), (4, 5, 3, 2)),
        "LayerNorm": (nn.LayerNorm(4), (3, 4)),
        "RMSNorm": (nn.RMSNorm(4), (3, 4)),
        "PReLU": (nn.PReLU(4), (4, 3)),
        "Bilinear": (nn.Bilinear(4, 4, 2), (4,)),
        "LSTM": (nn.LSTM(4, 3, batch_first=True), (5, 4)),
        "GRU": (nn.GRU(4, 3, batch_first=True), (5, 4)),
        "RNN": (nn.RNN(4, 3, batch_first=True), (5, 4)),
        "LSTMCell": (nn.LSTMCell(4, 3), (4,)),
        "GRUCell": (nn.GRUCell(4, 3), (4,)),
        "RNNCell": (nn.RNNCell(4, 3), (4,)),
        "MultiheadAttention": (nn.MultiheadAttention(4, 2, batch_first=True), (3, 4)),
        "TransformerEncoderLayer": (
            nn.TransformerEncoderLayer(*transformer, batch_first=True),
            (3, 4),
        ),
        "TransformerDecoderLayer": (
            nn.TransformerDecoderLayer(*transformer, batch_first=True),
            (3, 4),
        ),
        "Transformer": (nn.Transformer(4, 2, 1, 1, 8, 0.0, batch_first=True), (3, 4)),
        "weight_norm": (parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
        "orthogonal": (parametrizations.orthogonal(nn.Linear(3, 4)), (3,)),
    }


REFUSED = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "BatchNorm3d": lambda: nn.BatchNorm3d(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
}
INPUTS = {"Bilinear": 2, "MultiheadAttention": 3, "TransformerDecoderLayer": 2, "Transformer": 2}


def _named_layers():
    """The names in the first column of the page's table, those of refused rows apart."""
    table = re.findall(r"^\| (`.*?) \| (.*?) \|$", PAGES[0].read_text(), re.MULTILINE)
    rows = [(set(re.findall(r"`(\w+)`", names)), text) for names, text in table]
    taken = set().union(*(names for names, text in rows if not text.startswith("refused")))
    refused = set().union(*(names for names, text in rows if text.startswith("refused")))
    return taken, refused


def test_the_table_names_the_layers_that_are_tried():
    assert _named_layers() == (set(_layers()), set(REFUSED))


@pytest.mark.parametrize("name", _layers())
def test_a_layer_of_the_table_is_exact(name):
    torch.manual_seed(0)
    layer, shape = _layers()[name]
    layer = layer.double()
    x = shape if isinstance(shape, torch.Tensor) else torch.randn(4, *shape).double()

    def losses(model, x):
        output = model(*[x] * INPUTS.get(name, 1))
        output = output[0] if isinstance(output, tuple) else output
        return output.flatten(1).cumsum(1).sin().sum(1)

    expected = one_at_a_time(layer, losses, (x,), 2)
    engine = dp.ExampleGradients(layer)
    torch.testing.assert_close(engine(losses, x, draws=2), expected, rtol=1e-9, atol=1e-10)
    assert expected.abs().max() > 1e-6
    dp.check_independence(engine, losses, x, draws=2)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_the_table_refuses_is_refused(name):
    model = nn.Sequential(REFUSED[name]())
    with pytest.raises(UserError, match=r"'0|module '0"):
        dp.ExampleGradients(model)(lambda m, x: m(x).sum(1), torch.randn(2, 3))


def test_the_page_runs_from_top_to_bottom(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    monkeypatch.setattr("privimage.dp.gradients.exchange.REGISTERED", registry.REGISTERED)
    names = {
        "model": nn.Linear(4, 3),
        "losses": lambda m, x, y: nn.functional.cross_entropy(m(x), y, reduction="none"),
        "x": torch.randn(600, 4),
        "y": torch.randint(3, (600,)),
    }
    blocks = _blocks(PAGES[0])
    assert len(blocks) == 9
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", "0")
    for block in blocks:
        # Loops are shortened, and each part has a model of its own; all else stands there.
        names["model"] = nn.Linear(4, 3)
        exec(re.sub(r"(steps=|range\()1000", r"\g<1>2", block), names)  # noqa: S102
        if distributed.is_initialized():
            distributed.destroy_process_group()
    assert names["engine"].steps_spent == 2
    assert torch.equal(names["fast"](names["x"], names["y"]), names["total"])
    texts = torch.randint(50, (3, 7)), torch.tensor([2, 7, 5])
    read = lambda m, x, n: sum(part.flatten(1).sum(1) for part in m(x, n))  # noqa: E731
    dp.check_independence(dp.ExampleGradients(names["Reader"]()), read, *texts)
    for operation, rows in (("scale", 1), ("shift", 2)):
        parameter = nn.Parameter(torch.randn(4))
        layer = nn.ParameterList([parameter])
        found = dp.ExampleGradients(layer)(
            lambda m, x, run=names[operation]: run(x, m[0]).sin().sum(1),
            x := torch.randn(4, 4),
            draws=rows,
        )
        run = {"scale": lambda x, p: x * p.exp(), "shift": lambda x, p: x + p}[operation]
        expected = [
            torch.autograd.grad(run(part, parameter).sin().sum(1).mean(), parameter)[0]
            for part in x.split(rows)
        ]
        torch.testing.assert_close(found, torch.stack(expected))


def test_a_data_set_of_dictionaries_is_trained_on():
    (block,) = _blocks(PAGES[1])
    names = {}
    exec(block, names)  # noqa: S102
    data = [{"x": [float(i), 1.0], "y": i % 2, "name": str(i)} for i in range(20)]
    model = nn.Linear(2, 2)
    engine = dp.PrivateEngine(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda m, x, y: nn.functional.cross_entropy(m(x), y, reduction="none"),
        names["Tuples"](data, ["x", "y"]),
        dp.Privacy(noise_multiplier=1.0, sample_rate=0.5, steps=1),
    )
    engine.step()
    assert engine.steps_spent == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_ours_on_a_page_exists(page):
    text = page.read_text()
    called = re.findall(r"`(?:PrivateEngine|Privacy|engine|ledger)\.(\w+)", text)
    known = {*dir(dp.PrivateEngine), *dir(dp.Privacy), *dir(dp.Ledger)}
    assert set(called) <= known
    options = re.findall(r"`(draws_per_example|micro_batch|ledger|stability)=", text)
    for option in options:
        assert option in dp.PrivateEngine.__init__.__kwdefaults__ or hasattr(dp.Privacy, option)


def test_signs_are_drawn_as_a_public_set(tmp_path):
    emoji = _module("data/emoji")
    emoji.CODES, emoji.IMAGES_PER_CLASS = range(ord("A"), ord("D")), 4
    font = Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    assert emoji.main(str(font), str(tmp_path / "signs.npz")) == 3
    drawn = load_public(str(tmp_path / "signs.npz"), ImageShape(28, 1), pytest.fail)
    assert drawn.names[0] == "latin capital letter a"
    assert drawn.labels.bincount().tolist() == [4, 4, 4]
    # No two are alike.
    assert len(drawn.images.unique(dim=0)) == 12
