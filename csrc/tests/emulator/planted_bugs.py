"""Plants bugs in the CUDA kernels, one at a time, and fails unless the emulator's tests kill each.

A bug is a piece of a kernel's text and what stands there instead. The kernels themselves know
nothing of it. `planted_bugs.py COMPILER LIBRARY` takes the C++ compiler and the emulator as built.
The standard library's headers, a third of each compilation, are compiled once.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bugs import BUGS
from bugs.bug import Bug

CSRC = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]
# Seconds after which a kernel that does not end counts as killed; whole tests take five.
LIMIT = 120


def precompiled(folder: Path, compiler: str) -> Path:
    """A header that includes all of the standard library that the emulator and its tests do."""
    sources = [*CSRC.glob("tests/**/*.h"), *CSRC.glob("tests/emulator/*.cpp")]
    found = (re.findall(r"^#include <(\w+)>$", file.read_text(), re.M) for file in sources)
    header = folder / "standard.h"
    header.write_text("".join(f"#include <{name}>\n" for name in sorted(set().union(*found))))
    subprocess.run([compiler, *FLAGS, "-x", "c++-header", header], check=True)
    return header


def run(name: str, file: Path, text: str, *, compiler: str, library: str, header: Path) -> str:
    """What the test `name` says if a file's text is this: an empty string if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / file
        planted.parent.mkdir()
        planted.write_text(text)
        test = CSRC / f"tests/emulator/test_{name}.cpp"
        program = Path(folder) / "test"
        # Our folder stands first: it shadows the kernel and nothing else.
        paths = ["-include", header, f"-I{folder}", f"-I{CSRC}"]
        command = [compiler, *FLAGS, *paths, test, library, "-o", program]
        subprocess.run(command, check=True)
        try:
            done = subprocess.run(
                [program], capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"does not end in {LIMIT} s"
        if done.returncode == 0:
            return ""
        last = done.stderr.strip().rpartition("\n")[2]
        return last.removeprefix("  what():  ") or f"killed by signal {-done.returncode}"


def planted(bug: Bug) -> str:
    """The text of the bug's file with the bug in it."""
    text = (CSRC / bug.file).read_text()
    if text.count(bug.before) != 1:
        sys.exit(f"{bug.name}: {bug.before!r} stands {text.count(bug.before)} times in {bug.file}")
    return text.replace(bug.before, bug.after)


def main(compiler: str, library: str) -> int:
    """Plants every bug; 0 if all of them are killed."""
    killed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        header = precompiled(Path(folder), compiler)
        told_by = partial(run, compiler=compiler, library=library, header=header)
        for name, file in sorted({bug.test: bug.file for bug in BUGS}.items()):
            found = told_by(name, file, (CSRC / file).read_text())
            if found:
                sys.exit(f"{name}: fails without any bug: {found}")
        found = pool.map(lambda bug: told_by(bug.test, bug.file, planted(bug)), BUGS)
        for bug, what in zip(BUGS, found, strict=True):
            killed += what != ""
            sys.stdout.write(f"{bug.test}: {bug.name}: {what or 'SURVIVES'}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(BUGS)} planted bugs killed\n")
    return 0 if killed == len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
