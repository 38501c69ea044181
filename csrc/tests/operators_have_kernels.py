"""`operators_have_kernels.py FILE` loads the operators as a build for a GPU has them.

Anywhere: it needs no GPU and no CUDA build of PyTorch. What is registered for the CPU must be for
CUDA too, but for the few that run as plain PyTorch there (privimage/ops/_library.py).
"""

import sys

import torch

WITHOUT = {"gram_sums", "random_words", "gaussian_integers"}

torch.ops.load_library(sys.argv[1])
names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("privimage::")}


def registered(key: str) -> set[str]:
    """The operators that have a kernel of their own for a device."""
    return {
        name.removeprefix("privimage::")
        for name in names
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    }


on_cpu, on_gpu = registered("CPU"), registered("CUDA")
sys.stdout.write(f"{len(on_cpu)} operators, {len(on_gpu)} with kernels for a GPU\n")
if not on_cpu or on_gpu != on_cpu - WITHOUT:
    sys.exit(f"differ: {sorted(on_gpu ^ (on_cpu - WITHOUT))}")
