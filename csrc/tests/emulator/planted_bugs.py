"""Plants bugs in the CUDA kernels, one at a time, and fails unless the emulator's tests kill each.

A bug is a piece of a kernel's text and what stands there instead. The kernels themselves know
nothing of it. `planted_bugs.py COMPILER LIBRARY` takes the C++ compiler and the emulator as built.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]
# Seconds after which a kernel that does not end counts as killed; whole tests take five.
LIMIT = 120


@dataclass(frozen=True)
class Bug:
    """What is wrong, in which kernel, and how: `before` stands there once."""

    name: str
    kernel: str
    before: str
    after: str


def conv(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example weight gradient."""
    return Bug(name, "conv_weight_grad", before, after)


def clip(name: str, before: str, after: str) -> Bug:
    """A bug in the clipped sum."""
    return Bug(name, "clipped_sum", before, after)


def norm(name: str, before: str, after: str) -> Bug:
    """A bug in the fused normalisation."""
    return Bug(name, "group_norm_silu", before, after)


BUGS = [
    # Synchronisation
    conv("no barrier after the wait", "      block_.barrier();\n      bring", "      bring"),
    conv(
        "copies start before the barrier",
        "block_.barrier();\n      bring(i + kStages - 1, bands);",
        "bring(i + kStages - 1, bands);\n      block_.barrier();",
    ),
    conv(
        "no barrier before the tables are read",
        "    block_.barrier();\n    const int bands",
        "    const int bands",
    ),
    conv("waits for a group too few", "wait<kStages - 2>", "wait<kStages - 1>"),
    conv("loads into the live stage", "grad_stage(i % kStages)", "grad_stage(i % (kStages - 1))"),
    conv(
        "no group after the last band", "    }\n    block_.commit();", "    block_.commit();\n    }"
    ),
    conv(
        "no barrier before the warps are added",
        "    block_.barrier();\n    if (block_",
        "    if (block_",
    ),
    conv(
        "threads leave before the barrier",
        "    block_.barrier();\n    if (block_.thread() != 0) return;",
        "    if (block_.thread() != 0) return;\n    block_.barrier();",
    ),
    clip("no barrier before the tree", "squares);\n  block.barrier();", "squares);"),
    clip("no barrier inside the tree", "    block.barrier();\n  }", "  }"),
    norm("no barrier inside the tree", "      block_.barrier();\n      if (at", "      if (at"),
    norm(
        "no barrier before the means",
        "  block.barrier();\n  for (int group = block.thread(); group < slab.groups(); "
        "group += kNormThreads) {\n    const double sum =",
        "  for (int group = block.thread(); group < slab.groups(); "
        "group += kNormThreads) {\n    const double sum =",
    ),
    norm("reads before the copies land", "wait<0>", "wait<1>"),
    norm(
        "no barrier before the moments are read",
        "  block.barrier();\n  slab.wait_for_arrays();",
        "  slab.wait_for_arrays();",
    ),
    # Halo and tails
    conv("halo off by one", "left - Tile::kHalo)", "left)"),
    conv(
        "lower halo not loaded",
        "(band_.height + 2 * Tile::kHalo) * (band_.width",
        "(band_.height + Tile::kHalo) * (band_.width",
    ),
    conv("tail pixels not zeroed", "pixel < band_.width * band_.height && y", "y"),
    conv(
        "rows below the image not zeroed",
        "inside = 0 <= y && y < job_.height && ",
        "inside = 0 <= y && ",
    ),
    conv("channels that don't exist not zeroed", "exists ? 16 : 0", "16"),
    conv("channels that don't exist stored", " || in >= channels)", ")"),
    conv(
        "tap shift of the wrong pitch",
        "(place / 256 + tap_row_) * band_.pitch",
        "place / 256 * band_.pitch + tap_row_ * band_.width",
    ),
    clip("one parameter too many", "i >= job.parameters", "i > job.parameters"),
    # Fragments and taps
    conv(
        "gradient's fragments swapped",
        "grad_pixel = lane / 16 * 8",
        "grad_pixel = lane / 8 % 2 * 8",
    ),
    conv("input's fragments swapped", "input[0], input[1]", "input[0], input[2]"),
    conv("taps in reverse", "(slot + tap)", "(slot + Tile::kSide - 1 - tap)"),
    conv(
        "taps stored transposed",
        "(out * Tile::kSide + tap_row_) * Tile::kSide + tap",
        "(out * Tile::kSide + tap) * Tile::kSide + tap_row_",
    ),
    conv("pixels lie in the same banks", "kOutPitch = kOut + 8", "kOutPitch = kOut"),
    # Counting
    conv(
        "last draw not added",
        "bands = static_cast<int>(job_.draws)",
        "bands = static_cast<int>(job_.draws > 1 ? job_.draws - 1 : job_.draws)",
    ),
    conv("first warp counted twice", "double total = 0.0;", "double total = squares;"),
    conv("half of the lanes not counted", "mask = 16;", "mask = 8;"),
    conv("squares rounded to fp32", "const double value = sums", "const float value = sums"),
    conv(
        "squares in a neighbour's slot",
        "block_.x() * conv_slots<Tile>(job_) + block_.y()",
        "block_.x() * conv_slots<Tile>(job_)",
    ),
    conv(
        "draws of different examples mixed",
        "block_.x() * job_.draws + draw",
        "draw * job_.examples + block_.x()",
    ),
    clip("a quarter of the threads added", "kClippedSumThreads / 2", "kClippedSumThreads / 4"),
    clip("examples that are not finite added", "if (scale != 0.0) sum", "sum"),
    clip(
        "norms over the gap",
        "block.x() * job.row_stride",
        "block.x() * job.parameters",
    ),
    clip("sums over the gap", "[example * job.row_stride", "[example * job.parameters"),
    norm(
        "lanes that the tree leaves out",
        "at.lane + half >= at.lanes",
        "at.lane + half >= at.lanes - 1",
    ),
    norm("channels of a vector mixed", "sums[1][c] += s * ", "sums[1][0] += s * "),
    norm("last slab as wide as the others", "groups_(least(plan.slab_groups, ", "groups_(("),
    norm(
        "neighbours of a vector in another group",
        "const int c = i % Slab::kChannels, group = slab.group(at.column * Slab::kChannels + c);",
        "const int c = i % Slab::kChannels, group = slab.group(at.column * Slab::kChannels);",
    ),
    norm("vectors in one place", "      slot += kNormThreads;", "      slot += 0;"),
    norm("variance about 0", "slab.group(at.column * Slab::kChannels + c));\n", "0) * 0;\n"),
    norm("SiLU's slope without its value", "value * (Real(1) - s)", "(Real(1) - s)"),
    norm("draws of an example counted once", "draw < draws; ++draw", "draw < 1; ++draw"),
    norm("sum along x forgotten", "tilts.load(group) * value + ", ""),
    clip("scale in the wrong slot", "job.scales[block.x()]", "job.scales[0]"),
]


