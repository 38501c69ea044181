"""A plug-in, `pytest -p emulated_gpu`: CUDA is there, as csrc/tests/emulator/gpu has it.

The environment variable PRIVIMAGE_EMULATED_GPU names the library that CMake makes of that.
"""

import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import time
from types import SimpleNamespace

LIBRARY = os.environ["PRIVIMAGE_EMULATED_GPU"]
# Before PyTorch, which looks once for what there is of CUDA.
DEVICE = ctypes.CDLL(LIBRARY)

import torch  # noqa: E402


class Event:
    """In place of torch.cuda.Event: what is queued has ended."""

    def __init__(self, enable_timing=False):
        self._at = 0.0

    def record(self):
        self._at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, ended):
        """Milliseconds until then."""
        return (ended._at - self._at) * 1e3


torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda._initialized = True
torch.cuda.default_generators = (torch.default_generator,)
torch.cuda.synchronize = lambda *_: None
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)
torch.cuda.Event = Event
torch.cuda.current_stream = lambda *_: torch.device("cuda:0")  # The only one.
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.is_bf16_supported = lambda *_: True
torch.cuda.get_device_name = lambda *_: "the emulator"
torch.cuda.set_sync_debug_mode = lambda mode: DEVICE.privimage_must_not_wait(mode == "error")
torch.cuda.mem_get_info = lambda *_: (2**33, 2**34)


def _deepcopy(tensor, memo, of_the_cpu=torch.Tensor.__deepcopy__):
    """Without a storage of the device's, which Python can't make."""
    if not tensor.is_cuda:
        return of_the_cpu(tensor, memo)
    copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo.setdefault(id(tensor), copy)


torch.Tensor.__deepcopy__ = _deepcopy


class OurOperators:
    """Finds the library in the place of the operators that are installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "privimage.ops._native":
            return importlib.machinery.ModuleSpec(name, None, origin=LIBRARY)
        return None


def _load_host():
    """The installed extension, which says how that build was, as one for a GPU."""
    package = importlib.util.find_spec("privimage").submodule_search_locations
    spec = importlib.machinery.PathFinder.find_spec("privimage._host", package)
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    host.build = "cuda"
    sys.modules["privimage._host"] = host


sys.meta_path.insert(0, OurOperators)
_load_host()

from privimage.dp.gradients import costs  # noqa: E402

# What a plan is made from would take the emulator minutes to measure.
costs.measure_costs = lambda *_: costs.Costs(5e-15, 3e-12, 5e-13, 1e-12, 1e-12, 0.0, 2e-6)
