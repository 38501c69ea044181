import os
import platform
import subprocess
import sys

from privimage.allocator import keep_freed_memory

_FAULTS = """
import resource, threading
import torch
from privimage.allocator import keep_freed_memory
def fill():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(20_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for keep in (False, True):
    if keep:
        print(keep_freed_memory())
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
"""


def test_memory_that_was_freed_comes_back_without_page_faults():
    command = [sys.executable, "-P", "-c", _FAULTS]  # 80 MB a second time, before and after
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    before, said, after = done.stdout.split()
    if platform.libc_ver()[0] == "glibc":
        assert (said, int(before) > 10_000, int(after) < 1000) == ("True", True, True)
    else:
        assert said == "False"


def test_an_environment_that_sets_malloc_stays_in_force(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert not keep_freed_memory()
