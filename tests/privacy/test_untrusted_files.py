"""No file can make this code run what is in it: nothing unpickles, unpacks to disk or evaluates."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "privimage"
SOURCES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
# Calls by their last two names: what they load may run, or unpack to anywhere.
METHODS = {"extractall", "extract", "unpack_archive", "read_pickle", "system", "popen", "run_path"}
LOADERS = {"torch.load", "torch.jit.load", "hub.load"}
NUMPY = {"np.load", "numpy.load"}


# Published weights, of a file whose hash was checked, and tensors alone.
EXCEPTIONS = {"evaluate/features.py": ["torch.load"]}


def dangers(source):
    """Every use in `source` of what runs or unpacks the content of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            yield from {(node.module or "").split(".")[0]} & MODULES
            yield from {alias.name for alias in node.names} & METHODS
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "allow_pickle"
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(call):
    name = ast.unparse(call.func)
    last = name.rsplit(".", 1)[-1]
    keywords = {keyword.arg for keyword in call.keywords}
    if name in BUILT_IN or ("." in name and last in METHODS) or name in LOADERS:
        yield name
    if name in NUMPY and "allow_pickle" not in keywords:
        yield f"{name} without allow_pickle=False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_or_unpacks_what_a_file_holds(path):
    found = list(dangers(path.read_text()))
    assert found == EXCEPTIONS.get(str(path.relative_to(ROOT)), [])


def test_what_is_loaded_nevertheless_is_tensors_alone():
    for name in EXCEPTIONS:
        calls = [node for node in ast.walk(ast.parse((ROOT / name).read_text())) if _loads(node)]
        for call in calls:
            kept = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert kept["weights_only"] == "True"


def _loads(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in LOADERS


@pytest.mark.parametrize(
    "bug",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "archive.extract(member)",
        "shutil.unpack_archive(path)",
        "from shutil import unpack_archive",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
    ],
)
def test_a_planted_use_is_found(bug):
    assert list(dangers(bug))
