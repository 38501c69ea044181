"""Builds the native part: with CUDA, for the CPU alone, or not at all.

What is built follows from what is installed, never from whether a GPU is visible. The environment
variable PRIVIMAGE_BUILD=cuda|cpu|none asks for one outcome, and fails where it can't be had.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

# Setuptools runs this file without its folder on the path.
ROOT = Path(__file__).parent
COMMON = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno"]
OPS = [*COMMON, "-fvisibility=hidden", "-Wall", "-Wextra"]
# sm_80: A100; sm_90a: H100 and H200; PTX of the last for what comes after them.
GPU_TARGETS = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
]
# The stable ABI of PyTorch 2.11: one build runs on that and every later version.
MACROS = [("TORCH_TARGET_VERSION", "0x020b000000000000")]
OUTCOMES = ("cuda", "cpu", "none")


def choose() -> str:
    """The outcome that is asked for, or the best that can be had."""
    wanted = os.environ.get("PRIVIMAGE_BUILD", "")
    if wanted not in ("", *OUTCOMES):
        sys.exit(f"PRIVIMAGE_BUILD={wanted}: known are {', '.join(OUTCOMES)}")
    if wanted == "none":
        return wanted
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        if wanted:
            sys.exit(f"PRIVIMAGE_BUILD={wanted}: there is no C++ compiler")
        return "none"
    find_cuda()
    from torch.utils.cpp_extension import CUDA_HOME
    from torch.version import cuda

    can_cuda = cuda is not None and CUDA_HOME is not None
    if wanted == "cuda" and not can_cuda:
        sys.exit("PRIVIMAGE_BUILD=cuda: needs nvcc and a CUDA build of PyTorch")
    return wanted or ("cuda" if can_cuda else "cpu")


def find_cuda() -> None:
    """Tells PyTorch where CUDA is; it looks above nvcc, which may be a script for another."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    plan = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    if found := re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE):
        os.environ["CUDA_HOME"] = os.path.realpath(found[1].strip())


def sources(suffix: str) -> list[str]:
    """The files of csrc/sources.txt with this suffix; CMakeLists.txt reads the same list."""
    lines = (ROOT / "csrc/sources.txt").read_text().split()
    return [f"csrc/{line}" for line in lines if line.endswith(suffix)]


def native(outcome: str) -> dict:
    """The arguments of setup() for what is compiled."""
    if outcome == "none":
        return {}
    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    macros = [*MACROS, ("PRIVIMAGE_CUDA", None)] if outcome == "cuda" else MACROS
    kind = CUDAExtension if outcome == "cuda" else CppExtension
    # A thread of the compiler's for each target: its slowest file decides how long a build takes.
    nvcc = ["-O3", "--fmad=false", f"--threads={len(GPU_TARGETS)}", *GPU_TARGETS]
    ops = kind(
        "privimage.ops._native",
        sources(".cpp") + (sources(".cu") if outcome == "cuda" else []),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": OPS, "nvcc": nvcc},
        libraries=["dl"],
        py_limited_api=True,
    )
    host = Pybind11Extension(
        "privimage._host",
        ["csrc/host.cpp"],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros[1:],
        extra_compile_args=COMMON,
    )
    return {
        "ext_modules": [ops, host],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
    }


chosen = choose()
sys.stdout.write(f"privimage: native build: {chosen}\n")
setup(**native(chosen))
