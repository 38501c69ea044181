"""Which operators and kernels a step of a method consists of, by PyTorch's own profiler."""

import torch

from step.methods import Method

ROWS = 40


def profile(method: Method, on_gpu: bool) -> str:
    """A table of one step, after two that warm it up; on a GPU of kernels, those of a graph too."""
    step = method.build(1)
    for _ in range(2):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=100)
