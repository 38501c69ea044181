"""Turns the PTX that lies in an object of nvcc's into C++: `translate.py OBJECT FILE`.

Registers become variables, branches become goto, and each instruction calls the function of
instructions.h that bears its name. What is not there does not compile.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from kernel_resources import ask, find_cuobjdump

TYPES = {"pred", "bf16", "tf32", "bf16x2"}
TYPES |= {f"{kind}{bits}" for kind in "bsuf" for bits in (8, 16, 32, 64)}
BITS = {"pred": "bool", "b16": "B16", "b32": "B32", "f32": "B32", "b64": "B64", "f64": "B64"}
KEYWORDS = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor", "not": "bit_not"}
# What writes to more than its first operand, or elsewhere.
ACTIONS = ("ld", "st", "atom", "cp", "bar", "shfl", "ldmatrix", "mma")


def operand(text: str) -> str:
    """A register, a number, an address or the name of one, as C++."""
    text = re.sub(r"\[|\]", "", text.strip())
    text = re.sub(r"\b0[fd]([0-9A-F]+)\b", lambda m: f"0x{m[1]}u" + "ll" * (len(m[1]) > 8), text)
    text = re.sub(r"%(ctaid|tid)\.(\w)", r"\1_\2()", text)
    text = text.replace("-9223372036854775808", "0x8000000000000000u")
    text = re.sub(r"\w+_param_0\b", "parameters", text)
    text = re.sub(r"\w*privimage_sharedE\b", "shared", text)
    return re.sub(r"%([a-z]+)(\d)", r"\1_\2", text).replace("%", "").replace(".", "_")


def name_of(opcode: str) -> str:
    """`ld.global.v4.f32` as `ld_global<f32>`: how many there are, the operands say."""
    parts = [part for part in opcode.split(".") if part not in ("v2", "v4")]
    types = []
    while len(parts) > 1 and parts[-1] in TYPES:
        types.insert(0, parts.pop())
    name = KEYWORDS.get(opcode, "_".join(KEYWORDS.get(part, part) for part in parts))
    return name + (f"<{', '.join(types)}>" if types else "")


def statement(line: str) -> str:
    """An instruction, a declaration of registers, a label or a brace."""
    if line in "{}" or line.startswith("$"):
        return line.replace("$", "") + ";" * line.endswith(":")
    if found := re.fullmatch(r"\.reg \.(\w+) %(\w+)(?:<(\d+)>)?;", line):
        kind, name, count = found.groups()
        names = [f"{name}_{i}" for i in range(1, int(count))] if count else [name]
        return f"{BITS[kind]} {', '.join(names)};"
    if line.startswith("."):
        return ""
    unless, guard, opcode, rest = re.fullmatch(r"(?:@(!?)%(p\d+) )?([\w.]+) ?(.*);", line).groups()
    condition = f"if ({unless}{operand('%' + guard)}) " if guard else ""
    if opcode in ("bra", "bra.uni"):
        return f"{condition}goto {rest.replace('$', '')};"
    if opcode == "ret":
        return f"{condition}return;"
    parts = [part.strip() for part in re.split(r"[,|]", re.sub(r"[{}]", "", rest)) if part]
    values = [operand(part) for part in sorted(parts, key=lambda part: part[0] != "[")]
    if opcode.startswith(ACTIONS) or rest.startswith("{"):
        return f"{condition}{name_of(opcode)}({', '.join(values)});"
    return f"{condition}{values[0]} = {name_of(opcode)}({', '.join(values[1:])});"


def translate(ptx: str) -> Iterator[str]:
    """The lines of a source file, every kernel of which says its name to the runtime."""
    yield '#include "tests/emulator/ptx/instructions.h"'
    yield "namespace privimage::emulator::ptx {"
    # A brace at the beginning of a line may end a piece of inline assembly, too.
    head, end = r"\.entry (\w+)\([^)]*\)\s*((?:\.\w+ [\d, ]+\s)*)", r"(?=\s*(?:\.|Fatbin|=|\Z))"
    kernel = re.compile(head + r"(\{.*?^\}$)" + end, re.DOTALL | re.MULTILINE)
    for name, bounds, body in kernel.findall(ptx):
        threads = re.search(r"\.maxntid (\d+)", bounds)
        yield f"static void {name}(const B64 parameters)"
        yield from (statement(line.strip()) for line in body.splitlines() if line.strip())
        yield f'static const Kernel of_{name}("{name}", {name}, {threads[1] if threads else 1024});'
    yield "}"


def main(compiled: str, translated: str) -> None:
    """Ends with an error where there is no cuobjdump."""
    tool = find_cuobjdump()
    if tool is None:
        sys.exit("no cuobjdump: pip install nvidia-cuda-cuobjdump")
    lines = translate(ask(tool, "--dump-ptx", Path(compiled)))
    Path(translated).write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
