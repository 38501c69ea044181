"""Imports flow one way: who may import whom, held against the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "privimage"
GROUND = {"errors", "durable", "checkpoint", "progress", "loop", "seeds", "threads", "pace"}
GROUND |= {"acceleration"}
MAY_IMPORT = {
    "errors": set(),
    "durable": {"errors"},
    "checkpoint": {"errors", "durable"},
    "progress": set(),
    "loop": {"checkpoint", "progress"},
    "seeds": set(),
    "threads": set(),
    "pace": set(),
    "acceleration": set(),
    "allocator": set(),
    "networks": {"errors"},
    "_host": set(),
    "ops": {"errors", "_host"},
    "dp": {"ops", "durable", "errors"},
    "data": GROUND,
    "semantics": GROUND | {"networks", "data", "dp"},
    "diffusion": GROUND | {"data"},
    "synthesis": GROUND | {"data", "dp", "diffusion"},
    "evaluate": GROUND | {"networks", "data"},
    "recipe": {"errors", "data", "dp", "semantics", "diffusion", "synthesis", "evaluate"},
    "run": {"errors", "durable", "recipe"},
    "release": {"errors", "durable", "data", "dp", "evaluate"},
    "context": GROUND | {"run", "recipe", "data", "diffusion", "dp", "evaluate"},
    "measurement": {"context", "data", "dp", "errors", "evaluate"},
    "stages": GROUND
    | {"context", "measurement", "data", "dp", "semantics", "diffusion", "synthesis", "evaluate"}
    | {"release"},
    "schedule": {"errors", "context", "stages", "run", "recipe", "dp"},
    "summary": {"durable", "progress", "dp", "evaluate", "release", "context"},
    "spending": {"errors", "durable", "dp", "recipe", "run", "context"},
    "forecast": GROUND | {"data", "diffusion", "semantics", "evaluate", "context", "measurement"},
    "preflight": {"errors", "durable", "data", "recipe", "semantics", "context", "measurement"},
    "audit": {"durable", "dp", "evaluate", "run", "spending"},
    "report": {"errors", "durable", "data", "dp", "evaluate", "audit", "recipe", "release", "run"},
    "pipeline": GROUND
    | {"context", "forecast", "preflight", "report", "schedule", "spending", "summary", "run"}
    | {"recipe", "dp"},
    "assessment": GROUND
    | {"context", "measurement", "pipeline", "schedule", "summary", "run", "recipe", "data", "dp"}
    | {"evaluate", "release"},
    "doctor": {"errors", "ops", "dp"},
    "selftest": {"ops", "dp", "data", "synthesis", "threads"},
    "export": GROUND | {"data", "dp", "hub", "recipe", "release", "run", "spending"},
    "hub": {"errors", "durable", "diffusion"},
    "synthesizer": GROUND
    | {"context", "data", "diffusion", "dp", "evaluate", "release", "run", "spending"},
    "budget": {"errors", "durable", "dp"},
    "inspection": {"durable", "data"},
    "cli": {"errors", "progress", "recipe", "data", "pipeline", "audit", "doctor", "budget"}
    | {"allocator", "assessment", "inspection", "selftest", "export", "report", "run"}
    | {"schedule"},
    "__init__": {"synthesizer"},
    "__main__": {"cli"},
}
ERRORS_ONLY = [
    "ops/reference.py",
    "diffusion/unet.py",
    "diffusion/denoiser.py",
    "diffusion/samplers.py",
    "semantics/selection.py",
]


def _imported_rooms(path):
    """The rooms of ours that a file imports, by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "privimage":
            names = [f"privimage.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("privimage."))


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(_imported_rooms(path)) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("name", ERRORS_ONLY)
def test_the_files_that_are_checked_against_papers_stand_alone(name):
    assert set(_imported_rooms(ROOT / name)) <= {"errors"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_its_job_and_stays_readable(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            # A command's arguments are its options; a reference's are the dispatcher's schema.
            is_command = path.parent.name == "cli" or path.name == "reference.py"
            assert node.end_lineno - node.lineno < 100, node.name
            assert arguments <= 9 or is_command, node.name
