"""The pages for other projects run as they stand there, and the examples do, cut down."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from privimage import dp
from privimage.dp import rules

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


# Its imports warn of other packages' future.
@pytest.mark.filterwarnings("ignore")
def test_a_unet_of_diffusers_is_trained(capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = _module("diffusers_unet").main(steps=1, draws=1)
    assert model.conv_in.weight.isfinite().all()
    assert "1 steps at ε" in capsys.readouterr().out


def _blocks(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    examples = [path.read_text() for path in EXAMPLES]
    return [block for block in blocks if block not in examples]


def test_the_page_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.setattr(rules, "REGISTERED", dict(rules.REGISTERED))
    monkeypatch.setattr("privimage.dp.exchange.REGISTERED", rules.REGISTERED)
    names = {
        "model": nn.Linear(4, 3),
        "losses": lambda m, x, y: nn.functional.cross_entropy(m(x), y, reduction="none"),
        "x": torch.randn(600, 4),
        "y": torch.randint(3, (600,)),
    }
    blocks = _blocks(PAGES[0])
    assert len(blocks) == 5
    for block in blocks:
        # Loops are shortened, and each part has a model of its own; all else stands there.
        names["model"] = nn.Linear(4, 3)
        exec(re.sub(r"(steps=|range\()1000", r"\g<1>2", block), names)  # noqa: S102
    assert names["engine"].steps_spent == 2
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_ours_on_a_page_exists(page):
    text = page.read_text()
    called = re.findall(r"`(?:PrivateEngine|Privacy|engine|ledger)\.(\w+)", text)
    known = {*dir(dp.PrivateEngine), *dir(dp.Privacy), *dir(dp.Ledger)}
    assert set(called) <= known
    options = re.findall(r"`(draws_per_example|micro_batch|ledger|stability)=", text)
    for option in options:
        assert option in dp.PrivateEngine.__init__.__kwdefaults__ or hasattr(dp.Privacy, option)