def run(kernel: str, text: str, compiler: str, library: str) -> str:
    """What the test of `kernel` says if its text is this: an empty string if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "kernels"
        planted.mkdir()
        (planted / f"{kernel}.cuh").write_text(text)
        test = CSRC / f"tests/emulator/test_{kernel}.cpp"
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
    text = (CSRC / f"kernels/{bug.kernel}.cuh").read_text()
    if text.count(bug.before) != 1:
        sys.exit(
            f"{bug.name}: {bug.before!r} stands {text.count(bug.before)} times in {bug.kernel}.cuh"
        )
    return run(bug.kernel, text.replace(bug.before, bug.after), compiler, library)


def main(compiler: str, library: str) -> int:
    """Plants every bug; 0 if all of them are killed."""
    for kernel in sorted({bug.kernel for bug in BUGS}):
        found = run(kernel, (CSRC / f"kernels/{kernel}.cuh").read_text(), compiler, library)
        if found:
            sys.exit(f"{kernel}: fails without any bug: {found}")
    killed = 0
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda bug: plant(bug, compiler, library), BUGS)
        for bug, what in zip(BUGS, found, strict=True):
            killed += what != ""
            sys.stdout.write(f"{bug.kernel}: {bug.name}: {what or 'SURVIVES'}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(BUGS)} planted bugs killed\n")
    return 0 if killed == len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
