"""Imports flow one way: who may import whom, held against the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "privimage"
GROUND = {"errors", "durable", "checkpoint", "progress", "loop", "seeds", "threads", "pace"}
GROUND |= {"acceleration", "machine", "promise", "recording"}
MAY_IMPORT = {
    "errors": set(),
    "durable": {"errors"},
    "checkpoint": {"errors", "durable"},
    "progress": set(),
    "loop": {"checkpoint", "progress"},
    "seeds": set(),
    "machine": set(),
    "threads": {"machine"},
    "pace": set(),
    "promise": set(),
    "acceleration": set(),
    "recording": set(),
    "networks": {"errors"},
    "_host": set(),
    "ops": {"errors", "_host"},
    "dp": {"ops", "durable", "errors", "promise", "recording"},
    "data": GROUND,
    "semantics": GROUND | {"networks", "data", "dp"},
    "diffusion": GROUND | {"data", "ops"},
    "synthesis": GROUND | {"data", "dp", "diffusion"},
    "evaluate": GROUND | {"networks", "data"},
    "recipe": {"errors", "data", "dp", "semantics", "diffusion", "synthesis", "evaluate"},
    "release": {"data", "dp", "promise"},
    "run": GROUND | {"recipe", "data", "diffusion", "dp", "evaluate", "synthesis"},
    "audit": {"durable", "dp", "promise", "run"},
    "report": {"errors", "durable", "data", "dp", "evaluate", "audit", "recipe", "release", "run"}
    | {"promise"},
    "pipeline": GROUND
    | {"data", "semantics", "diffusion", "synthesis", "evaluate", "dp", "recipe", "run"}
    | {"release", "report"},
    "assessment": GROUND
    | {"pipeline", "run", "recipe", "data", "dp", "evaluate", "release", "report"},
    "doctor": {"errors", "machine", "ops", "dp"},
    "selftest": {"ops", "dp", "data", "synthesis", "threads", "seeds"},
    "export": GROUND | {"data", "dp", "hub", "recipe", "release", "run"},
    "hub": {"errors", "durable", "diffusion"},
    "synthesizer": GROUND | {"data", "diffusion", "dp", "release", "run", "synthesis"},
    "budget": {"errors", "durable", "dp", "promise"},
    "inspection": {"durable", "data"},
    "cli": {"errors", "progress", "recipe", "data", "pipeline", "audit", "doctor", "budget"}
    | {"assessment", "inspection", "selftest", "export", "report", "run"},
    "__init__": {"synthesizer"},
    "__main__": {"cli"},
}
MAY_IMPORT_IN_DP = {
    "noise": set(),
    "sampling": {"noise"},
    "poisson_loader": {"noise", "sampling"},
    "clipping": set(),
    "accounting": set(),
    "ledger": {"accounting", "sampling"},
    "rules": set(),
    "gradients": {"rules", "clipping"},
    "privacy": {"accounting", "ledger", "clipping"},
    "gradient_noise": {"noise", "clipping"},
    "optimizer_state": set(),
    "flat_optimizer": {"gradient_noise", "noise", "optimizer_state"},
    "optimizers": {"flat_optimizer", "noise"},
    "stepping": {"flat_optimizer", "gradient_noise", "optimizer_state"},
    "auditing": {"accounting"},
    "step_account": {"accounting", "ledger", "privacy"},
    "processes": set(),
    "checked_model": set(),
    "batch_sum": {"checked_model", "clipping", "gradients", "poisson_loader", "rules"},
    "backward_guard": set(),
    "private_engine": {"gradient_noise", "gradients", "ledger", "noise", "privacy", "processes"}
    | {"backward_guard", "batch_sum", "poisson_loader", "step_account", "stepping"},
}
ERRORS_ONLY = [
    "ops/reference.py",
    "ops/reference_noise.py",
    "diffusion/unet.py",
    "diffusion/denoiser.py",
    "diffusion/samplers.py",
    "semantics/selection.py",
]


def _imported_rooms(path, within="privimage"):
    """The rooms of a package that a file imports, by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == within:
            names = [f"{within}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        inside = (name for name in names if name.startswith(f"{within}."))
        yield from (name.removeprefix(f"{within}.").split(".")[0] for name in inside)


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(_imported_rooms(path)) - {room} <= MAY_IMPORT[room]


DP = ROOT / "dp"
IN_DP = [path for path in SOURCES if path.is_relative_to(DP) and path != DP / "__init__.py"]


@pytest.mark.parametrize("path", IN_DP, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_of_the_dp_library_imports_only_those_below_it(path):
    room = path.relative_to(DP).parts[0].removesuffix(".py")
    assert set(_imported_rooms(path, "privimage.dp")) - {room} <= MAY_IMPORT_IN_DP[room]


@pytest.mark.parametrize("name", ERRORS_ONLY)
def test_the_files_that_are_checked_against_papers_stand_alone(name):
    assert set(_imported_rooms(ROOT / name)) <= {"errors", "ops"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_its_job_and_stays_readable(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.args, *node.args.kwonlyargs]
            arguments = sum(each.arg != "self" for each in given)
            # A command's arguments are its options; a reference's are the dispatcher's schema.
            is_command = path.parent.name == "cli" or path.name == "reference.py"
            assert node.end_lineno - node.lineno < 100, node.name
            assert arguments <= 10 or is_command, node.name
