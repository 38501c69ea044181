"""The native build: there where it can be, equal to Python in its constants, strict in its math."""

import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from privimage import ops
from privimage.ops import reference

ROOT = Path(__file__).parents[1]
NATIVE = ops._library.is_native
FAST_MATH = re.compile(
    r"ffast-math|Ofast|use_fast_math|funsafe-math|ffinite-math|fassociative-math|freciprocal-math"
    r"|fp-contract=(?!off)|fmad=(?!false)"
)
needs_native = pytest.mark.skipif(not NATIVE, reason="no native build")


def _setup(outcome, path=None):
    environment = os.environ | {"PRIVIMAGE_BUILD": outcome}
    if path is not None:
        environment |= {"PATH": str(path), "CXX": "c++"}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_where_there_is_a_compiler_the_native_build_is_loaded():
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    wanted = os.environ.get("PRIVIMAGE_BUILD") != "none"
    assert (compiler is not None and wanted) == NATIVE
    assert ops.describe_build().startswith(("cpu, ", "cuda, ") if NATIVE else "none")


def test_an_unknown_outcome_is_refused_with_the_known_ones():
    result = _setup("gpu")
    assert result.returncode == 1
    assert "PRIVIMAGE_BUILD=gpu: known are cuda, cpu, none" in result.stderr


@pytest.mark.parametrize("outcome", ["cpu", "cuda"])
def test_what_is_asked_for_and_can_not_be_had_fails_loudly(outcome, tmp_path):
    result = _setup(outcome, path=tmp_path)
    assert result.returncode == 1
    assert f"PRIVIMAGE_BUILD={outcome}: there is no C++ compiler" in result.stderr


def test_no_native_code_is_built_where_none_is_wanted(tmp_path):
    for result in (_setup("none"), _setup("", path=tmp_path)):
        assert result.returncode == 0, result.stderr
        assert "native build: none" in result.stdout


@needs_native
def test_the_grid_of_cpp_is_the_grid_of_python():
    from privimage import _host

    assert _host.grid_bits == reference.GRID_BITS == ops.GRID_BITS
    norms = torch.tensor([0.0, 0.5, 1.0, 3.0, 1e12, 1e40, 1e60], dtype=torch.float64)
    for others in ((0.7,), (1e-36,), (0.7, 0.5, 0.01)):
        expected = reference.grid_scales(norms, *others).tolist()
        # Bitwise: the same operations in the same order.
        assert [_host.grid_scale(norm**2, *others) for norm in norms.tolist()] == expected
    assert [_host.grid_coordinate(value, 2.0) for value in (1.4, -1.4, 0.4)] == [2, -2, 0]
    assert [_host.grid_scale(value, 1.0) for value in (math.inf, math.nan)] == [0.0, 0.0]


def _build_files():
    named = [ROOT / name for name in ("setup.py", "CMakeLists.txt", "Makefile", "pyproject.toml")]
    written = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".pyc"]
    return [*named, ROOT / ".ci/run", *written]


def test_nothing_asks_for_fast_math():
    for path in _build_files():
        found = FAST_MATH.search(path.read_text())
        assert found is None, f"{path}: {found}"
    assert FAST_MATH.search("-O3 -ffast-math")
    assert FAST_MATH.search("--fmad=true")
    for name in ("setup.py", "CMakeLists.txt"):
        text = (ROOT / name).read_text()
        assert "-ffp-contract=off" in text
        assert "--fmad=false" in text


def test_no_library_switched_subnormal_numbers_off():
    # A library linked with fast math does so for the whole process when it is loaded.
    assert np.float64(1e-310) / 2 > 0
    assert np.float32(1e-40) / np.float32(2) > 0


@pytest.mark.parametrize("room", ["kernels", "cpu", "shared"])
def test_kernels_and_cpu_code_know_no_torch(room):
    sources = [path for path in (ROOT / "csrc" / room).rglob("*") if path.is_file()]
    assert sources
    for path in sources:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        assert not [name for name in included if re.match(r"torch|ATen|c10|ops/|Python", name)], (
            path
        )


def test_ops_see_the_stable_interface_of_torch_alone():
    for path in (ROOT / "csrc/ops").rglob("*"):
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        of_torch = [name for name in included if re.match(r"torch|ATen|c10", name)]
        stable = ("torch/csrc/stable/", "torch/headeronly/")
        assert all(name.startswith(stable) for name in of_torch), path


def test_operators_of_a_gpu_do_not_ask_for_a_tensor_on_the_cpu():
    found = []
    for path in (ROOT / "csrc/ops").glob("*.cpp"):
        found += re.findall(r"\b\w+_cuda\(.*?^}", path.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) > 10
    assert [body for body in found if "in_its_type(" in body or "DeviceType::CPU" in body] == []


@needs_native
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_the_undefined_symbols_are_those_of_the_stable_interface():
    library = find_spec("privimage.ops._native").origin
    lines = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True).split(
        "\n"
    )
    # Weak symbols may stay undefined; those with a version are of libc, libstdc++ and libcudart.
    names = [line.split()[1] for line in lines if line.split()[:1] == ["U"] and "@" not in line]
    ours = [name for name in names if not re.match(r"_ZN?K?St", name)]
    assert any(name.startswith("torch_") for name in ours)
    assert [name for name in ours if not name.startswith(("aoti_torch_", "torch_"))] == []
