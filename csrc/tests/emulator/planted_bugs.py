"""Plants bugs in the CUDA kernels, one at a time, and fails unless the emulator's tests kill each.

A bug is a piece of a kernel's text and what stands there instead. The kernels themselves know
nothing of it. `planted_bugs.py COMPILER LIBRARY` takes the C++ compiler and the emulator as built.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bugs import BUGS
from bugs.bug import Bug

CSRC = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]
# Seconds after which a kernel that does not end counts as killed; whole tests take five.
LIMIT = 120


def run(name: str, file: Path, text: str, compiler: str, library: str) -> str:
    """What the test `name` says if a file's text is this: an empty string if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / file
        planted.parent.mkdir()
        planted.write_text(text)
        test = CSRC / f"tests/emulator/test_{name}.cpp"
        program = Path(folder) / "test"
        # Our folder stands first: it shadows the kernel and nothing else.
        command = [compiler, *FLAGS, f"-I{folder}", f"-I{CSRC}", test, library, "-o", program]
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


def plant(bug: Bug, compiler: str, library: str) -> str:
    """What kills the bug: an empty string if nothing does."""
    text = (CSRC / bug.file).read_text()
    if text.count(bug.before) != 1:
        sys.exit(f"{bug.name}: {bug.before!r} stands {text.count(bug.before)} times in {bug.file}")
    return run(bug.test, bug.file, text.replace(bug.before, bug.after), compiler, library)


def main(compiler: str, library: str) -> int:
    """Plants every bug; 0 if all of them are killed."""
    for name, file in sorted({bug.test: bug.file for bug in BUGS}.items()):
        found = run(name, file, (CSRC / file).read_text(), compiler, library)
        if found:
            sys.exit(f"{name}: fails without any bug: {found}")
    killed = 0
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda bug: plant(bug, compiler, library), BUGS)
        for bug, what in zip(BUGS, found, strict=True):
            killed += what != ""
            sys.stdout.write(f"{bug.test}: {bug.name}: {what or 'SURVIVES'}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(BUGS)} planted bugs killed\n")
    return 0 if killed == len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
