"""Compares what the CUDA kernels use of a GPU with the table that is kept beside them.

`kernel_resources.py FOLDER` reads the objects that CMake's target `kernels` left in FOLDER: for
each kernel and target its registers, its static shared memory and its tensor-core instructions. No
kernel may use a stack or local memory. `--write` makes the table anew; a change of it is a change
of speed, to be looked at with the change that made it.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TABLE = Path(__file__).parents[1] / "kernels/resources.txt"
COLUMNS = ("kernel", "target", "registers", "shared", "tensor")
TENSOR = re.compile(r"\b[HIDQ]G?MMA\b")
LOCAL = re.compile(r"\b(LDL|STL)\b")

Row = tuple[str, str, int, int, int]


def find_cuobjdump() -> str | None:
    """The tool of a CUDA toolkit, or of the wheel nvidia-cuda-cuobjdump."""
    spec = find_spec("nvidia")
    places = [*spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    wheels = [str(path) for place in places for path in Path(place).glob("*/bin/cuobjdump")]
    return next(iter(wheels), None) or shutil.which("cuobjdump")


def ask(tool: str, what: str, path: Path) -> str:
    """What cuobjdump says."""
    # It looks for nvdisasm on the path; in a wheel that lies beside it.
    environment = {"PATH": f"{Path(tool).parent}:/usr/local/bin:/usr/bin:/bin"}
    return subprocess.check_output([tool, what, path], env=environment, text=True)


def dump(tool: str, what: str, path: Path) -> str:
    """The same with the names of the source instead of the linker's."""
    names = subprocess.check_output(["c++filt"], input=ask(tool, what, path), text=True)
    # The compiler puts a hash of the path into anonymous namespaces.
    return re.sub(
        r"privimage::cuda::|privimage::|_GLOBAL__N__\w+::|\(anonymous namespace\)::", "", names
    )


def kernel_name(signature: str) -> str:
    """`void sums_kernel<double>(ScaledSum<double>)` as `sums_kernel<double>`."""
    return re.sub(r"\(.*", "", signature.removeprefix("void ")).replace(", ", ",").strip()


def read_usage(tool: str, path: Path) -> dict[tuple[str, str], dict[str, int]]:
    """REG, STACK, SHARED, LOCAL by kernel and target."""
    usage, target = {}, ""
    lines = iter(dump(tool, "--dump-resource-usage", path).splitlines())
    for line in lines:
        if found := re.search(r"arch = (sm_\w+)", line):
            target = found[1]
        elif found := re.match(r"\s*Function (.+):\s*$", line):
            numbers = re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", next(lines))
            usage[kernel_name(found[1]), target] = {key: int(value) for key, value in numbers}
    return usage


def read_instructions(tool: str, path: Path) -> dict[tuple[str, str], list[str]]:
    """The lines of assembly by kernel and target."""
    code: dict[tuple[str, str], list[str]] = {}
    target, key = "", ("", "")
    for line in dump(tool, "-sass", path).splitlines():
        if found := re.search(r"code for (sm_\w+)", line):
            target = found[1]
        elif found := re.match(r"\s*Function : (.+)$", line):
            key = (kernel_name(found[1]), target)
            code[key] = []
        elif key in code:
            code[key].append(line)
    return code


def measure(tool: str, objects: list[Path]) -> tuple[list[Row], list[str]]:
    """The table as it is now, and what no kernel may do."""
    rows: list[Row] = []
    wrong: list[str] = []
    for path in objects:
        instructions = read_instructions(tool, path)
        for key, used in read_usage(tool, path).items():
            code = instructions[key]
            tensor = sum(1 for line in code if TENSOR.search(line))
            rows.append((*key, used["REG"], used["SHARED"], tensor))
            local = sum(1 for line in code if LOCAL.search(line))
            if used["STACK"] or used["LOCAL"] or local:
                wrong.append(
                    f"{key[0]} on {key[1]}: {used['STACK']} bytes of stack, {used['LOCAL']} of "
                    f"local memory, {local} instructions that spill"
                )
    return sorted(rows), wrong


def format_table(rows: list[Row], compiler: str) -> str:
    """The table as text; the compiler is the first line, since another one counts differently."""
    cells = [COLUMNS, *rows]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join([compiler, *(line.rstrip() for line in lines)]) + "\n"


def compare(kept: str, now: str) -> list[str]:
    """The lines that differ, `-` for the table's and `+` for what is built."""
    old, new = kept.splitlines(), now.splitlines()
    gone = [f"- {line}" for line in old if line not in new]
    return gone + [f"+ {line}" for line in new if line not in old]


def compiler_version() -> str:
    """`nvcc 13.0`."""
    output = subprocess.check_output(["nvcc", "--version"], text=True)
    return "nvcc " + re.search(r"release ([\d.]+)", output)[1]


def main(folder: str, *options: str) -> int:
    """0 if all is as it was, or can't be looked at."""
    objects = sorted(Path(folder).glob("kernels_*.o"))
    tool = find_cuobjdump()
    if shutil.which("nvcc") is None or not objects or tool is None:
        missing = "cuobjdump" if objects and tool is None else "nvcc"
        sys.stdout.write(f"no {missing}: what the CUDA kernels use was not compared\n")
        return 0
    rows, wrong = measure(tool, objects)
    compiler = compiler_version()
    table = format_table(rows, compiler)
    if "--write" in options:
        TABLE.write_text(table)
    kept = TABLE.read_text()
    same_compiler = kept.splitlines()[0] == compiler
    if same_compiler:
        wrong += compare(kept, table)
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    verdict = "not as they should be" if wrong else "no stack, no local memory, no spills"
    compared = "compared with" if same_compiler else f"{compiler} is not the compiler of"
    sys.stdout.write(f"{len(rows)} kernels: {verdict}; {compared} {TABLE.name}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
