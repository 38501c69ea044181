"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.main import get_command

from privimage import cli, dp, recipe

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_in_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()

    def losses(model, x, y):
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    # The run is shortened; everything else is the reader's own text.
    names = {
        "model": model,
        "losses": losses,
        "x": torch.randn(600, 4),
        "y": torch.randint(3, (600,)),
    }
    exec(code.replace("steps=1000", "steps=3"), names)  # noqa: S102
    assert not torch.equal(model.weight, before)
    assert names["engine"].steps_spent == 3


def test_the_reference_has_every_name_of_the_library_once():
    page = (Path(__file__).parents[1] / "docs/api.md").read_text()
    names = re.findall(r"^::: privimage\.dp\.(\w+)$", page, re.MULTILINE)
    names.remove("auditing")
    assert names[:2] == ["Privacy", "PrivateEngine"]
    assert sorted(names) == sorted(dp.__all__)


def test_every_value_that_a_page_sets_exists():
    root = Path(__file__).parents[1]
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        for key in re.findall(r"--set[ =]'?([\w.]+)=", page.read_text()):
            assert key in recipe.Recipe("").flat(), (page, key)


def _commands():
    lines = [
        line
        for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("privimage ")]


@pytest.mark.parametrize("line", _commands())
def test_every_option_of_a_command_exists(line):
    command = get_command(cli.app)
    for word in line.split()[1:]:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
    options = {option for parameter in command.params for option in parameter.opts}
    used = [word for word in line.split() if word.startswith("--")]
    assert set(used) <= options
