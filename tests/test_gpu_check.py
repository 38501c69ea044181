"""The script that checks everything on a GPU: what it asks for."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from step.methods import OURS, UNRECORDED

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / "benchmarks/gpu_check.sh").read_text()


def test_the_gpu_check_times_no_step_of_ours_that_nothing_checks():
    given = dict(re.findall(r"^(OURS|PEERS)='(.*)'$", SCRIPT, re.M))
    asked = re.findall(r"--among ('[^']+'|\S+)", SCRIPT)
    asked = [given.get(words.strip('"$'), words.strip("'")).split(",") for words in asked]
    assert len(asked) == 9
    for words in asked:
        assert UNRECORDED in words or not {OURS, "bfloat16"} & set(words)


def test_the_sanitizer_sees_every_tile_and_vector_norm_and_no_gram_matrices():
    lines = re.findall(r"^(?:LAYERS|SMALL)=.*", SCRIPT, re.M)
    script = "\n".join(["DEVICE=cuda", *lines, 'echo "$SMALL"'])
    words = subprocess.check_output(["sh", "-c", script], text=True).strip()
    command = [sys.executable, "-P", "-m", "pytest", "--noconftest", "--collect-only", "-q"]
    command += [
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "tests/ops/test_devices.py",
        "-k",
        words,
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    names = [line.rpartition("::")[2] for line in found.splitlines() if "::" in line]
    assert 80 <= len(names) <= 120
    assert not [name for name in names if "gram" in name]
    for layer in ("32x32x16", "3x1x1x1x1x64x64x16", "3x2x1x1x1x64x64x17", "1x1x0x1x1x64x64x16"):
        for test in ("weight_gradients", "what_is_recomputed_is_what_was_kept"):
            name = f"test_{test}[cuda-bfloat16-"
            assert [each for each in names if each.startswith(name) and layer in each]
    for dtype in ("float32", "bfloat16"):
        assert f"test_group_norm_silu[cuda-{dtype}-last-6x64x16x16-True]" in names


def test_a_gpu_check_that_builds_nothing_times_no_older_build_and_keeps_the_reason(tmp_path):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text('#!/bin/sh\ncase "$*" in *pip*) echo no such header; exit 1 ;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", "benchmarks/gpu_check.sh", out, "build", "kernels"],
        cwd=ROOT,
        env=os.environ | {"DEVICE": "cpu", "PYTHON": str(python), "WHEELS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no such header" in done.stdout
    assert "kernels" not in done.stdout
    with tarfile.open(out / "figures.tgz") as figures:
        assert figures.extractfile("build.log").read() == b"no such header\n"
